from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

import gplfast
from gplfast.ops import _core


def ids(*values):
    return np.array(values, np.int64)


def pair_of(lists):
    indptr = np.cumsum([0] + [len(part) for part in lists], dtype=np.int64)
    return indptr, np.concatenate([ids(), *lists])


def assert_gram(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[0].dtype == expected[0].dtype
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[1].dtype == np.int64


def test_by_hand(isa):
    docs = np.array([[1, 0], [0, 2], [1, 1]], np.float32)
    half = np.float32(np.sqrt(0.5))
    found = gplfast.gram(docs, [ids(0, 2, 1), ids(), ids(1)])
    np.testing.assert_array_equal(found.values, np.float32([1, half, 0, half, 1, half, 0, half, 1, 1]))
    np.testing.assert_array_equal(found.indptr, [0, 9, 9, 10])
    found = gplfast.gram(docs, [ids(0, 2, 1), ids(), ids(1)], metric="ip", triangle=True)
    np.testing.assert_array_equal(found.values, [1, 0, 2])
    np.testing.assert_array_equal(found.indptr, [0, 3, 3, 3])


@given(st.data())
def test_equals_reference(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n_docs, dim = data.draw(st.integers(1, 40)), data.draw(st.sampled_from([1, 2, 15, 31, 32, 33, 65]))
    docs = rng.standard_normal((n_docs, dim)).astype(np.float32)
    if data.draw(st.booleans()):
        holes = rng.random(docs.shape) < 0.05
        docs[holes] = rng.choice(np.array([np.nan, np.inf, -0.0, 1e30, 1e-40, 300], np.float32), int(holes.sum()))
        docs[rng.random(n_docs) < 0.1] = 0
    lists = [rng.integers(0, n_docs, m) for m in data.draw(st.lists(st.integers(0, 25), max_size=6))]
    metric = data.draw(st.sampled_from(["cosine", "ip"]))
    triangle, dtype = data.draw(st.booleans()), data.draw(st.sampled_from(["float32", "float16"]))
    block_rows = data.draw(st.sampled_from([0, 1, 7]))
    expected = reference.gram(docs, lists, metric=metric, triangle=triangle, dtype=dtype)
    try:
        for isa in _core.available_isas():
            _core.force_isa(isa)
            for threads in (1, 2, 7):
                pair = pair_of(lists)
                found = _core.gram(docs, pair, metric, triangle, dtype, threads, block_rows=block_rows)
                assert_gram(found, expected)
    finally:
        _core.force_isa("")


def test_long_list_is_symmetric_and_what_search_says(isa):
    """More rows than a block has."""
    docs = np.random.default_rng(2).standard_normal((300, 384)).astype(np.float32)
    order = np.random.default_rng(3).permutation(300)
    matrix = gplfast.gram(docs, [order], metric="ip", threads=2).values.reshape(300, 300)
    np.testing.assert_array_equal(matrix, matrix.T)
    hits = gplfast.search(docs[order], docs[order], 300)
    np.testing.assert_array_equal(np.take_along_axis(matrix, hits.ids, 1), hits.scores)
    upper = gplfast.gram(docs, [order], metric="ip", triangle=True, threads=2).values
    np.testing.assert_array_equal(upper, matrix[np.triu_indices(300, 1)])


def test_list_and_pair_are_the_same():
    docs = np.random.default_rng(4).standard_normal((9, 5)).astype(np.float32)
    lists = [ids(3, 1), ids(), ids(8, 8, 0)]
    assert_gram(gplfast.gram(docs, lists), gplfast.gram(docs, pair_of(lists)))


def test_halves_are_rounded_as_numpy_does():
    """Every half, what lies between two, and what lies beyond."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = np.unique(halves[np.isfinite(halves)])
    middles = (halves[1:] + halves[:-1]) / 2
    beyond = np.float32([65519.996, 65520, 1e9, np.inf, np.nan, 2.0**-25, np.nextafter(np.float32(2**-25), 1), 1e-40])
    around = np.concatenate([np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)])
    values = np.concatenate([halves, middles, around, beyond, -beyond])
    docs = np.concatenate([values, [1]]).astype(np.float32)[:, None]
    one = np.full(len(values), len(values))
    lists = np.arange(len(values) + 1) * 2, np.stack([np.arange(len(values)), one], 1).ravel()
    found = gplfast.gram(docs, lists, metric="ip", triangle=True, dtype="float16").values
    with np.errstate(over="ignore"):
        expected = (values + np.float32(0)).astype(np.float16)  # a score is never -0
    np.testing.assert_array_equal(found, expected)
    there = ~np.isnan(expected)
    np.testing.assert_array_equal(found.view(np.uint16)[there], expected.view(np.uint16)[there])


def test_nothing(isa):
    docs = np.ones((2, 3), np.float32)
    for lists in ([], (ids(0), ids()), [ids(), ids()]):
        found = gplfast.gram(docs, lists)
        assert found.values.shape == (0,)
        np.testing.assert_array_equal(found.indptr, np.zeros(len(found.indptr)))


def test_input_unchanged_and_memory_mapped(isa, tmp_path):
    docs = np.random.default_rng(5).standard_normal((30, 17)).astype(np.float32)
    np.save(tmp_path / "docs.npy", docs)
    mapped = np.load(tmp_path / "docs.npy", mmap_mode="r")
    lists = [ids(4, 2, 29)]
    assert_gram(gplfast.gram(mapped, lists), reference.gram(docs, lists))
    np.testing.assert_array_equal(mapped, docs)
    np.testing.assert_array_equal(lists[0], [4, 2, 29])


DOCS = np.ones((2, 3), np.float32)
ShapeError, DTypeError, ConfigError = (
    gplfast.errors.ShapeError,
    gplfast.errors.DTypeError,
    gplfast.errors.ConfigError,
)


@pytest.mark.parametrize(
    ("lists", "error", "message"),
    [
        ([ids(0), ids(1, 2)], ShapeError, r"gram: list 1 has id 2 but docs has 2 rows; ids count rows from 0"),
        ([ids(-1)], ShapeError, r"gram: list 0 has id -1"),
        ([[0, 1]], DTypeError, r"gram: list 0 is not a 1-D int64 array; call np.array\(ids, np.int64\)"),
        ([ids(0), np.ones(1, np.int32)], DTypeError, r"gram: list 1 is not"),
        ((ids(0, 1), np.ones(1, np.int32)), DTypeError, r"gram: lists\[1\] has dtype int32 but int64 is needed"),
        ((ids(), ids()), ShapeError, r"gram: lists\[0\] is empty"),
        ((ids(0, 2, 1), ids(0)), ShapeError, r"gram: lists\[0\] falls from 2 to 1 at list 1"),
        ((ids(0, 1), ids(0, 1)), ShapeError, r"gram: lists\[0\] ends at 1 but there are 2 values"),
        ((ids(0), ids(), ids()), ShapeError, r"gram: lists is a tuple of 3 but \(indptr, ids\) has 2"),
        (ids(0, 1), DTypeError, r"gram: lists is a ndarray"),
    ],
)
def test_list_errors(lists, error, message):
    with pytest.raises(error, match=message):
        gplfast.gram(DOCS, lists)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metric": "l2"}, ConfigError, r"gram: metric is 'l2'; use 'ip' or 'cosine'"),
        ({"dtype": "int8"}, ConfigError, r"gram: dtype is 'int8'; use 'float32' or 'float16'"),
        ({"threads": 0}, ConfigError, r"gram: threads is 0 but must be at least 1"),
    ],
)
def test_setting_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        gplfast.gram(DOCS, [ids(0)], **arguments)
