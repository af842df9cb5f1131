"""A user's own filter: a Python function over one query's candidates, compiled with numba and run over all queries.

The file that a user names is run as a program, with the user's rights: it is only ever taken from the user's own
settings or arguments, never from an artifact, a model or a corpus.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gplfast.errors import ConfigError, DataError, DTypeError, MissingExtraError, ShapeError
from gplfast.mining.filters import Scored
from gplfast.mining.lists import Lists
from gplfast.store.manifest import file_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# What a function may take, in this order, as many of them as it wants; all of one query.
ARGUMENTS = ("scores", "positive_scores", "ranks", "rows", "positive_rows")
# Parts of the queries per thread, so that threads which were held up do not hold up the others.
_PARTS = 8


class UserFilter:
    """A function that says which of one query's candidates stay.

    It takes the first one to five of these arrays of a query, none of which it can write to, and returns bool (n,):

        scores           float32 (n,), of the candidates, as the retriever gave them
        positive_scores  float32 (m,), of the query's positives; NaN where the retriever has none
        ranks            int64 (n,), place of each candidate in the search, from 0; gaps are what is not shown
        rows             int64 (n,), passage row of each candidate
        positive_rows    int64 (m,), passage rows of the positives

    Candidates come best first; n and m may be 0. The function is compiled with `numba.njit` in nopython mode, with
    indices checked and divisions by zero as NumPy has them, and called from several threads at once.

    Example:
        def keep(scores, positive_scores):
            return scores < positive_scores.min() - 0.05
    """

    def __init__(self, function: Callable[..., Any], name: str = "") -> None:
        """Nothing is compiled yet.

        Args:
            function: A Python function, or what `numba.njit` made of one.
            name: What messages call it: file.py:name by default.

        Raises:
            ConfigError: It is no Python function, takes none or more than five arguments, or one in another's place.
        """
        plain = getattr(function, "py_func", function)
        if not inspect.isfunction(plain):
            raise ConfigError(
                f"filter function {name or repr(function)} is {type(function).__name__} but must be a function"
            )
        self.name = name or f"{plain.__code__.co_filename}:{plain.__name__}"
        taken = inspect.signature(plain).parameters
        kinds = [item.kind for item in taken.values()]
        if not 1 <= len(kinds) <= len(ARGUMENTS) or set(kinds) - {inspect.Parameter.POSITIONAL_OR_KEYWORD}:
            raise ConfigError(
                f"filter function {self.name} takes {inspect.signature(plain)} but must take the first one to "
                f"{len(ARGUMENTS)} of ({', '.join(ARGUMENTS)})"
            )
        for given, taken_as in zip(ARGUMENTS, taken, strict=False):
            if taken_as in ARGUMENTS and taken_as != given:
                raise ConfigError(
                    f"filter function {self.name} takes {inspect.signature(plain)} but its {taken_as} would be given "
                    f"{given}; take the first one to {len(ARGUMENTS)} of ({', '.join(ARGUMENTS)}), in this order"
                )
        self._function, self.n_arguments = plain, len(kinds)

    @classmethod
    def load(cls, where: str) -> UserFilter:
        """Run a user's file and take a function of it.

        Args:
            where: "file.py:name"; a relative path is taken from the current directory.

        Raises:
            ConfigError: There is no such file or function, or the file fails.
        """
        file, _, name = where.rpartition(":")
        module = _run_file(Path(file), where)
        if not hasattr(module, name):
            raise ConfigError(f"filter function {where}: {file} has no function {name}")
        return cls(getattr(module, name), where)

    def check(self) -> None:
        """Compile the function now, before hours of work.

        Raises:
            ConfigError: It does not compile, or returns something else than a bool array of one axis.
            MissingExtraError: numba is not installed.
        """
        _ = self._kernel

    def __call__(self, candidates: Scored, positives: Scored, ranks: Int64, *, threads: int = 0) -> Bools:
        """Ask the function about every query.

        Args:
            candidates: Of each query, best first.
            positives: Of each query.
            ranks: int64, along the candidates.
            threads: CPU threads, 0 for all; never change the answer.

        Returns:
            bool, along the candidates: what stays.

        Raises:
            ConfigError: It does not compile, or returns something else than a bool array of one axis.
            DataError: It raised an error, or returned an array of another length; the message names the query.
            MissingExtraError: numba is not installed.
        """
        kernel, kept = self._kernel, np.empty(len(ranks), np.bool_)
        shown = (candidates.scores, positives.scores, ranks, candidates.lists.rows, positives.lists.rows)
        arrays = tuple(_frozen(array) for array in shown[: self.n_arguments])
        ends = (_frozen(candidates.lists.indptr), _frozen(positives.lists.indptr))
        n_queries = len(candidates.lists.indptr) - 1
        n_threads = threads or len(os.sched_getaffinity(0))
        borders = np.unique(np.linspace(0, n_queries, n_threads * _PARTS + 1).astype(np.int64))

        def part(start: int, stop: int) -> None:
            try:
                wrong = kernel(arrays, ends, start, stop, kept)
            except Exception as error:
                query = self._failing((arrays, ends), start, stop, kept)
                raise DataError(
                    f"filter function {self.name} failed for query {query}: {type(error).__name__}: {error}"
                ) from error
            if wrong >= 0:
                n = int(np.diff(candidates.lists.indptr[wrong : wrong + 2])[0])
                raise DataError(
                    f"filter function {self.name} returned an array of another length for query {wrong}, which has "
                    f"{n} candidates; return one bool for each"
                )

        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(part, borders[:-1].tolist(), borders[1:].tolist()))
        return kept

    def _failing(self, given: tuple[Any, Any], start: int, stop: int, kept: Bools) -> int:
        """The first query of a part that the function fails for."""
        for query in range(start, stop):
            try:
                self._kernel(*given, query, query + 1, kept)
            except Exception:  # noqa: BLE001 (this is what is looked for)
                return query
        return start

    @functools.cached_property
    def _kernel(self) -> Callable[..., int]:
        numba = _import_numba()
        options = {"nogil": True, "error_model": "numpy", "boundscheck": True}
        function = numba.njit(**options)(self._function)
        floats, ints = (numba.types.Array(kind, 1, "C", readonly=True) for kind in (numba.float32, numba.int64))
        wanted = (floats, floats, ints, ints, ints)[: self.n_arguments]
        try:
            function.compile(wanted)
        except (
            numba.core.errors.NumbaError,
            numba.core.errors.UnsupportedBytecodeError,  # an import, a class: numba has it beside its other errors
            NotImplementedError,
        ) as error:
            raise ConfigError(f"filter function {self.name} does not compile: {_short(error)}") from error
        made = function.overloads[wanted].signature.return_type
        if not (isinstance(made, numba.types.Array) and made.dtype == numba.boolean and made.ndim == 1):
            raise ConfigError(
                f"filter function {self.name} returns {made} but must return a bool array with one value per candidate"
            )
        return _kernel(numba, function, self.n_arguments)


def filter_negatives(
    function: str | Callable[..., Any] | UserFilter,
    scores: npt.NDArray[np.float32],
    indptr: Int64,
    positive_scores: npt.NDArray[np.float32],
    positive_indptr: Int64,
    *,
    rows: Int64 | None = None,
    positive_rows: Int64 | None = None,
    ranks: Int64 | None = None,
    threads: int | None = None,
) -> Bools:
    """Ask a function of your own which candidates stay negatives, query by query, compiled and in parallel.

    Args:
        function: A Python function, "file.py:name" (the file is run as a program), or a `UserFilter` to use a compiled
            one again. See `gplfast.UserFilter` for what it takes and returns.
        scores: (n,) float32; the candidates of query i are `scores[indptr[i]:indptr[i + 1]]`.
        indptr: (n_queries + 1,) int64, from 0, never falling, to n.
        positive_scores: (m,) float32.
        positive_indptr: (n_queries + 1,) int64, from 0, never falling, to m.
        rows: (n,) int64, passage rows; needed when the function takes `rows`.
        positive_rows: (m,) int64; needed when the function takes `positive_rows`.
        ranks: (n,) int64; by default each candidate's place in its list.
        threads: Number of threads; None for every CPU this process may use. Never changes the answer.

    Returns:
        (n,) bool: what stays.

    Raises:
        ConfigError: The function does not compile or returns something else than a bool array; the message names it.
        DataError: It failed for a query, or returned another number of values than the query has candidates.
        ShapeError: The arrays do not fit each other.
        DTypeError: An array has another type or memory order.
        MissingExtraError: numba is not installed.

    Example:
        >>> import numpy as np
        >>> def keep(scores, positive_scores):
        ...     return scores < positive_scores.min() - 0.05
        >>> one = np.array([0, 1])
        >>> filter_negatives(keep, np.array([0.9, 0.5], np.float32), 2 * one, np.array([0.8], np.float32), one)
        array([False,  True])
    """
    made = _as_filter(function)
    given = {ARGUMENTS[3]: rows, ARGUMENTS[4]: positive_rows}
    for name in ARGUMENTS[3 : made.n_arguments]:
        if given[name] is None:
            raise ConfigError(f"filter_negatives: {made.name} takes {name} but {name} is None; give it")
    _check("indptr", indptr, np.int64)
    _check("positive_indptr", positive_indptr, np.int64)
    arrays: tuple[tuple[str, npt.NDArray[Any] | None, type[Any], Int64], ...] = (
        ("scores", scores, np.float32, indptr),
        ("rows", rows, np.int64, indptr),
        ("ranks", ranks, np.int64, indptr),
        ("positive_scores", positive_scores, np.float32, positive_indptr),
        ("positive_rows", positive_rows, np.int64, positive_indptr),
    )
    for what, array, kind, ends in arrays:
        if array is not None:
            _check(what, array, kind)
            _check_lists(what, array, ends)
    if len(indptr) != len(positive_indptr):
        raise ShapeError(
            f"filter_negatives: indptr has {len(indptr)} items but positive_indptr has {len(positive_indptr)}; "
            "both need one per query and one more"
        )
    if ranks is None and made.n_arguments > ARGUMENTS.index("ranks"):
        ranks = np.arange(len(scores), dtype=np.int64) - np.repeat(indptr[:-1], np.diff(indptr))
    candidates = Scored(Lists(indptr, _filled(rows, scores)), scores)
    return made(
        candidates,
        Scored(Lists(positive_indptr, _filled(positive_rows, positive_scores)), positive_scores),
        _filled(ranks, scores),
        threads=threads or 0,
    )


def function_fingerprint(where: str) -> str:
    """Of what "file.py:name" names: the name, and the sha256 of the file. What the file imports is not part of it.

    Raises:
        ConfigError: There is no such file.
    """
    file, _, name = where.rpartition(":")
    if not Path(file).is_file():
        raise ConfigError(f"filter function {where}: there is no file {file}")
    return f"{name} {file_fingerprint(file)}"


def _as_filter(function: str | Callable[..., Any] | UserFilter) -> UserFilter:
    if isinstance(function, UserFilter):
        return function
    return UserFilter.load(function) if isinstance(function, str) else UserFilter(function)


def _filled(rows: Int64 | None, like: npt.NDArray[Any]) -> Int64:
    return np.empty(len(like), np.int64) if rows is None else rows  # never read: the function does not take them


def _check(what: str, array: npt.NDArray[Any], kind: type[Any]) -> None:
    if array.dtype != kind or array.ndim != 1 or not array.flags.c_contiguous:
        raise DTypeError(
            f"filter_negatives: {what} is {array.dtype} {array.shape} but must be {np.dtype(kind)} (n,), C-contiguous; "
            f"call np.ascontiguousarray({what}, np.{np.dtype(kind)})"
        )


def _check_lists(what: str, array: npt.NDArray[Any], indptr: Int64) -> None:
    if not len(indptr) or indptr[0] != 0 or indptr[-1] != len(array) or (np.diff(indptr) < 0).any():
        raise ShapeError(f"filter_negatives: the offsets of {what} must rise from 0 to {len(array)}")


def _run_file(path: Path, where: str) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"filter function {where}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"gplfast_filter_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"filter function {where}: {path} is no Python file; give file.py:name")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # numba looks the module of a function up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"filter function {where}: {path} fails: {type(error).__name__}: {error}") from error
    return module


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _kernel(numba: Any, function: Any, n_arguments: int) -> Callable[..., int]:
    """Queries start <= query < stop; gives the first one whose answer has another length, or -1."""
    # Each array that is cut costs: 159 ns a query of 50 candidates with all five, 113 with the two that were taken.
    takes: dict[int, Callable[..., Any]] = {
        1: lambda a, i, j, k, m: function(a[0][i:j]),  # noqa: ARG005
        2: lambda a, i, j, k, m: function(a[0][i:j], a[1][k:m]),
        3: lambda a, i, j, k, m: function(a[0][i:j], a[1][k:m], a[2][i:j]),
        4: lambda a, i, j, k, m: function(a[0][i:j], a[1][k:m], a[2][i:j], a[3][i:j]),
        5: lambda a, i, j, k, m: function(a[0][i:j], a[1][k:m], a[2][i:j], a[3][i:j], a[4][k:m]),
    }
    stays_of = numba.njit(nogil=True)(takes[n_arguments])

    # Plain threads call it: numba's own (parallel=True) abort the process when two threads use them at once.
    @numba.njit(nogil=True)  # type: ignore[untyped-decorator,unused-ignore]
    def kernel(arrays: tuple[Any, ...], ends: tuple[Any, Any], start: int, stop: int, kept: Any) -> int:
        indptr, own = ends
        for query in range(start, stop):
            part = kept[indptr[query] : indptr[query + 1]]
            stays = stays_of(arrays, indptr[query], indptr[query + 1], own[query], own[query + 1])
            if len(stays) != len(part):
                return query
            for j in range(len(part)):
                part[j] = stays[j]
        return -1

    made: Callable[..., int] = kernel
    return made


def _short(error: Exception, most_characters: int = 400) -> str:
    """What numba says in one line: where it is, without the passes of its compiler."""
    text = str(error).partition("During:")[0]
    lines = [line.strip() for line in text.splitlines() if not line.startswith("Failed in")]
    shown = " ".join(line for line in lines if set(line) - set("^~- "))
    place = re.search(r" at (\S.*) \((\d+)\)", str(error))
    where = f"line {place[2]}: " if place else ""
    return where + (shown if len(shown) <= most_characters else shown[: most_characters - 1] + "…")


def _import_numba() -> Any:
    try:
        import numba
    except ImportError as error:
        raise MissingExtraError("a filter function needs numba: pip install 'gplfast[filter]'") from error
    return numba
