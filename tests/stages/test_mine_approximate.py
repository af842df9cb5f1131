"""FAISS as a source of candidates, against the exact search."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tiny

from gplfast import preflight
from gplfast.config import MineConfig
from gplfast.errors import ArtifactError, MissingExtraError
from gplfast.mining import dense
from gplfast.mining.approximate import Approximate
from gplfast.mining.lists import from_sequences
from gplfast.stages import mine
from gplfast.store.generated import GeneratedQueries
from gplfast.store.manifest import Manifest
from gplfast.store.shards import ShardSet

pytest.importorskip("faiss", reason="the extra faiss is not installed")
KINDS = pytest.mark.parametrize("kind", ["faiss-hnsw", "faiss-ivf"])


@pytest.fixture(scope="module")
def vectors():
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((40, 24))
    docs = (centres[draw.integers(0, 40, 3000)] + 0.6 * draw.standard_normal((3000, 24))) * draw.uniform(
        1, 3, (3000, 1)
    )
    queries = centres[draw.integers(0, 40, 150)] + 0.6 * draw.standard_normal((150, 24))
    return queries.astype(np.float32), docs.astype(np.float32)


@KINDS
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_it_finds_nearly_what_the_exact_search_finds_and_scores_it_the_same(tmp_path, vectors, kind, metric):
    queries, docs = vectors
    exact = dense.search(queries, docs, 10, metric=metric)
    exclude = from_sequences([row[: number % 4] for number, row in enumerate(exact.ids)])
    exact = dense.search(queries, docs, 10, metric=metric, exclude=exclude)
    index = Approximate(docs, tmp_path / "index", kind=kind, metric=metric, nprobe=16, threads=2)
    found = index.search(queries, 10, exclude)
    shared = 0
    for number in range(150):
        rows, scores = found.ids[number], found.scores[number]
        assert len(set(rows.tolist())) == 10
        assert not set(rows.tolist()) & set(exclude.list(number).tolist())
        order = sorted(zip(-scores, rows, strict=True))
        assert order == list(zip(-scores, rows, strict=True))
        both = np.isin(rows, exact.ids[number])
        shared += both.sum()
        for row, score in zip(rows[both], scores[both], strict=True):
            assert score == exact.scores[number][exact.ids[number] == row][0]  # to the bit
    assert shared / 1500 > 0.9
    recall = index.recall(lambda rows: queries[rows], 150, 10, exclude)
    assert abs(recall - shared / 1500) < 0.05


@KINDS
def test_a_long_exclusion_of_one_query_is_no_work_for_the_others(tmp_path, vectors, kind, monkeypatch):
    queries, docs = vectors
    index = Approximate(docs, tmp_path / "index", kind=kind, metric="dot", nprobe=4)
    lists = [np.arange(number % 3) for number in range(150)]
    usual = index.search(queries, 10, from_sequences(lists))
    fetched, real = [], Approximate._fetch

    def fetch(self, part, k, effort):
        fetched.append((len(part), k))
        return real(self, part, k, effort)

    monkeypatch.setattr(Approximate, "_fetch", fetch)
    lists[7] = np.arange(1500)
    found = index.search(queries, 10, from_sequences(lists))
    assert {n for n, k in fetched if k > 12} == {1}
    assert (found.ids[7] >= 1500).all()
    others = np.delete(np.arange(150), 7)
    np.testing.assert_array_equal(found.ids[others], usual.ids[others])
    np.testing.assert_array_equal(found.scores[others], usual.scores[others])


@KINDS
def test_recall_is_measured_and_not_assumed(tmp_path, vectors, kind, monkeypatch):
    """An index that looks at little finds little: one of the lists, or a graph of almost no effort."""
    queries, docs = vectors
    monkeypatch.setattr("gplfast.mining.approximate.EF_SEARCH", 1)
    monkeypatch.setattr("gplfast.mining.approximate.M", 2)
    monkeypatch.setattr("gplfast.mining.approximate.EF_CONSTRUCTION", 2)
    index = Approximate(docs, tmp_path / "index", kind=kind, metric="cosine", nprobe=1)
    nothing = from_sequences([[]] * 150)
    recall = index.recall(lambda rows: queries[rows], 150, 60, nothing)
    rows = np.sort(np.argsort(mine_words(150), kind="stable")[:100])
    found, exact = index.search(queries[rows], 60), dense.search(queries[rows], docs, 60, metric="cosine")
    both = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(found.ids, exact.ids, strict=True))
    assert recall == both / 6000
    assert 0.05 < recall < 0.95


def mine_words(n):
    from gplfast.mining.sampling import words

    return words(0, "recall", 0, n)


@KINDS
@pytest.mark.parametrize("n_docs", [1, 2, 30])
def test_k_survive_whatever_is_excluded(tmp_path, kind, n_docs):
    """Of 30 passages 25 are excluded, or all; more is asked for than there is; some rows have no direction."""
    draw = np.random.default_rng(1)
    docs = draw.standard_normal((n_docs, 8)).astype(np.float32)
    if n_docs == 30:
        docs[[3, 4]] = docs[5]
        docs[6], docs[7] = 0, np.inf
    queries = draw.standard_normal((4, 8)).astype(np.float32)
    queries[3] = np.nan
    exclude = from_sequences([range(n_docs - n_docs // 6), [], range(n_docs), []])
    index = Approximate(docs, tmp_path / "index", kind=kind, metric="cosine", nprobe=1)
    for k in (1, 5, 29, 40):
        found, exact = (
            index.search(queries, k, exclude),
            dense.search(queries, docs, k, metric="cosine", exclude=exclude),
        )
        assert ((found.ids >= 0).sum(axis=1) == (exact.ids >= 0).sum(axis=1)).all()
        if k >= 29:
            np.testing.assert_array_equal(found.ids, exact.ids)
            np.testing.assert_array_equal(found.scores, exact.scores)
        assert not np.isin(found.ids[0][found.ids[0] >= 0], exclude.list(0)).any()


def run(folder, encoder, *, threads=1, **options):
    corpus = tiny.corpus(80)
    queries = GeneratedQueries([f"the query {i} of it" for i in range(12)], np.arange(12, dtype=np.int64) % 5)
    config = MineConfig(retrievers=("a",), **{"negatives_per_query": 6, **options})
    wanted = mine.manifest({"corpus": corpus.fingerprint, "queries": "q"}, {"a": encoder.fingerprint}, config)
    openers, embeddings = {"a": lambda: encoder}, folder / "embeddings"
    return mine.mine(
        corpus, queries, folder / "mine", wanted, config, encoders=openers, embeddings=embeddings, threads=threads
    )


@KINDS
def test_mining_counts_its_recall(tmp_path, kind, caplog):
    caplog.set_level("INFO", logger="gplfast")
    found = run(tmp_path / "a", tiny.HashEncoder(), search=kind)
    assert np.diff(found.lists["a"].indptr).tolist() == [6] * 12
    counts = Manifest.read(tmp_path / "a" / "mine").counts
    exact = run(tmp_path / "b", tiny.HashEncoder())
    both = sum(len(set(found.lists["a"][i].tolist()) & set(exact.lists["a"][i].tolist())) for i in range(12))
    assert counts["recall@6 a, per mille"] == round(1000 * both / 72)
    assert f"a: {kind} finds {both / 72:.3f} of the exact 6 best" in caplog.text
    assert not any("recall" in name for name in Manifest.read(tmp_path / "b" / "mine").counts)


@KINDS
def test_a_killed_run_goes_on_with_the_same_index(tmp_path, kind, monkeypatch):
    """HNSW built again by several threads would be another index: bytes are those of one run because it is kept."""
    monkeypatch.setattr(mine, "SHARD_QUERIES", 5)
    with monkeypatch.context() as patch:
        real, written = ShardSet.write, []

        def dying(self, shard, table):
            if written:
                raise KeyboardInterrupt
            real(self, shard, table)
            written.append(shard)

        patch.setattr(ShardSet, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, tiny.HashEncoder(), search=kind, threads=2)
    [file] = (tmp_path / "embeddings").glob(f"*.{kind}")
    before = file.stat().st_ino
    run(tmp_path, tiny.HashEncoder(), search=kind, threads=2)
    assert file.stat().st_ino == before
    bytes_of = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    for path in (tmp_path / "mine").iterdir():
        path.unlink()
    run(tmp_path, tiny.HashEncoder(), search=kind, threads=1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == bytes_of


def test_a_damaged_index_is_named(tmp_path, vectors):
    docs = vectors[1]
    Approximate(docs, tmp_path / "index", kind="faiss-ivf", metric="dot")
    with pytest.raises(ArtifactError, match=r"holds \(3000, 24\) but the documents are \(10, 24\)"):
        Approximate(docs[:10], tmp_path / "index", kind="faiss-ivf", metric="dot")
    (tmp_path / "index").write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match="index: it is damaged; delete it"):
        Approximate(docs, tmp_path / "index", kind="faiss-ivf", metric="dot")


def test_without_faiss_the_extra_is_named(tmp_path, vectors, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gplfast\[faiss\]'"):
        Approximate(vectors[1], tmp_path / "index", kind="faiss-hnsw", metric="dot")


def test_a_missing_faiss_is_said_before_the_run(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"approximate search needs faiss.*gplfast\[faiss\]"):
        preflight.require(["approximate search"])


def test_ivf_searches_on_a_gpu_where_there_is_one(tmp_path, vectors, monkeypatch):
    """There is none here: FAISS' own calls are replaced, and the index stays what it was."""
    import faiss

    moved = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda *given: moved.append(given[:2]) or given[2], raising=False)
    queries, docs = vectors
    index = Approximate(docs, tmp_path / "ivf", kind="faiss-ivf", metric="dot", nprobe=4)
    assert moved == [("resources", 0)]
    assert (index.search(queries, 3).ids >= 0).all()
    Approximate(docs, tmp_path / "hnsw", kind="faiss-hnsw", metric="dot")
    assert len(moved) == 1
