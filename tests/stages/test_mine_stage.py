from __future__ import annotations

import math

import numpy as np
import pytest
import tiny

from gplfast import ops
from gplfast.config import GenerateConfig, MineConfig
from gplfast.errors import ShapeError
from gplfast.mining import dense
from gplfast.mining.bm25 import Bm25, Ranking
from gplfast.mining.lists import single
from gplfast.mining.round_trip import returns
from gplfast.stages import generate, mine
from gplfast.store.corpus import load_corpus
from gplfast.store.generated import GeneratedQueries
from gplfast.store.labelled import LabelledQueries
from gplfast.store.manifest import Manifest
from gplfast.store.shards import ShardSet


def run(folder, corpus, queries, encoders, **options):
    config = MineConfig(retrievers=tuple(encoders), **options)
    fingerprints = {name: "bm25" if encoder is None else encoder.fingerprint for name, encoder in encoders.items()}
    wanted = mine.manifest({"corpus": corpus.fingerprint, "queries": "queries"}, fingerprints, config)
    openers = {
        name: None if encoder is None else (lambda encoder=encoder: encoder) for name, encoder in encoders.items()
    }
    return mine.mine(
        corpus, queries, folder / "mine", wanted, config, encoders=openers, embeddings=folder / "embeddings", threads=1
    )


@pytest.fixture
def queries():
    return GeneratedQueries([f"the query {i} of it" for i in range(12)], np.arange(12, dtype=np.int64) % 5)


def test_fifty_means_fifty_and_no_positive(tmp_path, queries):
    """GPL searched 50 and then took the positive away: 49 or 50 came back."""
    corpus = tiny.corpus(80)
    found = run(tmp_path, corpus, queries, {"a": tiny.HashEncoder("a"), "b": tiny.HashEncoder("b", dim=5)})
    for ranked in found.lists.values():
        assert np.diff(ranked.indptr).tolist() == [50] * 12
        for query, passage in enumerate(queries.passages):
            assert passage not in ranked[query]
            assert len(set(ranked[query].tolist())) == 50


def test_a_small_corpus_gives_all_its_others(tmp_path, queries):
    found = run(tmp_path, tiny.corpus(6), queries, {"a": tiny.HashEncoder()})
    assert np.diff(found.lists["a"].indptr).tolist() == [5] * 12


def test_passages_of_the_same_text_are_no_negatives(tmp_path, queries):
    """GPL excluded by id alone: a copy of the positive became a hard negative with margin 0."""
    texts = [*tiny.texts(10), tiny.texts(10)[0], f"{tiny.texts(10)[3]} "]
    corpus = load_corpus(texts)
    found = run(tmp_path / "a", corpus, queries, {"a": tiny.HashEncoder(), "bm25": None})
    for ranked in found.lists.values():
        assert not {0, 10} & set(ranked[0].tolist())
        assert not {3, 11} & set(ranked[3].tolist())
    kept = run(tmp_path / "b", corpus, queries, {"a": tiny.HashEncoder()}, exclude_duplicates=False)
    assert 10 in kept.lists["a"][0]


def test_cosine_and_dot_are_what_they_say(tmp_path, queries):
    corpus = tiny.corpus(40)
    encoder = tiny.HashEncoder(scale=3.0)
    options = {"kind": "query", "batch_size": 8, "progress": None}
    vectors, docs = encoder.encode(queries.texts, **options), encoder.encode(corpus.texts(), **options)
    scores = vectors.astype(np.float64) @ docs.astype(np.float64).T
    norms = np.linalg.norm(docs.astype(np.float64), axis=1)
    for metric, expected in (("dot", scores), ("cosine", scores / norms)):
        found = run(tmp_path / metric, corpus, queries, {"a": encoder}, negatives_per_query=7, metrics=(metric,))
        for query, passage in enumerate(queries.passages):
            expected[query, passage] = -np.inf
            assert found.lists["a"][query].tolist() == np.argsort(-expected[query], kind="stable")[:7].tolist()


def test_each_retriever_can_have_its_own_metric():
    config = MineConfig(retrievers=("a", "b", "bm25"), metrics=("dot", "cosine", "cosine"))
    assert mine.metrics(config) == ["dot", "cosine", "cosine"]
    assert mine.metrics(MineConfig(retrievers=("a", "b"), metrics=("dot",))) == ["dot", "dot"]


def test_embeddings_are_reused_until_the_weights_change(tmp_path, queries):
    """A cache keyed by the model's name gives the old vectors after the weights changed."""
    corpus = tiny.corpus(20)
    first = tiny.HashEncoder("weights-1")
    run(tmp_path, corpus, queries, {"a": first}, negatives_per_query=3)
    assert first.n_texts == 32
    again = tiny.HashEncoder("weights-1")
    run(tmp_path, corpus, queries, {"a": again}, negatives_per_query=4)
    assert again.n_texts == 0
    trained = tiny.HashEncoder("weights-2")
    run(tmp_path, corpus, queries, {"a": trained}, negatives_per_query=4)
    assert trained.n_texts == 32


def test_shards_do_not_change_the_answer(tmp_path, queries, monkeypatch):
    corpus = tiny.corpus(30)
    encoders = {"a": tiny.HashEncoder(), "bm25": None}
    whole = run(tmp_path / "a", corpus, queries, encoders, negatives_per_query=4)
    monkeypatch.setattr(mine, "SHARD_QUERIES", 5)
    monkeypatch.setattr(dense, "SHARD_ROWS", 7)
    monkeypatch.setattr(dense, "_SEARCH_ROWS", 2)
    parts = run(tmp_path / "b", corpus, queries, encoders, negatives_per_query=4)
    assert len(list((tmp_path / "b" / "mine").glob("shard-*"))) == 3
    assert whole.table().equals(parts.table())


@pytest.mark.parametrize(("few", "n_packed"), [(64, 0), (1, 1)])
def test_the_corpus_is_packed_once_for_all_shards(tmp_path, queries, monkeypatch, few, n_packed):
    packed, real, corpus, asked = [], ops.Index.add, tiny.corpus(30), {"a": tiny.HashEncoder()}
    whole = run(tmp_path / "a", corpus, queries, asked, negatives_per_query=4)
    monkeypatch.setattr(mine, "SHARD_QUERIES", 4)
    monkeypatch.setattr(dense, "_FEW_ROWS", few)
    monkeypatch.setattr(
        ops.Index, "add", lambda self, docs, **options: packed.append(docs) or real(self, docs, **options)
    )
    parts = run(tmp_path / "b", corpus, queries, asked, negatives_per_query=4)
    assert len(list((tmp_path / "b" / "mine").glob("shard-*"))) == 3
    assert len(packed) == n_packed
    assert whole.table().equals(parts.table())


def test_a_run_killed_between_shards_goes_on_to_the_same_bytes(tmp_path, queries, monkeypatch):
    monkeypatch.setattr(mine, "SHARD_QUERIES", 5)
    corpus, encoders = tiny.corpus(30), {"a": tiny.HashEncoder(), "bm25": None}
    run(tmp_path / "a", corpus, queries, encoders, negatives_per_query=4)
    with monkeypatch.context() as patch:
        real, written = ShardSet.write, []

        def dying(self, shard, table):
            if len(written) == 2:
                raise KeyboardInterrupt
            real(self, shard, table)
            written.append(shard)

        patch.setattr(ShardSet, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", corpus, queries, encoders, negatives_per_query=4)
    kept = {path.name: path.stat().st_ino for path in (tmp_path / "b" / "mine").glob("shard-*")}
    assert len(kept) == 2
    run(tmp_path / "b", corpus, queries, encoders, negatives_per_query=4)
    for path in sorted((tmp_path / "a" / "mine").iterdir()):
        again = tmp_path / "b" / "mine" / path.name
        assert path.read_bytes() == again.read_bytes(), path.name
        assert kept.get(path.name, again.stat().st_ino) == again.stat().st_ino


def test_negatives_come_from_all_passages_when_queries_come_from_a_sample(tmp_path):
    """GPL resized the corpus to limit the queries and then mined the resized one: its negatives were easier."""
    config = GenerateConfig(queries_per_passage=1, max_queries=4)
    sampled = generate.plan(40, config, 0).passages
    assert len(sampled) == 4
    asked = GeneratedQueries([f"query {i}" for i in range(4)], sampled)
    found = run(tmp_path, tiny.corpus(40), asked, {"a": tiny.HashEncoder()})
    for query in range(4):
        assert set(found.lists["a"][query].tolist()) == set(range(40)) - {int(sampled[query])}


class ChosenEncoder:
    """Texts that end in a number have the vector of that number, so that scores and ties are chosen."""

    def __init__(self, vectors, fingerprint="chosen"):
        self.vectors, self.fingerprint = np.array(vectors, np.float32), fingerprint
        self.dim = self.vectors.shape[1]

    def encode(self, texts, *, kind, batch_size, progress):
        return np.ascontiguousarray(self.vectors[[int(text.split()[-1]) for text in texts]])


def best(scores, groups, own, top):
    """The rank of each own passage by sorting all of the corpus, written down as simply as can be."""
    passed = []
    for values, passage in zip(scores, own, strict=True):
        others = [row for row in range(len(values)) if groups[row] != groups[passage] or row == passage]
        order = sorted((row for row in others if not math.isnan(values[row])), key=lambda row: (-values[row], row))
        passed.append(passage in order[:top])
    return np.array(passed)


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("duplicates", [True, False])
@pytest.mark.parametrize("top", [1, 2, 3, 7, 30, 60])
def test_the_round_trip_is_the_rank_in_a_search_of_everything(tmp_path, metric, duplicates, top):
    """Vectors of few small whole numbers (many exact ties), zero rows, an infinite row; texts that occur twice."""
    draw = np.random.default_rng(3)
    vectors = draw.integers(-1, 2, (45, 3)).astype(np.float32)
    vectors[[4, 9]] = 0
    vectors[5] = np.inf
    numbers = np.concatenate([np.arange(40), [0, 7, 7]])  # passages 40, 41 and 42 repeat texts and vectors
    corpus = load_corpus([f"passage {number}" for number in numbers])
    own = draw.integers(0, 43, 25)
    near = np.where(np.arange(25) % 2, numbers[own], draw.integers(0, 45, 25))  # every second is its passage's vector
    asked = GeneratedQueries([f"query {number}" for number in near], own)
    encoders = {"a": ChosenEncoder(vectors), "b": ChosenEncoder(-vectors[::-1], "other")}
    found = run(
        tmp_path,
        corpus,
        asked,
        encoders,
        negatives_per_query=5,
        metrics=(metric,),
        exclude_duplicates=duplicates,
        round_trip_top=top,
    )
    passed = np.zeros(25, bool)
    groups = numbers if duplicates else np.arange(43)
    for encoder in encoders.values():
        options = {"kind": "query", "batch_size": 8, "progress": None}
        queries, docs = encoder.encode(asked.texts, **options), encoder.encode(corpus.texts(), **options)
        hits = dense.search(queries, docs, 43, metric=metric)  # scores of all pairs, as the search has them
        scores = np.full((25, 43), np.nan, np.float32)
        for row in range(25):
            there = hits.ids[row] >= 0
            scores[row, hits.ids[row][there]] = hits.scores[row][there]
        np.testing.assert_array_equal(
            dense.pair_scores(queries, docs, single(own), metric=metric), scores[np.arange(25), own]
        )
        passed |= best(scores, groups, own, top)
    unfiltered = run(
        tmp_path / "all",
        corpus,
        asked,
        encoders,
        negatives_per_query=5,
        metrics=(metric,),
        exclude_duplicates=duplicates,
    )
    for name, ranked in found.lists.items():
        for query in range(25):
            expected = unfiltered.lists[name][query].tolist() if passed[query] else []
            assert ranked[query].tolist() == expected, (name, query)
    counts = Manifest.read(tmp_path / "mine").counts
    assert counts["queries dropped by round trip"] == (~passed).sum()
    n_lists = sum(np.diff(ranked.indptr) > 0 for ranked in unfiltered.lists.values())
    assert counts["queries without negatives"] == (passed & (n_lists == 0)).sum()
    if top < 30:
        assert 0 < passed.sum() < 25  # the case is neither empty nor trivial


@pytest.mark.parametrize("top", [1, 3, 12])
def test_the_round_trip_of_bm25_needs_a_common_word(tmp_path, top):
    texts = ["cell energy", "energy law", "cell energy law", "law", "mountain", "energy cell", "", "law energy"] * 2
    corpus = load_corpus([f"{text} {number}" for number, text in enumerate(texts)])
    asked = GeneratedQueries(
        ["energy", "energy", "mountain", "cell", "law law", "unknown", "the", "energy cell"],
        np.array([15, 1, 3, 0, 11, 2, 4, 13]),
    )
    found = run(tmp_path, corpus, asked, {"bm25": None}, negatives_per_query=4, round_trip_top=top)
    index = Bm25(corpus.texts())
    scores = np.stack([np.full(16, np.nan, np.float32)] * 8)
    for number, hits in enumerate(index.search(asked.texts, 16).ids):
        for row in hits[hits >= 0]:
            scores[number, row] = index.pair_scores([asked.texts[number]], single(np.array([row])))[0]
    hits = index.search(asked.texts, 16)
    for number in range(8):
        there = hits.ids[number] >= 0
        np.testing.assert_array_equal(scores[number, hits.ids[number][there]], hits.scores[number][there])
    passed = best(scores, np.arange(16), asked.passages, top)
    assert [len(found.lists["bm25"][query]) > 0 for query in range(8)] == passed.tolist()
    assert not passed[[2, 5, 6]].any()
    assert np.isnan(index.pair_scores(["mountain", "the", ""], single(np.array([3, 4, 0])))).all()


def test_the_round_trip_by_hand():
    """Two others each; the own passage is row 5."""
    inf, nan = np.inf, np.nan
    cases = [
        ([3, 2], [8, 9], 2.5, True),  # ahead of the second
        ([3, 2], [8, 9], 2, True),  # a tie with a later row
        ([3, 2], [8, 4], 2, False),  # a tie with an earlier one
        ([3, 2], [8, 9], 1, False),
        ([3, -inf], [8, -1], -7, True),  # there is but one other
        ([3, -inf], [8, -1], -inf, True),
        ([3, -inf], [8, -1], nan, False),  # a passage without a score is never found
    ]
    scores, ids, own, expected = zip(*cases, strict=True)
    others, rows = Ranking(np.array(scores, np.float32), np.array(ids)), np.full(len(cases), 5)
    for top in (2, 9):
        assert returns(others, np.array(own, np.float32), rows, top).tolist() == list(expected)
    assert not returns(others, np.array(own, np.float32), rows, 1).any()


def test_a_killed_run_with_a_round_trip_counts_the_same(tmp_path, queries, monkeypatch):
    monkeypatch.setattr(mine, "SHARD_QUERIES", 5)
    corpus, encoders = tiny.corpus(30), {"a": tiny.HashEncoder(), "bm25": None}
    run(tmp_path / "a", corpus, queries, encoders, negatives_per_query=4, round_trip_top=9)
    run(tmp_path / "b", corpus, queries, encoders, negatives_per_query=4, round_trip_top=9)
    (tmp_path / "b" / "mine" / "manifest.json").unlink()
    (tmp_path / "b" / "mine" / "shard-00001.parquet").unlink()
    run(tmp_path / "b", corpus, queries, encoders, negatives_per_query=4, round_trip_top=9)
    for path in sorted((tmp_path / "a" / "mine").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / "mine" / path.name).read_bytes(), path.name
    assert 0 < Manifest.read(tmp_path / "b" / "mine").counts["queries dropped by round trip"] < 12


def labelled(texts, positives):
    indptr = np.concatenate([[0], np.cumsum([len(rows) for rows in positives])]).astype(np.int64)
    ids = [f"q{number}" for number in range(len(texts))]
    return LabelledQueries(ids, texts, indptr, np.array([row for rows in positives for row in rows], np.int64))


def test_labelled_queries_have_all_their_positives_excluded(tmp_path):
    texts = [*tiny.texts(30), tiny.texts(30)[4]]  # passage 30 repeats passage 4
    asked = labelled(["first query", "second query", "third query"], [[4, 7, 9], [], [12]])
    found = run(tmp_path, load_corpus(texts), asked, {"a": tiny.HashEncoder(), "bm25": None}, negatives_per_query=31)
    assert set(found.lists["a"][0].tolist()) == set(range(30)) - {4, 7, 9}
    assert set(found.lists["a"][1].tolist()) == set(range(31))
    assert set(found.lists["a"][2].tolist()) == set(range(31)) - {12}
    assert not set(found.lists["bm25"][0].tolist()) & {4, 7, 9, 30}


def test_a_labelled_query_returns_when_one_of_its_positives_does(tmp_path):
    """Cosines by hand: passages at 0, 10, 20, ... degrees, queries at 0 degrees; positives do not compete."""
    angles = np.deg2rad(np.arange(0, 90, 10))
    encoder = ChosenEncoder(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    corpus = load_corpus([f"passage {number}" for number in range(9)])
    asked = labelled([f"query {number} 0" for number in range(5)], [[0, 5], [5, 6], [1, 2, 3], [], [2]])
    found = run(tmp_path, corpus, asked, {"a": encoder}, negatives_per_query=3, round_trip_top=2)
    lists = [found.lists["a"][query].tolist() for query in range(5)]
    assert lists == [[1, 2, 3], [], [0, 4, 5], [], []]
    assert Manifest.read(tmp_path / "mine").counts["queries dropped by round trip"] == 3


def test_labelled_queries_must_fit_together():
    with pytest.raises(ShapeError, match="names the same passage twice"):
        labelled(["a", "b", "c", "d"], [[1], [2, 3, 2], [], [3]])
    assert len(labelled(["a", "b", "c", "d"], [[1], [1, 3], [], [3]])) == 4
    assert len(labelled(["a", "b"], [[], []])) == 2
    with pytest.raises(ShapeError, match="2 texts but 1 ids"):
        LabelledQueries(["q"], ["a", "b"], np.zeros(3, np.int64), np.empty(0, np.int64))
    first, second = labelled(["a"], [[1]]), labelled(["a"], [[2]])
    assert first.fingerprint == labelled(["a"], [[1]]).fingerprint != second.fingerprint
