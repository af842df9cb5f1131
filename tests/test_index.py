from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from test_search import EDGE_DIMS, ISAS, assert_hits, pair_of, rows

import gplfast
from gplfast.errors import ArtifactError, ConfigError, DTypeError, LockedError, ShapeError
from gplfast.ops import _core
from gplfast.ops import index as index_module


def built(docs, *, metric="ip", pieces=1, chunk_docs=0):
    """An index of docs, added in pieces, with small chunks where asked."""
    index = gplfast.Index(docs.shape[1], metric)
    index._index = _core.Index(docs.shape[1], metric, chunk_docs=chunk_docs)
    for piece in np.array_split(docs, pieces):
        index.add(np.ascontiguousarray(piece))
    return index


@pytest.fixture
def docs():
    return rows(np.random.default_rng(3), 500, 40, "normal")


@pytest.fixture
def queries(docs):
    return docs[::9] + np.float32(0.1)


def test_hand_example(isa):
    index = gplfast.Index(2)
    assert len(index) == 0
    index.add(np.array([[1, 0], [0, 1]], np.float32))
    index.add(np.array([[1, 1], [-1, 0], [1, 1]], np.float32))
    assert (len(index), index.dim, index.metric) == (5, 2, "ip")
    hits = index.search(np.array([[2, 1]], np.float32), 3)
    np.testing.assert_array_equal(hits.ids, [[2, 4, 0]])
    np.testing.assert_array_equal(hits.scores, np.array([[3, 3, 2]], np.float32))


@given(data=st.data())
def test_equals_reference(data, tmp_path_factory):
    """Whatever the pieces, chunks, types, ranges and instruction sets; from memory and from files."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dim = data.draw(st.sampled_from(EDGE_DIMS))
    n_docs = data.draw(st.integers(0, 150))
    kind = data.draw(st.sampled_from(["normal", "ties", "spread", "special", "narrow"]))
    metric = data.draw(st.sampled_from(["ip", "cosine"]))
    dtype = data.draw(st.sampled_from([np.float32, np.float16]))
    with np.errstate(over="ignore"):
        docs, queries = rows(rng, n_docs, dim, kind).astype(dtype), rows(rng, 5, dim, kind).astype(dtype)
    first, end = sorted(data.draw(st.lists(st.integers(0, n_docs), min_size=2, max_size=2)))
    exclude = [rng.integers(0, max(n_docs, 1), rng.integers(0, 30) if n_docs else 0) for _ in queries]
    k = data.draw(st.sampled_from([1, 7, 200]))
    outside = np.r_[0:first, end:n_docs]
    wide = queries.astype(np.float32), docs.astype(np.float32)
    expected = reference.search(*wide, k, metric=metric, exclude=[np.r_[ids, outside].astype(int) for ids in exclude])
    chunk_docs = data.draw(st.sampled_from([0, 1, 33, 64]))
    pieces = data.draw(st.integers(1, 5))
    if data.draw(st.booleans()):
        _core.set_max_resident_bytes_for_testing(0)  # files count as larger than memory
    try:
        for packed_by in ISAS:
            _core.force_isa(packed_by)
            index = built(docs, metric=metric, pieces=pieces, chunk_docs=chunk_docs)
            path = tmp_path_factory.mktemp("index") / "saved"
            index.save(path)
            for isa in ["", *ISAS]:
                _core.force_isa(isa)
                for found in (index, gplfast.Index.open(path, verify=True)):
                    hits = found.search(queries, k, exclude=exclude, rows=(first, end), threads=2)
                    assert_hits(hits, expected, f"packed by {packed_by}, searched by {isa}")
    finally:
        _core.force_isa("")
        _core.set_max_resident_bytes_for_testing(1 << 30)


def test_one_piece_for_each_row(isa, docs, queries):
    index = built(docs, pieces=len(docs), chunk_docs=48)
    assert_hits(index.search(queries, 20), reference.search(queries, docs, 20))


@pytest.mark.parametrize("splits", [[0, 500], [0, 1, 250, 251, 500], [0, 100, 200, 300, 400, 500]])
def test_parts_merge_to_the_whole(isa, docs, queries, splits):
    index = built(docs, chunk_docs=64)
    exclude = [np.arange(i, 500, 7) for i in range(len(queries))]
    parts = [index.search(queries, 30, exclude=exclude, rows=pair) for pair in itertools.pairwise(splits)]
    assert_hits(gplfast.merge_hits(parts, 30), index.search(queries, 30, exclude=exclude))
    assert_hits(gplfast.merge_hits(parts, 3), index.search(queries, 3, exclude=exclude))


def test_merged_padding_is_last():
    low = np.float32(-np.inf)
    parts = [
        gplfast.Hits(np.array([[1, low]], np.float32), np.array([[4, -1]])),
        gplfast.Hits(np.array([[1, low]], np.float32), np.array([[2, 9]])),
    ]
    merged = gplfast.merge_hits(parts, 2)
    np.testing.assert_array_equal(merged.ids, [[2, 4]])
    wide = gplfast.merge_hits([gplfast.Hits(*(np.repeat(a, 2, axis=1)[:, [0, 2]] for a in part)) for part in parts], 2)
    np.testing.assert_array_equal(wide.ids, [[2, 4]])
    with pytest.raises(ShapeError, match=r"at least k=3 columns"):
        gplfast.merge_hits(parts, 3)


def test_bytes_of_a_file_serve_every_instruction_set(tmp_path, docs, queries):
    """A file that one machine packed is searched on another; without packed documents the rows alone do."""
    try:
        for isa in ISAS:
            _core.force_isa(isa)
            built(docs, metric="cosine", chunk_docs=100).save(tmp_path / isa)
    finally:
        _core.force_isa("")
    expected = reference.search(queries, docs, 10, metric="cosine")
    for isa in ISAS:
        assert_hits(gplfast.Index.open(tmp_path / isa).search(queries, 10), expected, isa)
    assert (tmp_path / "scalar" / "packed.bin").stat().st_size == 0


def test_float16_rows_are_exact(isa):
    """All float16 numbers, subnormal ones too, score as their float32 equals."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = np.ascontiguousarray(np.where(np.isnan(halves), np.float16(1), halves).reshape(-1, 1))
    halves = halves[np.isfinite(halves[:, 0])]
    one = np.ones((1, 1), np.float32)
    found = gplfast.search(one, halves, len(halves))
    order = np.lexsort((np.arange(len(halves)), -halves[:, 0].astype(np.float64)))
    np.testing.assert_array_equal(found.ids[0], order)
    np.testing.assert_array_equal(found.scores[0], halves[order, 0].astype(np.float32))
    wide = np.repeat(halves, 19, axis=1)[:500]  # whole vectors and a rest
    np.testing.assert_array_equal(
        gplfast.search(wide, wide, 9).scores, gplfast.search(wide.astype(np.float32), wide.astype(np.float32), 9).scores
    )


def test_adds_nothing_when_it_fails(isa, docs):
    index = built(docs)
    with pytest.raises(ShapeError, match=r"Index.add: docs has dim=3 but the index has dim=40"):
        index.add(np.zeros((2, 3), np.float32))
    with pytest.raises(DTypeError, match=r"docs has dtype float16 but the index has float32"):
        index.add(docs.astype(np.float16))
    with pytest.raises(DTypeError, match=r"docs has dtype float64"):
        gplfast.Index(40).add(docs.astype(np.float64))
    with pytest.raises(DTypeError, match=r"docs is a builtins.list"):
        index.add([[1.0]])
    assert len(index) == len(docs)


def test_search_names_what_does_not_fit(docs, queries):
    index = built(docs)
    with pytest.raises(ShapeError, match=r"queries has dim=39 but the index has dim=40"):
        index.search(np.ascontiguousarray(queries[:, :39]), 3)
    with pytest.raises(ShapeError, match=r"rows is \(3, 501\) but the index has 500 rows"):
        index.search(queries, 3, rows=(3, 501))
    with pytest.raises(ShapeError, match=r"Index.search: exclude of query 0 has id 500"):
        index.search(queries[:1], 3, exclude=[np.array([500])])
    with pytest.raises(ConfigError, match=r"Index: dim is 0"):
        gplfast.Index(0)
    with pytest.raises(ConfigError, match=r"metric is 'l2'"):
        gplfast.Index(4, "l2")


def test_empty(tmp_path, queries):
    index = gplfast.Index(40)
    index.add(np.empty((0, 40), np.float32))
    index.save(tmp_path / "empty")
    for found in (index, gplfast.Index.open(tmp_path / "empty")):
        assert len(found) == 0
        np.testing.assert_array_equal(found.search(queries, 2).ids, np.full((len(queries), 2), -1))


def test_opened_is_only_read(tmp_path, docs):
    built(docs).save(tmp_path / "i")
    index = gplfast.Index.open(tmp_path / "i")
    with pytest.raises(ConfigError, match=r"is only read"):
        index.add(docs)
    index.save(tmp_path / "copy")
    for name in ("rows.npy", "packed.bin", "index.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "i" / name).read_bytes()
    with pytest.raises(ConfigError, match=r"copy exists"):
        index.save(tmp_path / "copy")


@pytest.fixture
def saved(tmp_path, docs):
    built(docs, chunk_docs=100).save(tmp_path / "saved")
    return tmp_path / "saved"


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.skipif("avx512_vnni" not in ISAS, reason="only an integer scan packs documents")
def test_damaged_packed_documents_are_noticed(saved, queries):
    place = (saved / "packed.bin").stat().st_size // 2
    flip(saved / "packed.bin", place)
    index = gplfast.Index.open(saved)
    with pytest.raises(ArtifactError, match=r"packed documents 200 and following are damaged"):
        index.search(queries, 3)
    assert index.search(queries, 3, rows=(0, 200)).ids.max() < 200  # the others are whole


def test_damaged_rows_are_noticed_when_asked(saved):
    flip(saved / "rows.npy", 5000)
    gplfast.Index.open(saved)
    with pytest.raises(ArtifactError, match=r"rows.npy is not what was saved"):
        gplfast.Index.open(saved, verify=True)


@pytest.mark.parametrize("name", ["rows.npy", "packed.bin"])
@pytest.mark.parametrize("n_left", [0, -1])
def test_truncated_files_are_noticed(saved, name, n_left):
    if not (saved / name).stat().st_size:
        pytest.skip("nothing was packed on this machine")
    with (saved / name).open("r+b") as file:
        file.truncate(n_left % (saved / name).stat().st_size)
    with pytest.raises(ArtifactError, match=r"save the index again"):
        gplfast.Index.open(saved)


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"n_docs": 499}, {"dim": 41}, {"mean": [0.5] * 39}, {"chunk_hashes": ["x"]}, {"metric": "l2"}],
    ids=lambda change: next(iter(change)),
)
def test_damaged_record_is_noticed(saved, change):
    write_record(saved, {**json.loads((saved / "index.json").read_text()), **change})
    with pytest.raises(ArtifactError):
        gplfast.Index.open(saved)
    (saved / "index.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"not JSON"):
        gplfast.Index.open(saved)


def write_record(saved, record):
    """With the hash that belongs to it."""
    rest = {name: value for name, value in record.items() if name != "record_sha256"}
    record = {**rest, "record_sha256": index_module._sha256_of_record(rest)}
    (saved / "index.json").write_text(json.dumps(record))


@pytest.mark.parametrize("name", ["mean", "metric", "rows_sha256"])
def test_a_record_with_another_value_is_noticed(saved, name):
    """Values that would do: a wrong mean makes wrong bounds, and those wrong answers."""
    record = json.loads((saved / "index.json").read_text())
    value = {"mean": [0.5] * 40, "metric": "cosine", "rows_sha256": "0" * 64}[name]
    (saved / "index.json").write_text(json.dumps({**record, name: value}))
    with pytest.raises(ArtifactError, match=r"index.json is not what was saved"):
        gplfast.Index.open(saved)
    write_record(saved, record)
    gplfast.Index.open(saved)


def test_missing_index(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no index in"):
        gplfast.Index.open(tmp_path)


def test_killed_save_leaves_nothing_that_opens(tmp_path, docs):
    """A save that is killed before its rename is no index, and the next save takes its place."""
    code = (
        "import os, sys, numpy as np, gplfast, gplfast.ops.index as m\n"
        "m.write_json = lambda *_: os._exit(9)\n"
        "index = gplfast.Index(4); index.add(np.ones((9, 4), np.float32)); index.save(sys.argv[1])"
    )
    path = tmp_path / "i"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert not path.exists()
    built(docs).save(path)
    assert len(gplfast.Index.open(path)) == len(docs)
    assert [entry.name for entry in tmp_path.iterdir()] == ["i"]


def test_one_save_at_a_time(tmp_path, docs, monkeypatch):
    """A second save to the same path does not touch what the first is writing."""
    path, first, second = tmp_path / "i", built(docs), built(-docs)
    write_packed = first._write_packed

    def write_packed_beside_another(file):
        with pytest.raises(LockedError, match=r"is being saved by somebody else"):
            second.save(path)
        return write_packed(file)

    monkeypatch.setattr(first, "_write_packed", write_packed_beside_another)
    first.save(path)
    assert_hits(gplfast.Index.open(path, verify=True).search(docs[:3], 5), first.search(docs[:3], 5))
    assert [entry.name for entry in tmp_path.iterdir()] == ["i"]


def test_a_failed_save_leaves_nothing(tmp_path, docs, monkeypatch):
    index = built(docs)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index, "_write_packed", full)
    with pytest.raises(OSError, match=r"No space left on device.*/i'"):
        index.save(tmp_path / "i")
    assert list(tmp_path.iterdir()) == []


def test_additions_wait_for_a_save(tmp_path, docs, monkeypatch):
    index = built(docs, chunk_docs=64)
    adding = threading.Thread(target=index.add, args=(docs,))
    write_packed = index._write_packed

    def write_packed_while_another_adds(file):
        adding.start()
        adding.join(0.2)
        assert adding.is_alive()
        return write_packed(file)

    monkeypatch.setattr(index, "_write_packed", write_packed_while_another_adds)
    index.save(tmp_path / "i")
    adding.join()
    assert len(index) == 2 * len(docs)
    found = gplfast.Index.open(tmp_path / "i", verify=True)
    assert_hits(found.search(docs[:3], 5), gplfast.search(docs[:3], docs, 5))


def test_one_type_whichever_thread_adds_first(docs):
    for _ in range(20):
        index, start, errors = gplfast.Index(40), threading.Barrier(2), []

        def add(rows, index=index, start=start, errors=errors):
            start.wait()
            try:
                index.add(rows)
            except DTypeError as error:
                errors.append(error)

        threads = [threading.Thread(target=add, args=(rows,)) for rows in (docs, docs.astype(np.float16))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(index), len(errors)) == (len(docs), 1)


def test_rows_are_not_changed_and_not_copied(docs, queries):
    before = docs.copy()
    index = built(docs)
    index.search(queries, 5)
    np.testing.assert_array_equal(docs, before)
    assert np.shares_memory(index._index.pieces()[0], docs)


def test_threads_share_an_index(docs, queries):
    """Searches run side by side; an addition waits for them."""
    from concurrent.futures import ThreadPoolExecutor

    index = gplfast.Index(40)
    with ThreadPoolExecutor(4) as pool:
        futures = []
        for piece in np.array_split(docs, 10):
            futures.append(pool.submit(index.add, np.ascontiguousarray(piece)))
            futures.extend(pool.submit(index.search, queries, 4) for _ in range(3))
        for future in futures:
            future.result()
    assert len(index) == len(docs)


def test_pair_form_of_exclude(docs, queries):
    exclude = [np.arange(50)] * len(queries)
    index = built(docs)
    assert_hits(index.search(queries, 5, exclude=pair_of(exclude)), index.search(queries, 5, exclude=exclude))
