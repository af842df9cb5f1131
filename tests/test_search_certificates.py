"""The proven bounds of the scans are needed: with 1/100 of one, the best document is missed."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from test_search import INTEGER_ISAS, ISAS, assert_hits

import gplfast
from gplfast.ops import _core


def worst_case(dim, position, n_docs):
    """Documents of which one beats the rest in exact arithmetic by almost all that a float32 scan can be wrong.

    Each of its dim - 1 small products is lost when added to the first, by rounding to even.
    """
    query = np.full((1, dim), 2.0**-12, np.float32)
    query[0, 0] = 1.0
    docs = np.zeros((n_docs, dim), np.float32)
    docs[:, 0] = 1.0 + 2.0**-24 * (dim // 2)
    docs[position] = 2.0**-12 * 0.999
    docs[position, 0] = 1.0
    return query, docs


def missed_with(scale, worst, positions):
    """How many best documents are not found when every error bound is multiplied by `scale`."""
    _core.set_bound_scale_for_testing(scale)
    try:
        found = [_core.search(*worst(position), 1, "ip", None, 1, block_docs=64)[1][0, 0] for position in positions]
    finally:
        _core.set_bound_scale_for_testing(1.0)
    return sum(int(best) != position for best, position in zip(found, positions, strict=True))


@pytest.mark.parametrize("isa", [name for name in ISAS if name not in INTEGER_ISAS], indirect=True)
@pytest.mark.parametrize("dim", [128, 512])
def test_certificate(isa, dim):
    """The bound is needed: with 1/100 of it the best document is missed."""
    positions = range(5, 3000, 499)
    assert missed_with(1.0, lambda position: worst_case(dim, position, 3000), positions) == 0
    assert missed_with(0.01, lambda position: worst_case(dim, position, 3000), positions) >= len(positions) // 2


@pytest.mark.skipif("avx512" not in ISAS, reason="only AVX-512 scores rows as they lie")
def test_certificate_of_rows():
    """A document whose float32 sum loses 127 terms in each of 16 lanes is found, and missed with 1/100 of the bound."""
    docs = np.zeros((400, 2048), np.float32)
    docs[:, :16] = 1 + 5e-6
    docs[300, :16] = 1
    docs[300, 16:] = 0.9 * 2.0**-12
    queries = np.ones((2, 2048), np.float32)
    queries[:, 16:] = 2.0**-12
    assert_hits(gplfast.search(queries, docs, 1), reference.search(queries, docs, 1))
    np.testing.assert_array_equal(gplfast.search(queries, docs, 1).ids, [[300], [300]])
    _core.set_bound_scale_for_testing(0.01)
    try:
        np.testing.assert_array_equal(gplfast.search(queries, docs, 1).ids, [[0], [0]])
    finally:
        _core.set_bound_scale_for_testing(1.0)


def worst_case_of_bytes(position, n_docs):
    """Documents of which one is best and looks worse as bytes by one unit, from which rounding took almost one.

    Three columns are not rotated, and each document's negative keeps the mean at zero.
    """
    docs = np.tile(np.array([127, 60.501, 60.4], np.float32), (n_docs, 1))
    docs[position] = [127, 60.499, 60.499]
    docs[n_docs // 2 :] = -docs[: n_docs // 2]
    return np.ones((1, 3), np.float32), docs / np.float32(127)


@pytest.mark.parametrize("isa", INTEGER_ISAS, indirect=True)
def test_certificate_of_the_integer_scan(isa):
    positions = range(5, 1500, 249)
    assert missed_with(1.0, lambda position: worst_case_of_bytes(position, 3000), positions) == 0
    assert missed_with(0.01, lambda position: worst_case_of_bytes(position, 3000), positions) >= len(positions) // 2
