from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gplfast
from gplfast.ops import _core, forced_isa

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
    np.testing.assert_array_equal(result.margins, floats(*expected))
    assert result.margins.dtype == np.float32
    assert result.kept.all()
    assert not any(result.dropped.values())


ANY_FLOATS = hnp.arrays(np.float32, st.integers(0, 6), elements=st.floats(width=32))


@given(st.lists(st.tuples(ANY_FLOATS, ANY_FLOATS), max_size=8))
def test_equals_reference(lists):
    lists = [(positive, negative if len(positive) else negative[:0]) for positive, negative in lists]
    positives, negatives = [p for p, _ in lists], [n for _, n in lists]
    for which in REFERENCES:
        result = gplfast.margins(*ragged(positives), *ragged(negatives), reference=which).margins
        expected = np.concatenate([np.empty(0, np.float32), *reference.margins(positives, negatives, which)])
        np.testing.assert_array_equal(result, expected)


def test_nan_stays_with_its_query():
    positives = ragged([floats(1, np.nan), floats(2)])
    negatives = ragged([floats(0), floats(np.nan, 0)])
    for which in ("min", "mean", "max"):
        result = gplfast.margins(*positives, *negatives, reference=which).margins
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


def chosen(positives, negatives, **settings):
    """The kept negatives' places in each list, and what was dropped."""
    found = gplfast.margins(*ragged(positives), *ragged(negatives), **settings)
    places = [np.flatnonzero(part).tolist() for part in np.split(found.kept, ragged(negatives)[1][1:-1])]
    return places, {reason: n for reason, n in found.dropped.items() if n}


POSITIVES = [floats(10, 8), floats(-4)]
NEGATIVES = [floats(9, 7.5, 6, np.nan, 1), floats(-3, -4.2, -6, -9)]


@pytest.mark.parametrize(
    ("settings", "places", "dropped"),
    [
        ({}, [[0, 1, 2, 4], [0, 1, 2, 3]], {"nan": 1}),
        ({"absolute_margin": 1.0}, [[2, 4], [2, 3]], {"nan": 1, "absolute_margin": 4}),
        ({"absolute_margin": 0.5}, [[1, 2, 4], [2, 3]], {"nan": 1, "absolute_margin": 3}),  # 7.5 + 0.5 is 8: stays
        ({"relative_margin": 0.1}, [[2, 4], [2, 3]], {"nan": 1, "relative_margin": 4}),  # below -4.4, not above it
        ({"min_score": -4.2}, [[0, 1, 2, 4], [0, 1]], {"nan": 1, "min_score": 2}),  # float32(-4.2) is above -4.2
        ({"max_score": 6}, [[2, 4], [0, 1, 2, 3]], {"nan": 1, "max_score": 2}),
        ({"ranks": (1, 3)}, [[1, 2], [1, 2]], {"nan": 1, "rank": 4}),
        ({"ranks": (3, None)}, [[4], [3]], {"nan": 1, "rank": 6}),
        ({"quota": 2}, [[0, 1], [0, 1]], {"nan": 1, "quota": 4}),
        (
            {"max_score": 6, "absolute_margin": 1, "quota": 1},
            [[2], [2]],
            {"nan": 1, "max_score": 2, "absolute_margin": 2, "quota": 2},
        ),
    ],
)
def test_filters_by_hand(settings, places, dropped):
    assert chosen(POSITIVES, NEGATIVES, **settings) == (places, dropped)


def test_groups_by_hand():
    groups = {
        "positive_groups": np.array([7, 8, 9], np.int64),
        "negative_groups": np.array([1, 7, 2, 1, 2, 7, 3, 3, 9], np.int64),
    }
    places, dropped = chosen(POSITIVES, NEGATIVES, **groups)
    assert places == [[0, 2], [0, 1]]  # 7 is a positive of the first query only; the copy of a NaN counts as NaN
    assert dropped == {"nan": 1, "positive_group": 2, "negative_group": 2}
    places, _ = chosen(POSITIVES, NEGATIVES, max_score=8, **groups)
    assert places[0] == [2]  # what an earlier filter dropped has no copies: rank 3 is NaN, rank 4 a copy of rank 2


@given(st.data())
def test_filters_equal_reference(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n = data.draw(st.integers(1, 6))
    scores = [rng.normal(size=rng.integers(1, 4)).round(1).astype(np.float32) for _ in range(n)]
    lists = [np.sort(rng.normal(size=rng.integers(0, 12)).round(1))[::-1].astype(np.float32) for _ in range(n)]
    for values in lists:
        values[rng.random(len(values)) < 0.1] = np.nan
    limit = st.none() | st.floats(-2, 2)
    settings = {name: data.draw(limit) for name in ("min_score", "max_score", "absolute_margin", "relative_margin")}
    settings["quota"] = data.draw(st.none() | st.integers(1, 5))
    settings["sampling"] = data.draw(st.sampled_from(["top", "uniform", "weighted"]))
    settings["temperature"] = data.draw(st.sampled_from([0.5, 1.0]))
    settings["seed"] = data.draw(st.integers(0, 2**64 - 1))
    settings["ranks"] = data.draw(st.sampled_from([(0, None), (1, None), (0, 3), (2, 6)]))
    if data.draw(st.booleans()):
        settings["positive_groups"] = rng.integers(0, 5, sum(map(len, scores)))
        settings["negative_groups"] = rng.integers(0, 5, sum(map(len, lists)))
    found = gplfast.margins(*ragged(scores), *ragged(lists), threads=data.draw(st.integers(1, 3)), **settings)
    kept, dropped = reference.select(scores, lists, **settings)
    np.testing.assert_array_equal(found.kept, kept)
    assert {reason: n for reason, n in found.dropped.items() if n} == dropped


SPECIAL = floats(
    np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 0.5, np.nextafter(floats(0.5)[0], 9)
)


@pytest.mark.parametrize("settings", [{}, {"ranks": (2, 20)}, {"quota": 3}], ids=str)
def test_bits_are_the_same_on_every_instruction_set(settings):
    """Lists of every length about a vector's, scores at, next to and far from each limit."""
    rng = np.random.default_rng(0)
    lists = [rng.choice(np.append(SPECIAL, rng.normal(size=9).astype(np.float32)), n) for n in [*range(36), 100, 1000]]
    positives = [rng.choice(SPECIAL[3:], 2) for _ in lists]
    limits = {"min_score": -3e38, "max_score": 0.5, "absolute_margin": -0.5, "relative_margin": -0.5}
    found = {}
    for isa in _core.available_isas():
        with forced_isa(isa), np.errstate(all="ignore"):
            found[isa] = gplfast.margins(*ragged(positives), *ragged(lists), **limits, **settings)
    one = found["scalar"]
    draw = {"ranks": (0, None), "quota": None, "sampling": "top", "temperature": 1.0, "seed": 0, **settings}
    expected, dropped = reference.select(positives, lists, **limits, **draw)
    np.testing.assert_array_equal(one.kept, expected)
    assert {reason: n for reason, n in one.dropped.items() if n} == dropped
    assert set(dropped) >= {"nan", "min_score", "max_score", "absolute_margin", "relative_margin"}
    for isa, other in found.items():
        np.testing.assert_array_equal(other.margins, one.margins, err_msg=isa)
        np.testing.assert_array_equal(np.signbit(other.margins), np.signbit(one.margins), err_msg=isa)
        np.testing.assert_array_equal(other.kept, one.kept, err_msg=isa)
        assert other.dropped == one.dropped


def test_settings_larger_than_any_list():
    assert chosen(POSITIVES, NEGATIVES, ranks=(0, 2**70), quota=2**70)[0] == [[0, 1, 2, 4], [0, 1, 2, 3]]
    assert chosen(POSITIVES, NEGATIVES, ranks=(2**70, None))[0] == [[], []]


def test_draws_do_not_depend_on_threads_and_are_spread():
    rng = np.random.default_rng(1)
    lists = [np.sort(rng.normal(size=50))[::-1].astype(np.float32) for _ in range(20_000)]
    positives = [floats(5)] * len(lists)
    arguments = (*ragged(positives), *ragged(lists))
    for sampling in ("uniform", "weighted"):
        one = gplfast.margins(*arguments, quota=5, sampling=sampling, threads=1)
        assert one.kept.sum() == 5 * len(lists)
        for threads in (2, 7):
            again = gplfast.margins(*arguments, quota=5, sampling=sampling, threads=threads)
            np.testing.assert_array_equal(again.kept, one.kept)
            assert again.dropped == one.dropped
        share = one.kept.reshape(-1, 50).mean(axis=0)
        if sampling == "uniform":  # 0.1 each; 5 deviations of a binomial share
            assert np.abs(share - 0.1).max() < 5 * np.sqrt(0.09 / len(lists))
        else:
            assert share[0] > 2 * share[25] > 2 * share[49]
        assert (gplfast.margins(*arguments, quota=5, sampling=sampling, seed=1).kept != one.kept).any()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"ranks": (3, 3)}, gplfast.errors.ConfigError, r"ranks is \(3, 3\) but must be 0 <= first < end"),
        ({"quota": 0}, gplfast.errors.ConfigError, "quota is 0 but must be at least 1"),
        ({"sampling": "best"}, gplfast.errors.ConfigError, "sampling is 'best'; use 'top', 'uniform' or 'weighted'"),
        ({"temperature": 0.0}, gplfast.errors.ConfigError, "temperature is 0.0 but must be above 0"),
        ({"temperature": np.inf}, gplfast.errors.ConfigError, "temperature is inf but must be above 0 and finite"),
        ({"ranks": (0.5, None)}, gplfast.errors.ConfigError, "a rank is 0.5 but must be an integer"),
        ({"seed": 1.5}, gplfast.errors.ConfigError, "seed is 1.5 but must be an integer"),
        ({"seed": -1}, gplfast.errors.ConfigError, "seed is -1 but must be from 0"),
        ({"max_score": float("nan")}, gplfast.errors.ConfigError, "max_score is NaN"),
        ({"threads": 0}, gplfast.errors.ConfigError, "threads is 0 but must be at least 1"),
        ({"positive_groups": np.array([1])}, gplfast.errors.ConfigError, "negative_groups is not; give both"),
        ({"negative_groups": np.array([1, 2])}, gplfast.errors.ShapeError, "negative_groups has 2 entries but there"),
        ({"negative_groups": np.array([1.0])}, gplfast.errors.DTypeError, "negative_groups has dtype float64"),
    ],
)
def test_filter_errors(settings, error, message):
    scores, indptr = ragged([floats(1)])
    with pytest.raises(error, match=message):
        gplfast.margins(scores, indptr, scores, indptr, **settings)
