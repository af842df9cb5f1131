from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gplfast
from gplfast import UserFilter, filter_negatives
from gplfast.errors import ConfigError, DataError, DTypeError, ShapeError

pytest.importorskip("numba")


def below_the_lowest(scores, positive_scores, ranks, rows, positive_rows):
    """All that a function may see, in one answer."""
    kept = np.empty(len(scores), np.bool_)
    for i in range(len(scores)):
        kept[i] = (scores[i] < 0.5) & (ranks[i] != 1) & (rows[i] % 3 != 0)
        for j in range(len(positive_scores)):
            kept[i] &= (scores[i] + 0.25 < positive_scores[j]) & (rows[i] != positive_rows[j] + 1)
    return kept


KEEP = UserFilter(below_the_lowest)


def lists(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=30), st.integers(0, 99), st.sampled_from([1, 3])
)
def test_it_is_the_function_itself_query_by_query(lengths, seed, threads):
    draw = np.random.default_rng(seed)
    indptr, own = lists([n for n, _ in lengths]), lists([n for _, n in lengths])
    scores = draw.choice([-1, 0, 0.25, 0.5, np.nan, 0.75], indptr[-1]).astype(np.float32)
    own_scores = draw.choice([0.25, 0.5, np.nan, 1], own[-1]).astype(np.float32)
    rows, own_rows = draw.integers(0, 9, indptr[-1]), draw.integers(0, 9, own[-1])
    kept = filter_negatives(KEEP, scores, indptr, own_scores, own, rows=rows, positive_rows=own_rows, threads=threads)
    for query in range(len(lengths)):
        part, mine = slice(*indptr[query : query + 2]), slice(*own[query : query + 2])
        places = np.arange(part.stop - part.start)
        expected = below_the_lowest(scores[part], own_scores[mine], places, rows[part], own_rows[mine])
        np.testing.assert_array_equal(kept[part], expected)


ONE = np.array([0, 1])
SCORES, OWN = np.array([0.9, 0.5], np.float32), np.array([0.8], np.float32)


def ask(function, **options):
    return filter_negatives(function, SCORES, 2 * ONE, OWN, ONE, **options)


def test_a_function_takes_the_first_arguments_that_it_wants():
    assert ask(lambda scores: scores < 0.6).tolist() == [False, True]
    assert ask(lambda a, b: a < b.min()).tolist() == [False, True]
    assert ask(lambda a, b, ranks: ranks == 0).tolist() == [True, False]
    assert ask(lambda a, b, c, rows: rows == 7, rows=np.array([3, 7])).tolist() == [False, True]
    with pytest.raises(ConfigError, match="takes rows but rows is None; give it"):
        ask(lambda a, b, c, rows: rows == 7)
    assert ask(lambda a, b, ranks: ranks == 5, ranks=np.array([5, 9])).tolist() == [True, False]


def test_a_function_that_numba_compiled_is_taken_too():
    import numba

    assert ask(numba.njit(lambda scores: scores < 0.6)).tolist() == [False, True]


def unknown_attribute(scores):
    return scores.foo()


def writes(scores):
    scores[0] = 1
    return scores > 0


def number(scores):
    return 1.0


def floats(scores):
    return scores


def shorter(scores):
    return scores[1:] > 0


def raises(scores):
    if scores[0] > 0.95:
        raise ValueError("too good")
    return scores > 0


def beyond(scores):
    return np.array([scores[7] > 0, True])


def imports(scores):
    import json

    return json.loads("[]")


def misplaced(scores, ranks):
    return ranks > 2


def many(a, b, c, d, e, f):  # noqa: PLR0917
    return a > 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            unknown_attribute,
            r"test_user_filter.py:unknown_attribute does not compile: line \d+: Unknown attribute 'foo'",
        ),
        (writes, "test_user_filter.py:writes does not compile: line "),
        (number, "test_user_filter.py:number returns float64 but must return a bool array"),
        (floats, r"floats returns readonly array\(float32, 1d, C\) but must return a bool array"),
        (many, r"many takes \(a, b, c, d, e, f\) but must take the first one to 5 of \(scores, positive_scores, "),
        (imports, r"imports does not compile: Use of unsupported opcode \(IMPORT_NAME\) found"),
        (misplaced, r"misplaced takes \(scores, ranks\) but its ranks would be given positive_scores; take the first"),
        (lambda *scores: scores, "must take the first one to 5 of"),
        (np.sin, "is ufunc but must be a function"),
    ],
)
def test_a_function_that_cannot_be_used_says_why(function, message):
    with pytest.raises(ConfigError, match=message):
        ask(function)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (shorter, "shorter returned an array of another length for query 0, which has 2 candidates; return one bool"),
        (raises, "raises failed for query 37: ValueError: too good"),
        (beyond, "beyond failed for query 0: IndexError: index is out of bounds"),
    ],
)
def test_a_function_that_fails_names_the_query(function, message):
    scores = np.full(100, 0.5, np.float32)
    scores[[74, 90]] = 0.99
    ends = 2 * np.arange(51)
    for threads in (1, 4):
        with pytest.raises(DataError, match=message):
            filter_negatives(function, scores, ends, np.zeros(50, np.float32), np.arange(51), threads=threads)


def test_arrays_that_do_not_fit():
    keep = UserFilter(lambda scores: scores > 0)
    with pytest.raises(DTypeError, match=r"scores is float64 \(2,\) but must be float32"):
        filter_negatives(keep, SCORES.astype(float), 2 * ONE, OWN, ONE)
    with pytest.raises(DTypeError, match=r"indptr is int32 \(2,\) but must be int64"):
        filter_negatives(keep, SCORES, (2 * ONE).astype(np.int32), OWN, ONE)
    with pytest.raises(ShapeError, match="the offsets of scores must rise from 0 to 2"):
        filter_negatives(keep, SCORES, ONE, OWN, ONE)
    with pytest.raises(ShapeError, match="the offsets of rows must rise from 0 to 1"):
        filter_negatives(keep, SCORES, 2 * ONE, OWN, ONE, rows=np.array([1]))
    with pytest.raises(ShapeError, match="indptr has 2 items but positive_indptr has 3"):
        filter_negatives(keep, SCORES, 2 * ONE, OWN, np.array([0, 1, 1]))


def test_files(tmp_path):
    good = tmp_path / "my_filters.py"
    good.write_text("LIMIT = 0.6\n\n\ndef keep(scores):\n    return scores < LIMIT\n")
    assert ask(f"{good}:keep").tolist() == [False, True]
    broken, failing = tmp_path / "broken.py", tmp_path / "failing.py"
    broken.write_text("def keep(:\n")
    failing.write_text("import nothing_of_that_name\n")
    (tmp_path / "text.txt").write_text("x")
    for where, message in {
        f"{good}:kept": r"my_filters.py has no function kept",
        f"{good}:LIMIT": r"my_filters.py:LIMIT is float but must be a function",
        f"{tmp_path}/none.py:keep": r"there is no file .*none.py",
        f"{broken}:keep": r"broken.py fails: SyntaxError",
        f"{failing}:keep": r"failing.py fails: ModuleNotFoundError: No module named 'nothing_of_that_name'",
        f"{tmp_path}/text.txt:keep": r"text.txt is no Python file; give file.py:name",
    }.items():
        with pytest.raises(ConfigError, match=message):
            ask(where)


def test_numba_is_asked_for_where_it_is_missing():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np; from gplfast import filter_negatives; from gplfast.errors import MissingExtraError\n"
        "one = np.array([0, 1])\n"
        "try:\n"
        "    filter_negatives(lambda s: s > 0, np.ones(1, np.float32), one, np.ones(1, np.float32), one)\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "a filter function needs numba: pip install 'gplfast[filter]'"


def test_it_says_what_the_built_in_filters_say():
    draw = np.random.default_rng(0)
    indptr, own = lists(draw.integers(0, 60, 300)), lists(draw.integers(1, 4, 300))
    scores, own_scores = draw.random(indptr[-1], np.float32), draw.random(own[-1], np.float32)

    def keep(scores, positive_scores):
        lowest = np.float64(positive_scores.min())
        return (scores >= 0.02) & (scores + 0.1 <= lowest) & (scores <= lowest - abs(lowest) * 0.05)

    limits = {"min_score": 0.02, "absolute_margin": 0.1, "relative_margin": 0.05}
    expected = gplfast.margins(own_scores, own, scores, indptr, **limits).kept
    np.testing.assert_array_equal(filter_negatives(keep, scores, indptr, own_scores, own), expected)
