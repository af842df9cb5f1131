"""Each source of negatives against an example by hand, and what holds for all of them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tiny

from gplfast.config import MineConfig
from gplfast.errors import ConfigError, DataError
from gplfast.mining import dense, draws, sources
from gplfast.mining.lists import from_sequences
from gplfast.stages import mine
from gplfast.store.corpus import load_corpus
from gplfast.store.generated import GeneratedQueries
from gplfast.store.labelled import LabelledQueries
from gplfast.store.manifest import Manifest
from gplfast.store.shards import ShardSet


def run(folder, corpus, queries, encoders, *, threads=1, seed=0, **options):
    config = MineConfig(**{"retrievers": tuple(encoders), **options})
    used = sources.used_retrievers(config)
    openers = {
        name: (lambda encoder=encoders[name]: encoder) if encoders.get(name) is not None else None for name in used
    }
    prints = {name: "bm25" if openers[name] is None else encoders[name].fingerprint for name in used}
    wanted = mine.manifest({"corpus": corpus.fingerprint, "queries": "queries"}, prints, config, seed)
    return mine.mine(
        corpus,
        queries,
        folder / "mine",
        wanted,
        config,
        encoders=openers,
        embeddings=folder / "embeddings",
        seed=seed,
        threads=threads,
    )


class Angles:
    """Text "... n" has the vector at n degrees: cosines are those of the differences."""

    dim = 2

    def __init__(self, fingerprint="angles"):
        self.fingerprint = fingerprint

    def encode(self, texts, *, kind, batch_size, progress):
        angles = np.deg2rad([float(text.split()[-1]) for text in texts])
        return np.ascontiguousarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), np.float32)


# Passages at 0, 5, 10, ... 95 degrees; 20 and 21 repeat passage 2 (text and vector).
CORPUS = load_corpus([f"passage at {5 * row}" for row in range(20)] + ["passage at 10"] * 2)


def labelled(texts, positives):
    indptr = np.concatenate([[0], np.cumsum([len(rows) for rows in positives])]).astype(np.int64)
    ids = [f"q{number}" for number in range(len(texts))]
    return LabelledQueries(ids, texts, indptr, np.array([row for rows in positives for row in rows], np.int64))


# A query at 0 degrees finds 0, 1, 2, ... in order.
ASKED = labelled(["query at 0", "query at 0", "other query at 95"], [[2], [0, 6], [19]])


def mined(folder, *words, **options):
    found = run(folder, CORPUS, ASKED, {"angles": Angles(), "bm25": None}, sources=words, **options)
    return {name: [ranked[query].tolist() for query in range(3)] for name, ranked in found.lists.items()}


def test_a_window_counts_ranks_without_the_positives_and_ends_before_its_end(tmp_path):
    """Query 0 finds 0, 1, 3, 4, ... (2 and its copies are positives); query 1 finds 1, 2, 20, 21, 3, ..."""
    lists = mined(tmp_path, "dense@1-4:3")
    assert lists == {"angles@1-4": [[1, 3, 4], [2, 20, 21], [17, 16, 15]]}
    assert mined(tmp_path / "b", "angles@0-1:1,dense@18-400:2") == {
        "angles@0-1": [[0], [1], [18]],
        "angles@18-400": [[19], [18, 19], [21, 1]],
    }


def test_a_window_is_drawn_from_when_asked(tmp_path):
    lists = mined(tmp_path, "dense@2-8:3", sampling="random")["angles@2-8"]
    whole = mined(tmp_path / "b", "dense@2-8:6")["angles@2-8"]
    for drawn, window in zip(lists, whole, strict=True):
        places = [window.index(row) for row in drawn]
        assert places == sorted(places)
        assert len(drawn) == 3
    assert lists != [window[:3] for window in whole]
    assert mined(tmp_path / "c", "dense@2-8:3", sampling="random", seed=1)["angles@2-8"] != lists
    seen = {
        row
        for seed in range(8)
        for row in mined(tmp_path / f"s{seed}", "dense@2-8:3", sampling="random", seed=seed)["angles@2-8"][0]
    }
    assert seen == set(whole[0])


def test_candidates_widen_what_is_drawn_from(tmp_path):
    lists = mined(tmp_path, "dense:2", sampling="random", candidates=5)["angles"]
    assert all(
        set(rows) <= set(window) for rows, window in zip(lists, mined(tmp_path / "b", "dense:5")["angles"], strict=True)
    )
    assert lists != mined(tmp_path / "c", "dense:2", candidates=5)["angles"]
    assert mined(tmp_path / "c", "dense:2", candidates=5) == mined(tmp_path / "d", "dense:2")


def test_semi_hard_are_the_best_below_the_lowest_positive(tmp_path):
    lists = mined(tmp_path, "dense@semi-hard:3")["angles@semi-hard"]
    assert lists[0] == [3, 4, 5]  # below passage 2 at 10 degrees, whose copies are no negatives
    assert lists[1] == [7, 8, 9]  # below passage 6, the lower of the two
    assert lists[2] == [18, 17, 16]


def test_semi_hard_searches_deeper_until_it_is_below_the_positive(tmp_path):
    """The positive ranks 900th of 1,000: no search that stops at the number of negatives sees what is below it."""
    corpus = load_corpus([f"passage at {row / 10}" for row in range(1000)])
    asked = labelled(["query at 0", "query at 0", "query at 0"], [[900], [998], [999]])
    found = run(tmp_path, corpus, asked, {"a": Angles()}, sources=("dense@semi-hard:4",)).lists["a@semi-hard"]
    assert [found[query].tolist() for query in range(3)] == [[901, 902, 903, 904], [999], []]


def test_semi_hard_of_bm25_needs_a_positive_that_shares_a_word(tmp_path):
    corpus = load_corpus(["cell cell cell", "cell cell law", "cell law law", "law mountain", "river", "cell river"])
    asked = labelled(["cell", "cell"], [[1], [4]])
    found = run(tmp_path, corpus, asked, {"bm25": None}, sources=("bm25@semi-hard:5",)).lists["bm25@semi-hard"]
    scores = run(tmp_path / "b", corpus, asked, {"bm25": None}, sources=("bm25:5",)).lists["bm25"]
    assert set(found[0].tolist()) < set(scores[0].tolist())
    assert 0 not in found[0]
    assert len(found[0]) > 0
    assert found[1].tolist() == []


@pytest.mark.parametrize("n", [3, 8])
def test_random_is_uniform_over_what_is_no_positive(n):
    """By rejection where the pool is large beside n, by order where it is not."""
    pool, excluded = np.arange(0, 44, 2), from_sequences([[4, 40, 42, 41], [0, 12], []])
    counts = np.zeros((3, 44), np.int64)
    for seed in range(600):
        found = draws.drawn(pool, n, excluded, seed=seed, column="random", first_query=5)
        assert np.isnan(found.scores).all()
        for query, rows in enumerate(found.ids):
            assert len(set(rows.tolist())) == n
            counts[query, rows] += 1
    for query in range(3):
        others = counts[query][np.setdiff1d(pool, excluded.list(query))]
        assert others.sum() == counts[query].sum() == 600 * n
        expected = 600 * n / len(others)
        assert ((others - expected) ** 2 / expected).sum() < 46.8  # chi-square, 18 to 21 degrees: 0.1 % is above


def test_random_gives_all_that_are_left_of_a_small_corpus(tmp_path):
    lists = mined(tmp_path, "random:50")["random"]
    assert [sorted(rows) for rows in lists] == [
        sorted(set(range(22)) - {2, 20, 21}),
        sorted(set(range(22)) - {0, 6}),
        sorted(set(range(22)) - {19}),
    ]


def test_random_draws_few_of_many(tmp_path):
    corpus = load_corpus([f"text {row}" for row in range(3000)])
    asked = labelled(["a", "b"], [list(range(0, 3000, 2)), [5]])
    found = run(tmp_path, corpus, asked, {"bm25": None}, sources=("random:40",)).lists["random"]
    assert found.scores is None
    for query in range(2):
        assert len(set(found[query].tolist())) == 40
    assert (found[0] % 2 == 1).all()
    assert 5 not in found[1]
    assert len(np.unique(found[1] // 300)) > 5


def test_gold_are_positives_of_other_queries(tmp_path):
    lists = mined(tmp_path, "gold:9")["gold"]
    assert [sorted(rows) for rows in lists] == [[0, 6, 19], [2, 19], [0, 2, 6]]


def test_explicit_takes_the_users_order_and_never_a_positive(tmp_path):
    """Positives in a user's list would teach the opposite of the label; GPL's own form is read too."""
    lines = [
        {"qid": "q0", "neg": ["9", "20", "3", "9", "2", "7"]},
        {"_id": "q2", "neg": {"angles": ["1"], "bm25": ["4", "1"]}},
        {"query": "query at 0", "neg": ["11"]},
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lists = mined(tmp_path, "explicit:3", explicit=str(file))["explicit"]
    assert lists == [[9, 3, 7], [11], [1, 4]]
    before = Manifest.read(tmp_path / "mine").key
    file.write_text(json.dumps({"qid": "q0", "neg": ["5"]}) + "\n")
    assert mined(tmp_path, "explicit:3", explicit=str(file))["explicit"] == [[5], [], []]
    assert Manifest.read(tmp_path / "mine").key != before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"qid": "q0", "neg": ["nothing"]}', "line 2: neg names 'nothing', which is no id of the corpus of 22"),
        ('{"qid": "q9", "neg": ["1"]}', "line 2: qid is 'q9', which none of the 3 queries has"),
        ('{"query": "what", "neg": ["1"]}', "line 2: query is 'what', which none"),
        ('{"neg": ["1"]}', "line 2: names no query"),
        ('{"qid": 3, "neg": ["1"]}', "line 2: qid is a number but must be a string"),
        ('{"qid": "q0", "neg": "1"}', "line 2: neg must be a list of document ids"),
        ('{"qid": "q0"}', "line 2: neg must be a list"),
        ('{"qid": "q0", "neg": [1]}', "line 2: neg must be a list"),
        ("{", "line 2: broken JSON"),
    ],
)
def test_a_malformed_file_names_file_and_line(tmp_path, line, message):
    file = tmp_path / "own.jsonl"
    file.write_text('{"qid": "q0", "neg": ["1"]}\n' + line + "\n")
    with pytest.raises(DataError, match=message) as error:
        mined(tmp_path, "explicit:3", explicit=str(file))
    assert str(error.value).startswith(str(file))


def test_a_missing_file_is_said_before_anything_is_made(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be opened"):
        mined(tmp_path, "explicit:3", explicit=str(tmp_path / "none.jsonl"))
    assert not (tmp_path / "mine").exists()


def test_hybrids_have_a_column_and_a_count_each(tmp_path):
    lists = mined(tmp_path, "dense:4,bm25:2", "random:3", "gold:1")
    assert list(lists) == ["angles", "bm25", "random", "gold"]
    counts = Manifest.read(tmp_path / "mine").counts
    assert {name: counts[f"negatives {name}"] for name in lists} == {
        name: sum(map(len, rows)) for name, rows in lists.items()
    }
    assert counts["negatives angles"] == 12
    assert counts["negatives random"] == 9


def test_dense_is_every_bi_encoder_and_bm25_need_not_be_a_retriever(tmp_path):
    encoders = {"angles": Angles(), "other": Angles("second")}
    found = run(tmp_path, CORPUS, ASKED, encoders, sources=("dense:2", "bm25:1", "other@3-5:1"))
    assert list(found.lists) == ["angles", "other", "bm25", "other@3-5"]
    alone = run(tmp_path / "b", CORPUS, ASKED, {**encoders, "bm25": None}, sources=("random:1",))
    assert list(alone.lists) == ["random"]
    assert Manifest.read(tmp_path / "b" / "mine").models == {}  # what no source uses is not opened


def test_hard_positives_are_those_the_first_retriever_ranks_last(tmp_path):
    asked = labelled(["query at 0", "query at 0", "query at 50"], [[4, 9, 1], [], [9, 11, 20]])
    found = run(tmp_path, CORPUS, asked, {"angles": Angles()}, sources=("dense:30",), positives="hard")
    assert found.positives.tolist() == [9, -1, 20]
    assert not {1, 4, 9} & set(found.lists["angles"][0].tolist())  # the easy ones are no negatives either
    both = mine.load(tmp_path / "mine", Manifest.read(tmp_path / "mine"), n_queries=3, n_passages=22)
    assert both.positives.tolist() == [9, -1, 20]
    tie = run(tmp_path / "t", CORPUS, labelled(["query at 0"], [[2, 21, 20]]), {"a": Angles()}, positives="hard")
    assert tie.positives.tolist() == [21]
    with pytest.raises(ConfigError, match="round_trip_top is 3 but no source has a retriever"):
        run(tmp_path / "c", CORPUS, asked, {"angles": Angles()}, sources=("random:3",), round_trip_top=3)
    with pytest.raises(ConfigError, match="positives is hard but no source has a retriever"):
        run(tmp_path / "c", CORPUS, asked, {"angles": Angles()}, sources=("random:3",), positives="hard")


ALL = ("dense@2-9:4", "dense:3", "bm25:4", "dense@semi-hard:3", "random:5", "gold:4", "explicit:3")


def everything(folder, tmp_path, **options):
    """All sources at once on texts with copies; nine queries, some of several positives."""
    texts = tiny.texts(40)
    corpus = load_corpus([*texts, texts[3], texts[7], texts[7]])
    positives = [[3], [7, 12], [0, 1, 2], [], [41], [39], [7], [20, 3], [5]]
    asked = labelled([f"the query {number} of it {texts[number]}" for number in range(9)], positives)
    file = tmp_path / "own.jsonl"
    file.write_text(
        "".join(json.dumps({"qid": f"q{i}", "neg": [str(j) for j in range(0, 43, i + 1)]}) + "\n" for i in range(9))
    )
    encoders = {"a": tiny.HashEncoder("a"), "bm25": None}
    found = run(folder, corpus, asked, encoders, sources=ALL, explicit=str(file), **options)
    return corpus, asked, found


@pytest.mark.parametrize("sampling", ["top", "random"])
def test_no_positive_and_no_copy_is_a_negative_of_any_source(tmp_path, sampling):
    for seed in range(2):
        corpus, asked, found = everything(tmp_path / str(seed), tmp_path, sampling=sampling, seed=seed)
        texts = corpus.texts()
        assert set(found.lists) == {"a@2-9", "a", "bm25", "a@semi-hard", "random", "gold", "explicit"}
        for query in range(9):
            own = {texts[row] for row in asked.rows[asked.indptr[query] : asked.indptr[query + 1]]}
            for name, ranked in found.lists.items():
                rows = ranked[query].tolist()
                assert not own & {texts[row] for row in rows}, (name, query)
                assert len(set(rows)) == len(rows)
                assert ranked.scores is not None or name in ("random", "gold", "explicit")


@pytest.mark.parametrize("sampling", ["top", "random"])
def test_shards_threads_and_kills_do_not_change_the_bytes(tmp_path, sampling, monkeypatch):
    options = {"sampling": sampling, "positives": "hard", "candidates": 9, "seed": 3}
    whole = everything(tmp_path / "a", tmp_path, **options)[2]
    monkeypatch.setattr(dense, "_SEARCH_ROWS", 3)
    monkeypatch.setattr(mine, "SHARD_QUERIES", 4)
    parts = everything(tmp_path / "b", tmp_path, threads=2, **options)[2]
    assert len(list((tmp_path / "b" / "mine").glob("shard-*"))) == 3
    assert whole.table().equals(parts.table())
    with monkeypatch.context() as patch:
        real, written = ShardSet.write, []

        def dying(self, shard, table):
            if written:
                raise KeyboardInterrupt
            real(self, shard, table)
            written.append(shard)

        patch.setattr(ShardSet, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            everything(tmp_path / "c", tmp_path, **options)
    everything(tmp_path / "c", tmp_path, **options)
    for path in sorted((tmp_path / "b" / "mine").iterdir()):
        assert path.read_bytes() == (tmp_path / "c" / "mine" / path.name).read_bytes(), path.name


def test_other_sources_do_not_change_what_one_draws(tmp_path):
    alone = mined(tmp_path / "a", "random:4")["random"]
    assert mined(tmp_path / "b", "gold:2", "dense:3", "random:4")["random"] == alone


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("dense:0", "'dense:0' has '0' after the colon but must have a whole number"),
        ("dense:x", "has 'x' after the colon"),
        ("dense:-3", "has '-3' after the colon"),
        ("dense:", "has '' after the colon"),
        ("dence:5", "'dence' is no source; did you mean dense"),
        ("", "'' is no source; there is angles, bm25, dense"),
        ("dense@10:5", "has @10 but must have ranks such as @10-210"),
        ("dense@5-3:1", "asks for 1 of the 0 ranks from 5 to 3"),
        ("dense@10-20:11", "asks for 11 of the 10 ranks"),
        ("dense@hard:1", "has @hard but must have ranks"),
        ("random@1-5:1", "has @1-5 but random has no ranks"),
        ("gold@semi-hard:1", "has @semi-hard but gold has no ranks"),
        ("dense:3,angles:5", "names angles 2 times"),
        ("random:3 random:5", "has '3 random:5'|'random:3 random' is no source"),
        ("in-batch:5", "is what the loss makes of a batch"),
        ("ANCE:5", "is a refresh during training"),
        ("explicit:5", "explicit but no file is given"),
    ],
)
def test_a_malformed_source_is_quoted(word, message):
    with pytest.raises(ConfigError, match=message):
        sources.plan(MineConfig(retrievers=("angles", "bm25"), sources=(word,)))


def test_sources_need_what_they_name():
    with pytest.raises(ConfigError, match="needs a bi-encoder but retrievers has only bm25"):
        sources.plan(MineConfig(retrievers=("bm25",), sources=("dense:5",)))
    with pytest.raises(ConfigError, match=r"explicit is own\.jsonl but no source uses it"):
        sources.plan(MineConfig(retrievers=("bm25",), explicit="own.jsonl"))


def test_names_may_hold_colons_slashes_and_leave_out_the_number():
    config = MineConfig(
        retrievers=("nano:student", "some/model", "bm25"),
        sources=("nano:student", "some/model@2-9:4", "bm25", "model:7"),
        negatives_per_query=12,
    )
    found = [(source.column, source.n, source.first, source.depth) for source in sources.plan(config)]
    assert found == [("nano:student", 12, 0, 12), ("model@2-9", 4, 2, 9), ("bm25", 12, 0, 12), ("model", 7, 0, 7)]
    assert sources.used_retrievers(config) == {"nano:student": "nano:student", "model": "some/model", "bm25": "bm25"}
    config = dataclasses.replace(config, sources=("nano:student@3-20", "nano:student@5-9:2", "nano:student@semi-hard"))
    assert sources.canonical(sources.plan(config)) == [
        "nano:student@3-20:12",
        "nano:student@5-9:2",
        "nano:student@semi-hard:12",
    ]


def test_without_sources_nothing_is_new_in_the_manifest():
    """Artifacts made before there were sources stay fresh."""
    config = MineConfig(retrievers=("a", "bm25"))
    made = mine.manifest({"corpus": "c", "queries": "q"}, {"a": "1", "bm25": "bm25"}, config, seed=7)
    assert made.config == {
        "retrievers": ["a", "bm25"],
        "metrics": ["cosine", "cosine"],
        "negatives_per_query": 50,
        "exclude_duplicates": True,
        "round_trip_top": 0,
        "shard_queries": 4096,
    }
    assert made.inputs == {"corpus": "c", "queries": "q"}


def test_generated_queries_have_one_positive_that_is_the_hard_one(tmp_path):
    asked = GeneratedQueries(["query at 0", "query at 0"], np.array([3, 1]))
    found = run(tmp_path, CORPUS, asked, {"a": Angles()}, positives="hard")
    assert found.positives.tolist() == [3, 1]
