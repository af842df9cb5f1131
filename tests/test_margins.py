from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gplfast

REFERENCES = ["min", "mean", "max", "first"]


def ragged(lists):
    indptr = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return np.concatenate([np.empty(0, np.float32), *lists]), indptr


def floats(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("which", "expected"), [("min", [0, 1, 4]), ("mean", [1, 2, 4]), ("max", [2, 3, 4]), ("first", [2, 3, 4])]
)
def test_hand_example(which, expected):
    positives = ragged([floats(3, 1), floats(), floats(5)])
    negatives = ragged([floats(1, 0), floats(), floats(1)])
    result = gplfast.margins(*positives, *negatives, reference=which)
    np.testing.assert_array_equal(result, floats(*expected))
    assert result.dtype == np.float32


ANY_FLOATS = hnp.arrays(np.float32, st.integers(0, 6), elements=st.floats(width=32))


@given(st.lists(st.tuples(ANY_FLOATS, ANY_FLOATS), max_size=8))
def test_equals_reference(lists):
    lists = [(positive, negative if len(positive) else negative[:0]) for positive, negative in lists]
    positives, negatives = [p for p, _ in lists], [n for _, n in lists]
    for which in REFERENCES:
        result = gplfast.margins(*ragged(positives), *ragged(negatives), reference=which)
        expected = np.concatenate([np.empty(0, np.float32), *reference.margins(positives, negatives, which)])
        np.testing.assert_array_equal(result, expected)


def test_nan_stays_with_its_query():
    positives = ragged([floats(1, np.nan), floats(2)])
    negatives = ragged([floats(0), floats(np.nan, 0)])
    for which in ("min", "mean", "max"):
        result = gplfast.margins(*positives, *negatives, reference=which)
        np.testing.assert_array_equal(result, floats(np.nan, np.nan, 2))


@pytest.mark.parametrize(
    ("positives", "negatives", "message"),
    [
        ([floats()], [floats(1, 2)], "query 0 has 2 negatives but no positive"),
        ([floats(1)], [floats(1), floats(2)], "positive_indptr has 1 queries but negative_indptr has 2"),
    ],
)
def test_lists_that_do_not_fit(positives, negatives, message):
    with pytest.raises(gplfast.errors.ShapeError, match=message):
        gplfast.margins(*ragged(positives), *ragged(negatives))


def test_errors():
    scores, indptr = ragged([floats(1)])
    with pytest.raises(gplfast.errors.DTypeError, match="negative_scores has dtype float64"):
        gplfast.margins(scores, indptr, scores.astype(np.float64), indptr)
    with pytest.raises(gplfast.errors.DTypeError, match="positive_indptr has dtype int32"):
        gplfast.margins(scores, indptr.astype(np.int32), scores, indptr)
    with pytest.raises(gplfast.errors.ShapeError, match="positive_indptr is empty"):
        gplfast.margins(scores, indptr[:0], scores, indptr)
    with pytest.raises(gplfast.errors.ShapeError, match="negative_indptr ends at 0 but there are 1 values"):
        gplfast.margins(scores, indptr, scores, indptr * 0)
    with pytest.raises(gplfast.errors.ConfigError, match="reference is 'median'"):
        gplfast.margins(scores, indptr, scores, indptr, reference="median")


def test_input_unchanged():
    scores, indptr = ragged([floats(1, 2), floats(3)])
    before = scores.tobytes(), indptr.tobytes()
    gplfast.margins(scores, indptr, scores, indptr)
    assert (scores.tobytes(), indptr.tobytes()) == before
