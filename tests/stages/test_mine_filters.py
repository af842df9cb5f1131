from __future__ import annotations

import json

import numpy as np
import pytest
import tiny

from gplfast.config import FilterConfig, LabelConfig, MineConfig, load_config
from gplfast.errors import ConfigError
from gplfast.mining import dense, filtering
from gplfast.mining.audit import AUDIT_FILE, audit, sample
from gplfast.mining.filtering import Asked
from gplfast.mining.lists import Lists, from_sequences
from gplfast.mining.scoring import PairScorer
from gplfast.pipeline import Pipeline
from gplfast.stages import mine
from gplfast.store.generated import GeneratedQueries
from gplfast.store.labelled import LabelledQueries
from gplfast.store.manifest import Manifest, freshness
from gplfast.store.negatives import Negatives, RankedLists
from gplfast.store.scores import ScoreStore
from gplfast.store.shards import ShardSet


class NumberTeacher:
    """A teacher without a model: a logit that follows from the two texts; remembers what it was asked."""

    fingerprint = "numbers"

    def __init__(self):
        self.asked = []

    def score(self, queries, docs, *, batch_size, activation, progress):
        self.asked += list(zip(queries, docs, strict=True))
        return np.array([_logit(query, doc) for query, doc in zip(queries, docs, strict=True)], np.float32)

    def cut(self, texts, max_tokens):
        return list(texts)


def _logit(query, doc):
    return float(np.random.default_rng(list(f"{query}|{doc}".encode())).normal() * 3)


def asked(folder, teacher, config):
    scorer = PairScorer(lambda name: ScoreStore(folder, name), lambda: teacher, max_tokens=9, activation="identity")
    return Asked(config, scorer, reader={"fingerprint": teacher.fingerprint})


def run(folder, corpus, queries, config, *, teacher=None, options=None, encoders=None):
    encoders = encoders or {"a": tiny.HashEncoder("a"), "bm25": None}
    mining = MineConfig(retrievers=tuple(encoders), **{"negatives_per_query": 4, **(options or {})})
    teacher = teacher or NumberTeacher()
    identity = filtering.identity(config, LabelConfig(), lambda: teacher.fingerprint)
    fingerprints = {name: "bm25" if encoder is None else encoder.fingerprint for name, encoder in encoders.items()}
    wanted = mine.manifest({"corpus": corpus.fingerprint, "queries": "q"}, fingerprints, mining, 0, identity)
    openers = {name: encoder and (lambda encoder=encoder: encoder) for name, encoder in encoders.items()}
    return mine.mine(
        corpus,
        queries,
        folder / "mine",
        wanted,
        mining,
        encoders=openers,
        embeddings=folder / "embeddings",
        threads=1,
        filters=asked(folder / "scores", teacher, config),
    )


@pytest.fixture
def queries():
    return GeneratedQueries([f"the query {i} of it" for i in range(12)], np.arange(12, dtype=np.int64) % 5)


def counts(folder):
    return Manifest.read(folder / "mine").counts


def test_the_best_that_survive_are_kept_and_all_is_counted(tmp_path, queries):
    corpus, teacher = tiny.corpus(60), NumberTeacher()
    config = FilterConfig(denoise=0.5, teacher_margin=0.1)
    found = run(tmp_path, corpus, queries, config, teacher=teacher)
    everything = run(tmp_path / "all", corpus, queries, FilterConfig(), options={"negatives_per_query": 16})
    texts, n_seen, n_short = corpus.texts(), 0, 0
    for name, ranked in found.lists.items():
        for query, passage in enumerate(queries.passages):
            limit = _logit(queries.texts[query], texts[passage])
            offered = everything.lists[name][query].tolist()
            scores = {row: _logit(queries.texts[query], texts[row]) for row in offered}
            passed = [row for row in offered if scores[row] <= 0 and limit - scores[row] > 0.1]
            assert ranked[query].tolist() == passed[:4], (name, query)
            n_seen, n_short = n_seen + len(offered), n_short + (len(passed) < 4)
    made = counts(tmp_path)
    dropped = sum(n for name, n in made.items() if name.startswith("dropped, "))
    kept = sum(n for name, n in made.items() if name.startswith("negatives "))
    assert made["candidates"] == n_seen == dropped + kept
    assert made["lists with fewer"] == n_short
    assert min(made["dropped, denoise"], made["dropped, teacher margin"], made["dropped, not needed"]) > 0
    assert len(set(teacher.asked)) == len(teacher.asked)  # each pair once, though both retrievers found some
    assert {"candidates", "lists with fewer"} & counts(tmp_path / "all").keys() == set()


def test_without_filters_nothing_changes(tmp_path, queries):
    """The manifest, and so its key, is what it was before there were filters."""
    corpus, config = tiny.corpus(30), MineConfig(retrievers=("bm25",))
    wanted = mine.manifest({"corpus": "c", "queries": "q"}, {"bm25": "bm25"}, config)
    off = filtering.identity(FilterConfig(scored=("a",), audit=5), LabelConfig(), lambda: "t")
    assert off == {}
    assert mine.manifest({"corpus": "c", "queries": "q"}, {"bm25": "bm25"}, config, 0, off).key == wanted.key
    assert "filter" not in wanted.config
    run(tmp_path, corpus, queries, FilterConfig())
    assert "candidates" not in counts(tmp_path)


def test_a_changed_filter_makes_the_negatives_stale(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("def keep(scores):\n    return scores > 0\n")
    label, config = LabelConfig(), MineConfig(retrievers=("bm25",))

    def wanted(filters, label=label, teacher="t"):
        identity = filtering.identity(filters, label, lambda: teacher)
        return mine.manifest({"corpus": "c", "queries": "q"}, {"bm25": "bm25"}, config, 0, identity)

    denoise = wanted(FilterConfig(denoise=0.1))
    shards = ShardSet(tmp_path / "a", denoise)
    shards.missing(0)
    shards.finish({})
    assert freshness(tmp_path / "a", denoise).fresh
    others = {
        "config.filter.denoise is 0.2 but was 0.1": wanted(FilterConfig(denoise=0.2)),
        "config.filter.teacher.fingerprint": wanted(FilterConfig(denoise=0.1), teacher="u"),
        "config.filter.teacher.max_seq_length": wanted(FilterConfig(denoise=0.1), LabelConfig(max_seq_length=64)),
        "config.filter is gone": wanted(FilterConfig()),
        "config.filter.min_score is new": wanted(FilterConfig(denoise=0.1, min_score=0.0)),
    }
    for reason, other in others.items():
        assert reason in freshness(tmp_path / "a", other).reason
    assert freshness(tmp_path / "a", wanted(FilterConfig(denoise=0.1, audit=3))).fresh  # it reads, and changes nothing
    before = wanted(FilterConfig(function=f"{script}:keep")).key
    (tmp_path / "moved").mkdir()
    moved = script.rename(tmp_path / "moved" / "other.py")
    assert wanted(FilterConfig(function=f"{moved}:keep")).key == before
    moved.write_text("def keep(scores):\n    return scores > 1\n")
    assert wanted(FilterConfig(function=f"{moved}:keep")).key != before


def everything_on(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("def keep(scores, positive_scores, ranks):\n    return ranks != 1\n")
    return FilterConfig(
        absolute_margin=-0.3,
        scored=("a",),
        function=f"{script}:keep",
        near_positive=0.8,
        near_negative=0.5,
        denoise=0.9,
        pseudo_positive=0.95,
        audit=6,
    )


def test_a_killed_run_gives_the_same_bytes(tmp_path, queries, monkeypatch):
    monkeypatch.setattr(mine, "SHARD_QUERIES", 5)
    corpus, config = tiny.corpus(60), everything_on(tmp_path)
    encoders = {"a": tiny.HashEncoder("a", dim=4), "bm25": None}
    run(tmp_path / "a", corpus, queries, config, encoders=encoders)
    made = counts(tmp_path / "a")
    for reason in ("absolute margin", "function", "near positive", "pseudo positive", "denoise", "near negative"):
        assert made[f"dropped, {reason}"] > 0, reason
    with monkeypatch.context() as patch:
        real, written = ShardSet.write, []

        def dying(self, shard, table):
            if len(written) == 2:
                raise KeyboardInterrupt
            real(self, shard, table)
            written.append(shard)

        patch.setattr(ShardSet, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", corpus, queries, config, encoders=encoders)
    run(tmp_path / "b", corpus, queries, config, encoders=encoders)
    for path in sorted((tmp_path / "a" / "mine").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / "mine" / path.name).read_bytes(), path.name


def test_pseudo_positives_are_listed(tmp_path, queries):
    corpus = tiny.corpus(60)
    found = run(tmp_path, corpus, queries, FilterConfig(pseudo_positive=0.9))
    table = ShardSet(tmp_path / "mine", Manifest.read(tmp_path / "mine")).table()
    listed = table[filtering.PSEUDO_POSITIVES].to_pylist()
    texts, limit = corpus.texts(), np.log(9.0)
    for query, rows in enumerate(listed):
        assert rows == sorted(set(rows))
        assert all(_logit(queries.texts[query], texts[row]) > limit for row in rows)
        for ranked in found.lists.values():
            assert all(_logit(queries.texts[query], texts[row]) <= limit for row in ranked[query])
    assert sum(map(len, listed)) > 0
    assert found.promoted is None
    promoting = run(tmp_path / "b", corpus, queries, FilterConfig(pseudo_positive=0.9, promote=True)).promoted
    assert [promoting[query].tolist() for query in range(len(queries))] == listed


def test_labelled_queries_with_several_positives_and_none(tmp_path):
    corpus = tiny.corpus(30)
    indptr, rows = np.array([0, 3, 3, 4]), np.array([4, 7, 9, 2])
    queries = LabelledQueries(["x", "y", "z"], ["first query", "second query", "third query"], indptr, rows)
    encoders = {"a": tiny.HashEncoder("a")}
    config = FilterConfig(absolute_margin=-0.4, near_positive=0.3)
    found = run(tmp_path, corpus, queries, config, encoders=encoders, options={"negatives_per_query": 30})
    options = {"kind": "query", "batch_size": 8, "progress": None}
    vectors, docs = encoders["a"].encode(queries.texts, **options), encoders["a"].encode(corpus.texts(), **options)
    hits = dense.search(vectors, docs, 30, metric="cosine")
    units = docs / np.linalg.norm(docs, axis=1, keepdims=True)
    for query in range(3):
        own = rows[indptr[query] : indptr[query + 1]]
        scores = dict(zip(hits.ids[query].tolist(), hits.scores[query].tolist(), strict=True))
        limit = min((scores[row] for row in own), default=np.inf)
        expected = [
            row
            for row in hits.ids[query].tolist()
            if row not in own and scores[row] - 0.4 <= limit and (units[own] @ units[row] <= 0.3).all()
        ]
        assert found.lists["a"][query].tolist() == expected, query
    assert 0 < len(found.lists["a"][0]) < 27


def test_sources_that_nothing_ranked_have_no_limits_of_the_score(tmp_path, queries):
    corpus = tiny.corpus(60)
    options = {"sources": ("a:3", "random:5")}
    encoders = {"a": tiny.HashEncoder("a")}
    found = run(tmp_path, corpus, queries, FilterConfig(max_score=-9.0), options=options, encoders=encoders)
    assert len(found.lists["a"].docs) == 0
    assert np.diff(found.lists["random"].indptr).tolist() == [5] * 12
    found = run(
        tmp_path / "b", corpus, queries, FilterConfig(max_score=-9.0, scored=("b",)), options=options, encoders=encoders
    )
    assert len(found.lists["a"].docs) == 36


def test_limits_are_for_a_column_or_for_all_of_a_retriever(tmp_path, queries):
    corpus, encoders = tiny.corpus(60), {"a": tiny.HashEncoder("a")}
    options = {"sources": ("a:3", "a@10-20:4")}
    for name, lengths in {"a": [0, 0], "a@10-20": [36, 0]}.items():
        config = FilterConfig(max_score=-9.0, scored=(name,))
        found = run(tmp_path / name, corpus, queries, config, options=options, encoders=encoders)
        assert [len(ranked.docs) for ranked in found.lists.values()] == lengths


def test_scored_names_what_there_is(world, tmp_path):
    mining = {"sources": ["dense@2-9:3", "random:2"]}
    column = f"{world.student.name}@2-9"

    def wanted(*scored):
        given = world.settings(mine=mining, filter={"min_score": 0.0, "scored": scored})
        return Pipeline(world.corpus, tmp_path, load_config(overrides=given)).wanted("mine")

    assert wanted(world.student.name, column, "student").config["filter"]["scored"]
    for name in ("minilm", "random", "bm25"):
        with pytest.raises(ConfigError, match=rf"\[filter\] scored names '{name}' but the retrievers of \[mine\] are"):
            wanted(column, name)


def test_embeddings_are_needed_to_compare_them(tmp_path, queries):
    with pytest.raises(ConfigError, match="no source of negatives is a bi-encoder"):
        run(tmp_path, tiny.corpus(20), queries, FilterConfig(near_negative=0.9), encoders={"bm25": None})


def test_probabilities_need_a_named_activation():
    with pytest.raises(ConfigError, match=r"activation is default, which may be one or not"):
        load_config(overrides={"filter": {"denoise": 0.1}, "label": {"activation": "default"}})
    with pytest.raises(ConfigError, match=r"function is 'my_filters.py' but must be file.py:name"):
        load_config(overrides={"filter": {"function": "my_filters.py"}})
    assert load_config(overrides={"filter": {"min_score": None, "max_score": 1}}).filter.max_score == 1.0


# ---- the audit


def test_the_audit_by_hand():
    """Query 0: the positives have 2 and 5; of its negatives 1 and 2 reach the lower, 7 has no score. Query 2: one."""
    table = np.zeros((3, 9), np.float32)
    table[0, :8] = [2, 2, 3, 1.5, -7, 5, 0, np.nan]
    table[2, :4] = [9, -1, 0.5, 9.5]
    positives = from_sequences([[0, 5], [], [0]])
    lists = {
        "a": RankedLists(*from_sequences([[1, 3, 7], [1], [1]])),
        "b": RankedLists(*from_sequences([[2, 1, 4, 6], [], [2, 3]])),
    }
    negatives = Negatives(np.arange(3), lists)
    assert sample(positives, negatives, 9, 0).tolist() == [0, 2]
    found = audit(positives, negatives, np.array([0, 2]), lambda queries, rows: table[queries, rows], logits=True)
    # margins of query 0: 1: 0, 2: -1, 3: 0.5, 4: 9, 6: 2; of query 2: 1: 10, 2: 8.5, 3: -0.5
    assert (found.negatives, found.false_negatives, found.share) == (8, 3, 0.375)
    assert found.edges == [-8, -4, -2, -1, 0, 1, 2, 4, 8]
    assert found.histogram == [0, 0, 0, 1, 2, 1, 1, 0, 0, 3]
    assert found.sources == {"a": [3, 1], "b": [6, 3]}


def test_the_sample_is_drawn_by_counters():
    positives = from_sequences([[0]] * 50)
    negatives = Negatives(np.arange(50), {"a": RankedLists(*from_sequences([[1]] * 50))})
    some = [sample(positives, negatives, 10, seed).tolist() for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert len(set(some[0])) == 10
    assert some[0] == sorted(some[0])
    assert set(some[0]) <= set(sample(positives, negatives, 20, 0).tolist())


def test_an_audit_makes_nothing_stale_and_is_made_once(tmp_path, queries):
    corpus, teacher = tiny.corpus(60), NumberTeacher()
    run(tmp_path, corpus, queries, FilterConfig(), teacher=teacher)
    before = Manifest.read(tmp_path / "mine")
    assert teacher.asked == []
    assert not (tmp_path / "mine" / AUDIT_FILE).exists()
    found = run(tmp_path, corpus, queries, FilterConfig(audit=5), teacher=teacher)
    after = Manifest.read(tmp_path / "mine")
    assert after.key == before.key
    assert after.files == before.files
    n_asked = len(teacher.asked)
    assert n_asked == len(set(teacher.asked)) > 0
    record = json.loads((tmp_path / "mine" / AUDIT_FILE).read_text())
    assert record["queries"] == 5
    assert sum(record["histogram"]) == record["negatives"]
    texts, false, n = corpus.texts(), 0, 0
    union = Lists(*found.union())
    for query in sample(Lists(*queries.positives), found, 5, 0).tolist():
        limit = np.float32(_logit(queries.texts[query], texts[queries.passages[query]]))
        scores = [np.float32(_logit(queries.texts[query], texts[row])) for row in union.list(query)]
        false, n = false + sum(score >= limit for score in scores), n + len(scores)
    assert (after.counts["negatives audited"], after.counts["false negatives among them"]) == (n, false)
    assert 0 < false < n
    run(tmp_path, corpus, queries, FilterConfig(audit=5), teacher=teacher)
    assert len(teacher.asked) == n_asked
    run(tmp_path, corpus, queries, FilterConfig(audit=6), teacher=teacher)
    assert len(teacher.asked) > n_asked


def test_an_audit_is_of_the_negatives_beside_it(tmp_path, queries):
    corpus, teacher = tiny.corpus(60), NumberTeacher()
    run(tmp_path, corpus, queries, FilterConfig(audit=5), teacher=teacher)
    told, n_asked = counts(tmp_path), len(teacher.asked)
    made = Manifest.read(tmp_path / "mine")
    made.with_counts({name: n for name, n in told.items() if "audited" not in name}).write(tmp_path / "mine")
    run(tmp_path, corpus, queries, FilterConfig(audit=5), teacher=teacher)
    assert counts(tmp_path) == told
    assert len(teacher.asked) == n_asked
    run(tmp_path, corpus, queries, FilterConfig(max_score=0.9), teacher=teacher)
    assert not (tmp_path / "mine" / AUDIT_FILE).exists()
    assert "negatives audited" not in counts(tmp_path)


@pytest.mark.parametrize(("source", "low"), [("a", 0), ("a@3-20", 3)])
def test_a_function_sees_candidates_by_their_rank_in_the_search(tmp_path, queries, source, low):
    """Also where candidates are drawn: in rank order, best score first, ranks those of the whole search."""
    pytest.importorskip("numba")
    file = tmp_path / "seen.py"
    file.write_text(
        "import numpy as np\n\n\ndef keep(scores, positive_scores, ranks):\n"
        "    in_order = bool((np.diff(scores) <= 0).all() and (np.diff(ranks) == 1).all())\n"
        f"    return (ranks >= {low + 2}) & (ranks < {low + 6}) & in_order\n"
    )
    corpus, encoders = tiny.corpus(30), {"a": tiny.HashEncoder("a")}
    search = run(
        tmp_path / "w", corpus, queries, FilterConfig(), encoders=encoders, options={"negatives_per_query": 20}
    )
    options = {"sources": (f"{source}:4",), "sampling": "random", "candidates": 20}
    found = run(
        tmp_path / "r", corpus, queries, FilterConfig(function=f"{file}:keep"), encoders=encoders, options=options
    )
    (ranked,), (chosen,) = search.lists.values(), found.lists.values()
    for query in range(len(queries)):
        assert chosen[query].tolist() == ranked[query].tolist()[low + 2 : low + 6]
