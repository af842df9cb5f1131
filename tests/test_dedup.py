from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

import gplfast
from gplfast.ops import _core

INTEGER_ISAS = [isa for isa in _core.available_isas() if isa not in {"scalar", "avx2", "avx512"}]
RULES = ["components", "greedy", "any-earlier"]


def at_angles(*degrees):
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("rule", "representative"),
    [("components", [0, 0, 0, 3]), ("greedy", [0, 0, 2, 3]), ("any-earlier", [0, 0, 0, 3])],
)
def test_chain(isa, rule, representative):
    """a ~ b ~ c but not a ~ c: the rules differ on c."""
    result = gplfast.dedup(at_angles(0, 10, 20, 90), np.cos(np.deg2rad(11)), rule=rule)
    np.testing.assert_array_equal(result.representative, representative)
    np.testing.assert_array_equal(result.kept, result.representative == np.arange(4))
    assert result.n_pairs == 2


def test_keep_last(isa):
    result = gplfast.dedup(at_angles(0, 10, 20, 90), np.cos(np.deg2rad(11)), keep="last", rule="greedy")
    np.testing.assert_array_equal(result.representative, [0, 2, 2, 3])


@given(st.data())
def test_equals_reference(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n = data.draw(st.integers(0, 70))
    dim = data.draw(st.sampled_from([1, 2, 3, 17, 33, 130]))
    metric = data.draw(st.sampled_from(["cosine", "ip"]))
    kind = data.draw(st.sampled_from(["ties", "clusters", "special"]))
    docs = rng.integers(-1, 2, (n, dim)).astype(np.float32)
    if kind == "clusters":
        docs = (rng.standard_normal((7, dim))[rng.integers(0, 7, n)] + 0.2 * rng.standard_normal((n, dim))).astype("f4")
    elif kind == "special" and n:
        holes = rng.random((n, dim)) < 0.05
        docs[holes] = rng.choice(np.array([np.nan, np.inf, -0.0, 1e30, 1e-40], np.float32), int(holes.sum()))
        docs[rng.integers(0, n, n // 3)] = docs[rng.integers(0, n, n // 3)]
    threshold = data.draw(st.sampled_from([-0.5, 0.0, 0.5, 0.9, 0.95, 1.0]))
    split = {
        "block_rows": data.draw(st.sampled_from([0, 1, 13])),
        "scan_depth": data.draw(st.sampled_from([0, 64, 128])),
    }
    try:
        for rule in RULES:
            for keep in ("first", "last"):
                expected, n_pairs = reference.dedup(docs, threshold, metric=metric, keep=keep, rule=rule)
                for isa in _core.available_isas():
                    _core.force_isa(isa)
                    found = _core.dedup(docs, threshold, metric, keep == "last", rule, 2, **split)
                    np.testing.assert_array_equal(found[0], expected, err_msg=f"{isa} {rule} {keep}")
                    assert found[1] == n_pairs
    finally:
        _core.force_isa("")


def near_pairs(rng, n, dim, spread):
    """Rows around centres, a third of them copies: cosines within a cluster are about 1 / (1 + spread^2)."""
    centres = rng.standard_normal((300, dim))
    docs = (centres[rng.integers(0, 300, n)] + spread * rng.standard_normal((n, dim))).astype(np.float32)
    docs[rng.integers(0, n, n // 3)] = docs[: n // 3]
    return docs


@pytest.mark.parametrize("rule", RULES)
def test_same_answer_whatever_the_split(rule):
    docs = near_pairs(np.random.default_rng(3), 5000, 150, 0.17)
    first = None
    try:
        for isa in _core.available_isas():
            _core.force_isa(isa)
            for threads, block_rows, scan_depth in [(1, 0, 64), (2, 999, 128), (2, 0, 0), (7, 31, 64), (7, 0, 192)]:
                split = {"block_rows": block_rows, "scan_depth": scan_depth}
                found = _core.dedup(docs, 0.97, "cosine", False, rule, threads, **split)
                first = first or found
                np.testing.assert_array_equal(found[0], first[0], err_msg=f"{isa} {threads} {split}")
                assert found[1] == first[1]
    finally:
        _core.force_isa("")
    n_kept = (first[0] == np.arange(5000)).sum()
    assert 300 < n_kept < 4500


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("scan_depth", [64, 192])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_pairs_near_the_threshold(isa, metric, scan_depth, shift):
    """Thousands of scores closer to the threshold than bytes can tell; with a shift all rows point one way."""
    docs = near_pairs(np.random.default_rng(5), 700, 150, 0.3) + np.float32(shift)
    scores = reference.scores(docs, docs, metric)[np.triu_indices(700, 1)]
    threshold = float(np.sort(scores)[-3000])
    found = _core.dedup(docs, threshold, metric, False, "components", 2, scan_depth=scan_depth)
    assert found[1] == np.sum(scores >= np.float32(threshold))


@pytest.mark.parametrize("isa", INTEGER_ISAS, indirect=True)
@pytest.mark.parametrize("scan_depth", [64, 192])
def test_certificate_of_the_integer_scan(isa, scan_depth):
    """The bound is needed: with 1/100 of it pairs are lost or found that are not similar."""
    docs = near_pairs(np.random.default_rng(6), 700, 150, 0.3)
    scores = reference.scores(docs, docs, "cosine")[np.triu_indices(700, 1)]
    threshold = float(np.sort(scores)[-3000])
    try:
        _core.set_bound_scale_for_testing(0.01)
        wrong = _core.dedup(docs, threshold, "cosine", False, "components", 2, scan_depth=scan_depth)
    finally:
        _core.set_bound_scale_for_testing(1.0)
    assert wrong[1] != np.sum(scores >= np.float32(threshold))


def test_no_decision_flips_at_the_threshold(isa):
    """The threshold is the very score of a pair: that pair is in, and one unit above it is out."""
    rng = np.random.default_rng(4)
    docs = rng.standard_normal((40, 100)).astype(np.float32)
    scores = reference.scores(docs, docs, "cosine")
    for i, j in [(0, 1), (3, 30), (17, 20)]:
        exact = scores[i, j]
        at = gplfast.dedup(docs, float(exact)).n_pairs
        above = gplfast.dedup(docs, float(np.nextafter(exact, np.float32(2)))).n_pairs
        assert at == np.sum(np.triu(scores, 1)[np.triu_indices(40, 1)] >= exact)
        assert above == at - 1


def test_copies_cost_no_pairs(isa):
    """A million pairs of copies are counted, not visited one by one."""
    docs = np.tile(np.float32([[1, 2, 3]]), (20_000, 1))
    result = gplfast.dedup(docs, 0.99)
    assert result.n_pairs == 20_000 * 19_999 // 2
    assert result.kept.sum() == 1


def test_zero_rows_are_not_similar_to_anything(isa):
    result = gplfast.dedup(np.zeros((3, 5), np.float32), 0.5)
    assert result.n_pairs == 0
    assert result.kept.all()


def test_no_rows(isa):
    result = gplfast.dedup(np.zeros((0, 5), np.float32), 0.5)
    assert result.representative.shape == (0,)
    assert result.representative.dtype == np.int64
    assert result.kept.dtype == np.bool_


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": float("nan")}, "threshold is nan but must be a finite float32"),
        ({"threshold": 1e39}, "must be a finite float32"),
        ({"threshold": 0.9, "rule": "best"}, "rule is 'best'; use 'components', 'greedy' or 'any-earlier'"),
        ({"threshold": 0.9, "keep": "best"}, "keep is 'best'; use 'first' or 'last'"),
        ({"threshold": 0.9, "metric": "l2"}, "dedup: metric is 'l2'"),
    ],
)
def test_setting_errors(arguments, message):
    with pytest.raises(gplfast.errors.ConfigError, match=message):
        gplfast.dedup(np.ones((2, 2), np.float32), **arguments)


def test_input_unchanged(isa):
    docs = np.random.default_rng(1).standard_normal((50, 9)).astype(np.float32)
    docs.flags.writeable = False
    before = docs.tobytes()
    gplfast.dedup(docs, 0.5)
    assert docs.tobytes() == before
