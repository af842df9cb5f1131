from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

import gplfast
from gplfast.ops import _core

ISAS = _core.available_isas()
INTEGER_ISAS = [name for name in ISAS if name in {"avx512_vnni", "amx_int8"}]
EDGE_DIMS = [1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100]
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-40, 1e20, -1e30, 3e38, 1.0], np.float32)


def rows(rng, n, dim, kind):
    """Rows of a kind that is hard in its own way."""
    if kind == "ties":
        return rng.integers(-1, 2, (n, dim)).astype(np.float32)
    values = rng.standard_normal((n, dim)).astype(np.float32)
    if kind == "spread":
        values *= (10.0 ** rng.integers(-20, 20, (n, 1))).astype(np.float32)
    elif kind == "special":
        holes = rng.random((n, dim)) < 0.1
        values[holes] = rng.choice(SPECIAL, int(holes.sum()))
        values[rng.random(n) < 0.1] = 0.0
    elif kind == "outliers":  # as transformers' embeddings have: a few columns much larger, and a mean
        values[:, :2] *= 30
        values += np.float32(0.5)
    elif kind == "tiny":
        values *= np.float32(1e-30)
    elif kind == "narrow":
        values = values * np.float32(1e-4) + np.float32(1.0)
    return values


def assert_hits(hits, expected, message=""):
    scores, ids = expected
    np.testing.assert_array_equal(hits[1], ids, err_msg=message)
    np.testing.assert_array_equal(hits[0].view(np.int32), scores.view(np.int32), err_msg=message)


def pair_of(exclude):
    return np.cumsum([0, *map(len, exclude)], dtype=np.int64), np.concatenate([np.empty(0, np.int64), *exclude])


def test_hand_example(isa):
    docs = np.array([[1, 0], [0, 1], [1, 1], [-1, 0], [1, 1]], np.float32)
    hits = gplfast.search(np.array([[2, 1]], np.float32), docs, 3)
    np.testing.assert_array_equal(hits.ids, [[2, 4, 0]])
    np.testing.assert_array_equal(hits.scores, np.array([[3, 3, 2]], np.float32))
    assert hits.scores.dtype == np.float32
    assert hits.ids.dtype == np.int64


def test_hand_example_cosine(isa):
    docs = np.array([[10, 0], [3, 4], [0, 0], [0, -2]], np.float32)
    hits = gplfast.search(np.array([[0.5, 0]], np.float32), docs, 4, metric="cosine")
    np.testing.assert_array_equal(hits.ids, [[0, 1, 2, 3]])
    np.testing.assert_array_equal(hits.scores, np.array([[1, 0.6, 0, 0]], np.float32))


@given(st.data())
def test_equals_reference(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dim = data.draw(st.sampled_from(EDGE_DIMS))
    n_queries = data.draw(st.integers(0, 20))
    n_docs = data.draw(st.integers(0, 90))
    kind = data.draw(st.sampled_from(["normal", "ties", "spread", "special", "tiny", "narrow"]))
    metric = data.draw(st.sampled_from(["ip", "cosine"]))
    k = data.draw(st.sampled_from([1, 2, 10, max(1, n_docs - 1), max(1, n_docs), n_docs + 5]))
    queries, docs = rows(rng, n_queries, dim, kind), rows(rng, n_docs, dim, kind)
    exclude = None
    if n_docs and data.draw(st.booleans()):
        exclude = [rng.integers(0, n_docs, rng.integers(0, 2 * n_docs)) for _ in range(n_queries)]
    blocks = {
        "block_queries": data.draw(st.sampled_from([0, 1, 7])),
        "block_docs": data.draw(st.sampled_from([0, 1, 9])),
    }
    expected = reference.search(queries, docs, k, metric=metric, exclude=exclude)
    try:
        for isa in ["", *ISAS]:  # by the shape, then each
            _core.force_isa(isa)
            hits = _core.search(queries, docs, k, metric, None if exclude is None else pair_of(exclude), 2, **blocks)
            assert_hits(hits, expected, isa)
    finally:
        _core.force_isa("")


@pytest.mark.parametrize("dim", EDGE_DIMS)
def test_edge_dims(isa, dim):
    rng = np.random.default_rng(dim)
    queries, docs = rows(rng, 17, dim, "normal"), rows(rng, 67, dim, "normal")
    for k in (1, 67, 72):
        assert_hits(gplfast.search(queries, docs, k), reference.search(queries, docs, k))


@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize(("dim", "n"), [(384, 1100), (767, 90), (768, 300), (1024, 90), (1536, 90), (8192, 50)])
def test_dims_of_embeddings(dim, n, metric):
    rng = np.random.default_rng(dim)
    queries, docs = rows(rng, 9, dim, "outliers"), rows(rng, n, dim, "outliers")
    scores, ids = reference.search(queries, docs, n + 5, metric=metric)
    try:
        for isa in ["", *ISAS]:
            _core.force_isa(isa)
            for k, threads in zip([1, 2, 10, n // 2, n - 1, n, n + 5], itertools.cycle([1, 2, 3, 8])):
                hits = gplfast.search(queries, docs, k, metric=metric, threads=threads)
                assert_hits(hits, (scores[:, :k], ids[:, :k]), f"{isa} {k}")
    finally:
        _core.force_isa("")


SPLITS = [(1, 0, 0), (2, 0, 0), (7, 0, 0), (1, 16, 20_000), (2, 64, 37), (7, 1, 1000)]  # threads, blocks


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_same_bits_whatever_the_split(metric):
    """Clustered documents with copies across block borders, large enough for ranges of documents."""
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((40, 24))
    docs = (centres[rng.integers(0, 40, 20_000)] + 0.05 * rng.standard_normal((20_000, 24))).astype(np.float32)
    docs[rng.integers(0, 20_000, 3000)] = docs[:3000]
    queries = docs[rng.integers(0, 20_000, 70)] + np.float32(0.01)
    exclude = pair_of([rng.integers(0, 20_000, 30) for _ in range(70)])
    first = None
    try:
        for isa in _core.available_isas():
            _core.force_isa(isa)
            for threads, block_queries, block_docs in SPLITS:
                blocks = {"block_queries": block_queries, "block_docs": block_docs}
                hits = _core.search(queries, docs, 100, metric, exclude, threads, **blocks)
                first = first or hits
                assert_hits(hits, first, f"{isa} {threads} {blocks}")
    finally:
        _core.force_isa("")
    lists = np.split(exclude[1], exclude[0][1:-1])
    assert_hits((first[0][:3], first[1][:3]), reference.search(queries[:3], docs, 100, metric=metric, exclude=lists))


@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("kind", ["normal", "ties", "spread", "special", "tiny", "narrow", "outliers"])
def test_scans_that_leave_most_pairs_out(kind, metric):
    """Enough documents for thresholds to bite, dims with and without a whole rotation, against one scan without any."""
    for dim, k in ((48, 10), (273, 100)):
        rng = np.random.default_rng(dim)
        docs, queries = rows(rng, 4000, dim, kind), rows(rng, 33, dim, kind)
        exclude = pair_of([rng.integers(0, 4000, 20) for _ in queries])
        try:
            _core.force_isa("scalar")
            all_docs = _core.search(queries, docs, 4000, metric, exclude, 2)  # k of all: everything is rescored
            for isa, n in [("", 3), ("", 33), *((isa, 33) for isa in ISAS)]:
                _core.force_isa(isa)
                part = (exclude[0][: n + 1], exclude[1][: exclude[0][n]])
                hits = _core.search(queries[:n], docs, k, metric, part, 2)
                assert_hits(hits, (all_docs[0][:n, :k], all_docs[1][:n, :k]), f"{isa} {n} {dim}")
        finally:
            _core.force_isa("")


@pytest.mark.parametrize("dim", [256, 1024])
def test_subnormal_elements_that_a_rotation_loses(isa, dim):
    rng = np.random.default_rng(dim)
    smallest = np.float32(2.0**-149)
    queries, docs = np.zeros((8, dim), np.float32), np.zeros((2000, dim), np.float32)
    # As many of each sign, so that the mean is zero.
    small_docs = smallest * np.repeat(rng.integers(-8, 9, (1000, 1)), 2, axis=0) * np.array([[1], [-1]] * 1000)
    for of_queries, of_docs in ((8 * smallest, 1e10 * (1 + rng.random((2000, 1)))), (1e15, small_docs)):
        queries[:, ::256], docs[:, ::256] = of_queries, of_docs
        assert_hits(gplfast.search(queries, docs, 5), reference.search(queries, docs, 5))


@pytest.mark.parametrize("isa", ["", *ISAS], indirect=True)
@pytest.mark.parametrize("threads", [1 << 16, 2**62, 2**64])
@pytest.mark.parametrize("n_queries", [3, 80])
def test_any_number_of_threads(isa, n_queries, threads):
    rng = np.random.default_rng(0)
    queries, docs = (rng.standard_normal((n, 64)).astype(np.float32) for n in (n_queries, 20_000))
    assert_hits(gplfast.search(queries, docs, 3, threads=threads), gplfast.search(queries, docs, 3, threads=1))


@pytest.mark.parametrize("isa", ["", *ISAS], indirect=True)
def test_more_threads_than_documents(isa):
    queries, docs = rows(np.random.default_rng(0), 5, 20, "normal"), rows(np.random.default_rng(1), 10, 20, "normal")
    assert_hits(gplfast.search(queries, docs, 3, threads=2**60), reference.search(queries, docs, 3))


@pytest.mark.parametrize("isa", ["", *ISAS], indirect=True)
def test_a_row_too_long_for_integer_sums(isa):
    queries, docs = np.ones((5, 2**15 + 1), np.float32), np.ones((3, 2**15 + 1), np.float32)
    assert_hits(gplfast.search(queries, docs, 2), reference.search(queries, docs, 2))


def test_prefix_of_a_longer_answer(isa):
    rng = np.random.default_rng(6)
    queries, docs = rows(rng, 9, 20, "ties"), rows(rng, 500, 20, "ties")
    longest = gplfast.search(queries, docs, 500)
    for k in (1, 10, 499):
        assert_hits(gplfast.search(queries, docs, k), (longest.scores[:, :k], longest.ids[:, :k]))


def test_all_ties_lowest_ids_win(isa):
    docs = np.ones((1000, 33), np.float32)
    hits = gplfast.search(np.ones((3, 33), np.float32), docs, 7)
    np.testing.assert_array_equal(hits.ids, np.tile(np.arange(7), (3, 1)))


@pytest.mark.parametrize("order", [1, -1])
def test_adversarial_order(isa, order):
    """Sorted by score: ascending raises every threshold as often as it can be."""
    rng = np.random.default_rng(7)
    query = rows(rng, 1, 16, "normal")
    docs = rows(rng, 3000, 16, "normal")
    docs = np.ascontiguousarray(docs[np.argsort(docs @ query[0])][::order])
    assert_hits(gplfast.search(query, docs, 25), reference.search(query, docs, 25))


@pytest.mark.parametrize(("n_queries", "n_docs"), [(0, 5), (3, 0), (0, 0)])
def test_no_rows(isa, n_queries, n_docs):
    hits = gplfast.search(np.ones((n_queries, 4), np.float32), np.ones((n_docs, 4), np.float32), 2)
    assert hits.ids.shape == (n_queries, 2)
    if n_docs == 0:
        assert (hits.ids == -1).all()
        assert (hits.scores == -np.inf).all()


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_nan_and_infinite_rows(isa, metric):
    docs = np.array([[np.nan, 1], [np.inf, 0], [-np.inf, 1], [1, 1], [0, 0], [3e38, 3e38]], np.float32)
    queries = np.array([[1, 1], [np.nan, 1], [np.inf, 1], [0, 0], [3e38, 3e38]], np.float32)
    hits = gplfast.search(queries, docs, 6, metric=metric)
    assert_hits(hits, reference.search(queries, docs, 6, metric=metric))
    assert not np.isnan(hits.scores).any()
    assert (hits.ids[1] == -1).all()


def test_overflow_of_the_scan_loses_nothing(isa):
    """Partial sums overflow float32, the score itself does not."""
    docs = np.zeros((300, 64), np.float32)
    docs[:, :2] = 1.0
    docs[170, :4] = [3e30, -3e30, 5.0, 1.0]
    queries = np.array([[3e30, 3e30, 1.0, 1.0] + [0.0] * 60], np.float32)
    expected = reference.search(queries, docs, 300)
    assert_hits(gplfast.search(queries, docs, 300), expected)
    assert_hits(gplfast.search(queries, docs, 1), (expected[0][:, :1], expected[1][:, :1]))


@given(st.data())
def test_few_queries_equal_reference(data):
    """By the shape alone: one query, then rows as they lie, in whole groups of four and rests."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dim = data.draw(st.sampled_from(EDGE_DIMS))
    kind = data.draw(st.sampled_from(["normal", "ties", "spread", "special", "tiny", "narrow", "outliers"]))
    metric = data.draw(st.sampled_from(["ip", "cosine"]))
    queries = rows(rng, data.draw(st.integers(1, 65)), dim, kind)
    docs = rows(rng, data.draw(st.integers(1, 300)), dim, kind)
    k = data.draw(st.sampled_from([1, 5, 50]))
    assert_hits(gplfast.search(queries, docs, k, metric=metric), reference.search(queries, docs, k, metric=metric))


def test_exclusion(isa):
    rng = np.random.default_rng(8)
    queries, docs = rows(rng, 5, 24, "normal"), rows(rng, 60, 24, "normal")
    best = gplfast.search(queries, docs, 60).ids
    exclude = [
        np.empty(0, np.int64),
        best[1, :10].copy(),  # the best ones
        np.concatenate([best[2, 9::-1], best[2, :5]]),  # unsorted, repeated
        best[3, :58].copy(),  # two are left: padding
        best[4].copy(),  # none is left
    ]
    hits = gplfast.search(queries, docs, 5, exclude=exclude)
    assert_hits(hits, reference.search(queries, docs, 5, exclude=exclude))
    assert_hits(gplfast.search(queries, docs, 5, exclude=pair_of(exclude)), hits)
    np.testing.assert_array_equal(hits.ids[2], best[2, 10:15])
    np.testing.assert_array_equal(hits.ids[3], [*best[3, 58:], -1, -1, -1])
    assert (hits.ids[4] == -1).all()


def test_input_unchanged_and_memory_mapped(isa, tmp_path):
    rng = np.random.default_rng(9)
    docs = rows(rng, 100, 12, "special")
    np.save(tmp_path / "docs.npy", docs)
    mapped = np.load(tmp_path / "docs.npy", mmap_mode="r")
    queries = rows(rng, 10, 12, "special")
    queries.flags.writeable = False
    before = queries.tobytes()
    hits = gplfast.search(queries, mapped, 4, metric="cosine")
    assert queries.tobytes() == before
    assert mapped.tobytes() == docs.tobytes()
    assert_hits(hits, reference.search(queries, docs, 4, metric="cosine"))


GOOD = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("queries", "docs", "error", "message"),
    [
        (GOOD.astype(np.float64), GOOD, gplfast.errors.DTypeError, r"queries has dtype float64 but float32"),
        (GOOD, GOOD.astype(">f4"), gplfast.errors.DTypeError, r"docs has dtype >f4 but float32"),
        (
            GOOD,
            GOOD.tolist(),
            gplfast.errors.DTypeError,
            r"docs is a builtins.list .* call np.ascont",
        ),
        (GOOD.T, GOOD, gplfast.errors.DTypeError, r"queries is not C-contiguous .* call np.ascontiguousarray\(queries"),
        (GOOD[:, ::2], GOOD, gplfast.errors.DTypeError, r"queries is not C-contiguous"),
        (GOOD[0], GOOD, gplfast.errors.ShapeError, r"queries has shape \(3,\) but 2 dimensions are needed"),
        (
            GOOD[:, :0].copy(),
            GOOD,
            gplfast.errors.ShapeError,
            r"shape \(2, 0\) but needs at least one column",
        ),
        (GOOD, np.ones((2, 4), np.float32), gplfast.errors.ShapeError, r"queries has dim=3 but docs has dim=4; encode"),
    ],
)
def test_array_errors(queries, docs, error, message):
    with pytest.raises(error, match=message):
        gplfast.search(queries, docs, 1)


def test_misaligned_input_is_an_error():
    buffer = np.zeros(4 * 6 + 1, np.uint8)
    misaligned = buffer[1:].view(np.float32).reshape(2, 3)
    with pytest.raises(gplfast.errors.DTypeError, match="not C-contiguous and aligned"):
        gplfast.search(misaligned, GOOD, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, gplfast.errors.ConfigError, r"k is 0 but must be at least 1"),
        ({"k": 1.5}, gplfast.errors.ConfigError, r"k is 1\.5 but must be an integer"),
        ({"k": 2**64}, gplfast.errors.ConfigError, r"k is 18446744073709551616 but must be at most"),
        ({"k": 1, "threads": 0}, gplfast.errors.ConfigError, r"threads is 0"),
        ({"k": 1, "metric": "l2"}, gplfast.errors.ConfigError, r"metric is 'l2'; use 'ip' or 'cosine'"),
    ],
)
def test_setting_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        gplfast.search(GOOD, GOOD, **arguments)


def ids(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("exclude", "error", "message"),
    [
        ([ids(), ids(2)], gplfast.errors.ShapeError, r"exclude of query 1 has id 2 but docs has 2 rows"),
        ([ids(-1), ids()], gplfast.errors.ShapeError, r"exclude of query 0 has id -1"),
        ([ids()], gplfast.errors.ShapeError, r"exclude names 1 queries but queries has 2 rows"),
        ([[0], [1]], gplfast.errors.DTypeError, r"exclude of query 0 is not a 1-D int64 array"),
        ([ids(), np.ones(1, np.int32)], gplfast.errors.DTypeError, r"exclude of query 1"),
        ((ids(0, 1), ids(0), ids(0)), gplfast.errors.ShapeError, r"tuple of 3 but \(indptr, ids\) has 2"),
        ((ids(0, 2, 1), ids(0)), gplfast.errors.ShapeError, r"exclude\[0\] falls from 2 to 1 at list 1"),
        ((ids(), ids()), gplfast.errors.ShapeError, r"exclude\[0\] is empty"),
        ((ids(1, 1, 1), ids(0)), gplfast.errors.ShapeError, r"exclude\[0\] starts at 1"),
        ((ids(0, 1, 1), ids(0, 1)), gplfast.errors.ShapeError, r"exclude\[0\] ends at 1 but there are 2 values"),
        (5, gplfast.errors.DTypeError, r"exclude is a int"),
    ],
)
def test_exclude_errors(exclude, error, message):
    with pytest.raises(error, match=message):
        gplfast.search(GOOD, GOOD, 1, exclude=exclude)
