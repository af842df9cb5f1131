from __future__ import annotations

import numpy as np
import pytest
import tiny

from gplfast.config import GenerateConfig, MineConfig
from gplfast.mining import dense
from gplfast.stages import generate, mine
from gplfast.store.corpus import load_corpus
from gplfast.store.generated import GeneratedQueries
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
