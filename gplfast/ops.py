"""The compiled operations: exact search, near-duplicate removal, margins. The only importer of `_core` and `_cuda`.

Canonical score. The score of two rows is the dot product of the float32 values as stored, accumulated in float64 in
one fixed order and rounded once to float32; for cosine it is divided by the float64 norms before that rounding.
A zero row has cosine 0 with every row; a row with an infinity has none (NaN); a search never returns NaN. Every
function returns the same bits for any instruction set, number of threads and block size. Other libraries' float32
scores differ from these by about 1e-7 of |query| |document|, and so may their order of near ties.

Nothing is copied or converted silently: arrays must be C-contiguous and of the documented type. They may be
memory-mapped and larger than RAM, and are never modified. The GIL is released, and Ctrl-C works, while these run.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from gplfast.errors import ConfigError, DTypeError, MissingExtraError, ShapeError

try:
    from gplfast import _core
except ImportError as error:
    _message = (
        f"gplfast._core, the compiled part, cannot be loaded ({error}); build it with `pip install .` in the source "
        "tree, and do not run Python from there unless gplfast is installed in editable mode"
    )
    raise MissingExtraError(_message) from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Exclude = Sequence[NDArray[np.int64]] | tuple[NDArray[np.int64], NDArray[np.int64]]

Metric = Literal["ip", "cosine"]


class Hits(NamedTuple):
    """What a search found, best first in each row."""

    scores: NDArray[np.float32]
    """(n_queries, k) float32; -inf where fewer than k documents exist."""
    ids: NDArray[np.int64]
    """(n_queries, k) int64 row numbers of documents; -1 where fewer than k exist."""


class Dedup(NamedTuple):
    """Which rows stay, and for whom."""

    representative: NDArray[np.int64]
    """(n_docs,) int64: the row that stays for each row; itself where it stays."""
    kept: NDArray[np.bool_]
    """(n_docs,) bool."""
    n_pairs: int
    """Pairs of rows whose score reaches the threshold, copies included."""


class Margins(NamedTuple):
    """Margins of negatives, and which stay."""

    margins: NDArray[np.float32]
    """(n_negatives,) float32: reference - score, computed in float64 and rounded once. NaN where the negative is NaN,
    where it is the same infinity as the reference, and for the whole query where the reference meets a NaN positive."""
    kept: NDArray[np.bool_]
    """(n_negatives,) bool."""
    dropped: dict[str, int]
    """How many each filter dropped: nan, rank, min_score, max_score, absolute_margin, relative_margin, positive_group,
    negative_group, quota."""


def search(
    queries: NDArray[np.float32],
    docs: NDArray[np.float32],
    k: int,
    *,
    metric: Metric = "ip",
    exclude: Exclude | None = None,
    threads: int | None = None,
) -> Hits:
    """Find the exact k best documents of each query by inner product or cosine.

    Every pair is compared, no score matrix is stored: memory is O(n_queries k) and tiles per thread.

    Args:
        queries: (n_queries, dim) float32, C-contiguous. A query with NaN finds nothing.
        docs: (n_docs, dim) float32, C-contiguous. May be a memory map. Documents whose score is NaN are not returned.
        k: How many documents per query, at least 1. Where fewer exist, rows are padded with id -1 and score -inf.
        metric: "ip" (inner product) or "cosine".
        exclude: Documents never returned, per query: a list with one (n,) int64 array of row numbers for each query,
            or a tuple (indptr (n_queries + 1,) int64, ids (n,) int64). Any order, repeats allowed. k documents come
            back whenever k that are not excluded exist.
        threads: Number of threads; None for every CPU this process may use. Never changes the answer.

    Returns:
        Hits(scores (n_queries, k) float32, ids (n_queries, k) int64), ordered by score descending; equal scores by
        id ascending. Scores are canonical (see the module).

    Raises:
        ShapeError: Dimensions differ, or `exclude` has another number of queries or an id that is not a row.
        DTypeError: An array has another type or memory order; the message says what to call.
        ConfigError: k, metric or threads is out of range.
        UnavailableError: GPLFAST_ISA names an instruction set that is not available.

    Example:
        >>> import numpy as np
        >>> docs = np.eye(3, dtype=np.float32)
        >>> search(docs[:1], docs, k=2).ids
        array([[0, 1]])
    """
    scores, ids = _core.search(
        queries,
        docs,
        _positive("search", "k", k),
        metric,
        _exclude_pair(exclude),
        _threads("search", threads),
    )
    return Hits(scores, ids)


def dedup(
    docs: NDArray[np.float32],
    threshold: float,
    *,
    metric: Metric = "cosine",
    keep: Literal["first", "last"] = "first",
    rule: Literal["components", "greedy", "any-earlier"] = "components",
    threads: int | None = None,
) -> Dedup:
    """Find rows that are near duplicates of rows that stay.

    Two rows are similar when their canonical score, a float32, is at least float32(threshold). All pairs are
    compared exactly; none is missed and none flips by rounding. Rows that are the same bytes are grouped first.
    Memory is O(n_docs) and tiles; pairs are not stored.

    Args:
        docs: (n_docs, dim) float32, C-contiguous. May be a memory map. A row with NaN is similar to nothing.
        threshold: Finite.
        metric: "cosine" or "ip".
        keep: Which of similar rows comes first in the rules below: the lowest row number or the highest.
        rule: "components": connected components of the similar pairs; the first row of each stays (similar to a row
            that is similar is enough). "greedy": in order, a row goes when it is similar to an earlier row that
            stays. "any-earlier": a row goes when it is similar to any earlier row, whether that stays or not.
        threads: Number of threads; None for every CPU this process may use. Never changes the answer.

    Returns:
        Dedup(representative (n_docs,) int64, kept (n_docs,) bool, n_pairs). The representative of a row that goes is
        the first row of its component ("components"), the first row that stays and is similar to it ("greedy"), or
        the representative of the first row that is similar to it ("any-earlier").

    Raises:
        ShapeError: `docs` is not a matrix with at least one column.
        DTypeError: It has another type or memory order; the message says what to call.
        ConfigError: threshold, metric, keep, rule or threads is out of range.
        UnavailableError: GPLFAST_ISA names an instruction set that is not available.
    """
    if not math.isfinite(threshold) or abs(threshold) > float(np.finfo(np.float32).max):
        message = f"dedup: threshold is {threshold} but must be a finite float32"
        raise ConfigError(message)
    if keep not in {"first", "last"}:
        message = f"dedup: keep is {keep!r}; use 'first' or 'last'"
        raise ConfigError(message)
    representative, n_pairs = _core.dedup(docs, threshold, metric, keep == "last", rule, _threads("dedup", threads))
    return Dedup(representative, representative == np.arange(len(representative)), n_pairs)


def margins(
    positive_scores: NDArray[np.float32],
    positive_indptr: NDArray[np.int64],
    negative_scores: NDArray[np.float32],
    negative_indptr: NDArray[np.int64],
    *,
    reference: Literal["min", "mean", "max", "first"] = "min",
    ranks: tuple[int, int | None] = (0, None),
    min_score: float | None = None,
    max_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    positive_groups: NDArray[np.int64] | None = None,
    negative_groups: NDArray[np.int64] | None = None,
    quota: int | None = None,
    sampling: Literal["top", "uniform", "weighted"] = "top",
    temperature: float = 1.0,
    seed: int = 0,
    threads: int | None = None,
) -> Margins:
    """Subtract each negative's score from a reference over its query's positives, and choose negatives.

    The margin is GPL's (Wang et al. 2022, eq. 2). Lists are ragged: the scores of query i are
    `scores[indptr[i]:indptr[i + 1]]`, best first where ranks matter. Filters work in the order of the arguments, and a
    negative counts for the first that drops it. All comparisons are in float64.

    Args:
        positive_scores: (n_positives,) float32.
        positive_indptr: (n_queries + 1,) int64, from 0, never falling, to n_positives.
        negative_scores: (n_negatives,) float32. NaN is dropped and counted.
        negative_indptr: (n_queries + 1,) int64, from 0, never falling, to n_negatives.
        reference: The positives' "min", "mean", "max" or "first" score.
        ranks: Keep the places first <= place < end of each list, counted from 0; None: to its end.
        min_score: Drop lower scores.
        max_score: Drop higher scores.
        absolute_margin: Drop where score + absolute_margin > reference (NV-Retriever's TopK-MarginPos, Moreira et al.
            2024).
        relative_margin: Drop where score > reference - relative_margin |reference| (TopK-PercPos, for any sign).
        positive_groups: (n_positives,) int64: documents of one group are copies of each other, as
            `dedup(...).representative` of their rows has them. Needs negative_groups.
        negative_groups: (n_negatives,) int64. Drop what is of a positive's group, and all but the first of each group
            of those that are left.
        quota: At most so many negatives per query.
        sampling: Which of more than `quota` stay: "top": the highest scores; "uniform": each with the same chance;
            "weighted": drawn without replacement, in proportion to exp(score / temperature). Equal scores: the first.
        temperature: Of "weighted"; above 0 and finite.
        seed: Of the draws, 0 to 2^64 - 1. A draw is a function of (seed, query, place in the list).
        threads: Number of threads; None for every CPU this process may use. Never changes the answer.

    Returns:
        Margins(margins, kept, dropped).

    Raises:
        ShapeError: Offsets or groups do not fit, or a query has negatives and no positive; the message names it.
        DTypeError: An array has another type or memory order; the message says what to call.
        ConfigError: A setting is out of range.

    Example:
        >>> import numpy as np
        >>> one = np.array([0, 1])
        >>> found = margins(np.array([9], np.float32), one, np.array([8, 3, 1], np.float32), 3 * one, absolute_margin=2)
        >>> found.margins, found.kept
        (array([1., 6., 8.], dtype=float32), array([False,  True,  True]))
    """
    if positive_groups is not None and negative_groups is None:
        message = "margins: positive_groups is given but negative_groups is not; give both"
        raise ConfigError(message)
    limits = {
        "min_score": min_score,
        "max_score": max_score,
        "absolute_margin": absolute_margin,
        "relative_margin": relative_margin,
    }
    filters = _margin_filters(ranks, limits, quota, sampling=sampling, temperature=temperature, seed=seed)
    parts = _core.margins(
        positive_scores,
        positive_indptr,
        negative_scores,
        negative_indptr,
        reference,
        positive_groups,
        negative_groups,
        filters,
        _threads("margins", threads),
    )
    return Margins(*parts)


def _margin_filters(
    ranks: tuple[int, int | None],
    limits: dict[str, float | None],
    quota: int | None,
    *,
    sampling: str,
    temperature: float,
    seed: int,
) -> dict[str, float | int | str]:
    first, end = (None if rank is None else _integer("margins", "a rank", rank) for rank in ranks)
    if first is None or first < 0 or (end is not None and end <= first):
        message = f"margins: ranks is ({first}, {end}) but must be 0 <= first < end"
        raise ConfigError(message)
    if not 0 < temperature < math.inf:
        message = f"margins: temperature is {temperature} but must be above 0 and finite"
        raise ConfigError(message)
    if not 0 <= _integer("margins", "seed", seed) < 2**64:
        message = f"margins: seed is {seed} but must be from 0 to 2^64 - 1"
        raise ConfigError(message)
    for name, value in limits.items():
        if value is not None and math.isnan(value):
            message = f"margins: {name} is NaN; give a number, or None for no limit"
            raise ConfigError(message)
    largest = np.iinfo(np.int64).max
    return {
        "first_rank": min(first, largest),
        "end_rank": largest if end is None else min(end, largest),
        "quota": 0 if quota is None else min(_positive("margins", "quota", quota), largest),
        "sampling": sampling,
        "temperature": temperature,
        "seed": seed,
        **{name: math.nan if value is None else value for name, value in limits.items()},
    }


def available_threads() -> int:
    """CPUs this process may use: its affinity, and the quota of its control group."""
    return _core.available_threads()


def info() -> dict[str, object]:
    """Say what the compiled part uses on this machine.

    Returns:
        isa: The instruction set in use. isas: All that are available, the best last. threads: CPUs this process may
        use. cuda: None when the optional module `_cuda` was not built, else what it says about runtime, driver
        (version numbers, 1000 major + 10 minor), devices (names) and error (why there are none).

    Raises:
        UnavailableError: GPLFAST_ISA names an instruction set that is not available.
    """
    return {
        "isa": _core.current_isa(),
        "isas": _core.available_isas(),
        "threads": _core.available_threads(),
        "cuda": _cuda_info(),
    }


def _cuda_info() -> dict[str, object] | None:
    try:
        from gplfast import _cuda  # optional, and slow to load
    except ImportError:
        return None
    return _cuda.info()


def _integer(op: str, name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        message = f"{op}: {name} is {value!r} but must be an integer"
        raise ConfigError(message) from None


def _positive(op: str, name: str, value: int) -> int:
    number = _integer(op, name, value)
    if number < 1:
        message = f"{op}: {name} is {number} but must be at least 1"
        raise ConfigError(message)
    return number


def _threads(op: str, threads: int | None) -> int:
    return _core.available_threads() if threads is None else _positive(op, "threads", threads)


def _exclude_pair(exclude: object) -> tuple[object, object] | None:
    """One array per query becomes (indptr, ids); a tuple is taken as that pair. The extension checks the contents."""
    if exclude is None:
        return None
    if isinstance(exclude, tuple):
        if len(exclude) != 2:
            message = f"search: exclude is a tuple of {len(exclude)} but (indptr, ids) has 2; give a list otherwise"
            raise ShapeError(message)
        return exclude
    if not isinstance(exclude, Sequence):
        message = f"search: exclude is a {type(exclude).__name__} but a list of int64 arrays or (indptr, ids) is needed"
        raise DTypeError(message)
    for query, ids in enumerate(exclude):
        if not isinstance(ids, np.ndarray) or ids.dtype != np.int64 or ids.ndim != 1:
            message = f"search: exclude of query {query} is not a 1-D int64 array; call np.array(ids, np.int64)"
            raise DTypeError(message)
    indptr = np.zeros(len(exclude) + 1, np.int64)
    np.cumsum([len(ids) for ids in exclude], out=indptr[1:])
    return indptr, np.concatenate([np.empty(0, np.int64), *exclude])
