"""Mined lists on disk."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gplfast.errors import ArtifactError, DTypeError, ShapeError
from gplfast.store.atomic import write_parquet
from gplfast.store.negatives import Negatives, RankedLists


def padded(lists, k):
    ids = np.full((len(lists), k), -1, np.int64)
    scores = np.full((len(lists), k), -np.inf, np.float32)
    for i, docs in enumerate(lists):
        ids[i, : len(docs)] = docs
        scores[i, : len(docs)] = -np.arange(len(docs))
    return ids, scores


LISTS = st.lists(st.lists(st.integers(0, 30), max_size=6, unique=True), max_size=8)


@settings(max_examples=40)
@given(LISTS, st.data())
def test_round_trip_and_union(tmp_path_factory, first, data):
    second = data.draw(st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=len(first), max_size=len(first)))
    queries = np.arange(len(first), dtype=np.int64) + 5
    made = Negatives.from_padded(queries, {"bm25": padded(first, 6), "a/b": padded(second, 4)})
    path = tmp_path_factory.mktemp("n") / "negatives.parquet"
    made.write(path)
    read = Negatives.read(path, n_queries=len(first) + 5, n_docs=31)
    assert read.retrievers == ["bm25", "a/b"]
    assert read.queries.tolist() == queries.tolist()
    for name, wanted in (("bm25", first), ("a/b", second)):
        assert [read.lists[name][i].tolist() for i in range(len(read))] == wanted
        assert read.lists[name].scores.tolist() == [-float(rank) for docs in wanted for rank in range(len(docs))]
        assert read.lists[name].scores.dtype == np.float32
    indptr, docs = read.union()
    wanted = [sorted({*one, *two}) for one, two in zip(first, second, strict=True)]
    assert [docs[indptr[i] : indptr[i + 1]].tolist() for i in range(len(first))] == wanted


def test_shards_join(tmp_path):
    parts = [Negatives.from_padded(np.array([i], np.int64), {"x": padded([[i, i + 1]], 3)}).table() for i in range(3)]
    joined = Negatives.from_table(pa.concat_tables(parts))
    assert joined.queries.tolist() == [0, 1, 2]
    assert joined.lists["x"][2].tolist() == [2, 3]
    assert Negatives.from_table(parts[1]).lists["x"].docs.tolist() == [1, 2]


def test_lists_without_scores(tmp_path):
    made = Negatives(np.array([0], np.int64), {"x": RankedLists(np.array([0, 2]), np.array([4, 2]))})
    made.write(tmp_path / "n.parquet")
    assert Negatives.read(tmp_path / "n.parquet").lists["x"].scores is None


def test_rows_that_do_not_exist(tmp_path):
    made = Negatives.from_padded(np.array([3], np.int64), {"x": padded([[7]], 2)})
    made.write(tmp_path / "n.parquet")
    with pytest.raises(ArtifactError, match=r"n.parquet: document of 'x' row 7 but there are 7"):
        Negatives.read(tmp_path / "n.parquet", n_docs=7)
    with pytest.raises(ArtifactError, match=r"query row 3 but there are 3; it belongs to another collection"):
        Negatives.read(tmp_path / "n.parquet", n_queries=3)


def test_other_files(tmp_path):
    write_parquet(tmp_path / "n.parquet", pa.table({"query": [1]}))
    with pytest.raises(ArtifactError, match=r"n.parquet does not hold negatives"):
        Negatives.read(tmp_path / "n.parquet")


def test_arrays_that_do_not_fit():
    queries, zero = np.zeros(1, np.int64), np.zeros(2, np.int64)
    with pytest.raises(DTypeError, match="docs is int32"):
        Negatives(queries, {"x": RankedLists(zero, np.zeros(0, np.int32))})
    with pytest.raises(ShapeError, match="indptr has 2 items but 2 queries need 3"):
        Negatives(zero, {"x": RankedLists(zero, np.zeros(0, np.int64))})
    with pytest.raises(ShapeError, match="indptr must rise from 0 to 3"):
        Negatives(queries, {"x": RankedLists(zero, np.zeros(3, np.int64))})
    with pytest.raises(ShapeError, match=r"scores has shape \(1,\)"):
        Negatives(queries, {"x": RankedLists(np.array([0, 2]), np.zeros(2, np.int64), np.zeros(1, np.float32))})
    with pytest.raises(ShapeError, match=r"ids have shape \(1, 2\), scores \(1, 3\)"):
        Negatives.from_padded(queries, {"x": (np.zeros((1, 2), np.int64), np.zeros((1, 3), np.float32))})
