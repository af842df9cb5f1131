"""Margins of ragged lists: ours, and NumPy and numba doing the same."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gplfast.bench.harness import OURS, Peer, PeerError, System
from gplfast.ops import margins

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gplfast.bench.workloads import Lists

Reference = Literal["min", "mean", "max", "first"]
# In the order in which they are applied, after NaN and rank.
LIMITS = ("min_score", "max_score", "absolute_margin", "relative_margin")
REASONS = ("nan", "rank", *LIMITS)
# Entries of a block of the NumPy peer: its temporaries fit a core's cache, or are fewer and larger; both are tried.
BLOCK_ENTRIES = (1 << 15, 1 << 18)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Margins of all negatives, and which stay.

    Attributes:
        lists: The scores.
        reference: Of the positives.
        ranks: As `gplfast.margins` takes them.
        limits: Name of LIMITS to its value, for those that are on.
        threads: Of every system.
    """

    lists: Lists
    reference: Reference
    ranks: tuple[int, int | None]
    limits: dict[str, float]
    threads: int

    @property
    def shape(self) -> dict[str, Any]:
        """As the result names it."""
        return {
            "n_queries": len(self.lists.positive_indptr) - 1,
            "n_negatives": len(self.lists.negative_scores),
            "n_positives": len(self.lists.positive_scores),
            "reference": self.reference,
            "ranks": list(self.ranks),
            **self.limits,
        }

    @property
    def n_bytes(self) -> int:
        """What must be read and written once: all lists, 4 bytes of margin and 1 of choice for each negative."""
        return self.lists.n_bytes + 5 * len(self.lists.negative_scores)


def ours(problem: Problem) -> System:
    """Our margins."""
    lists = problem.lists

    def call() -> Any:
        return margins(
            lists.positive_scores,
            lists.positive_indptr,
            lists.negative_scores,
            lists.negative_indptr,
            reference=problem.reference,
            ranks=problem.ranks,
            threads=problem.threads,
            min_score=problem.limits.get("min_score"),
            max_score=problem.limits.get("max_score"),
            absolute_margin=problem.limits.get("absolute_margin"),
            relative_margin=problem.limits.get("relative_margin"),
        )

    return System(OURS, {"": call})


def _references(problem: Problem) -> Any:
    """(n_queries,) float64 by reduceat; every query must have a positive."""
    scores, starts = problem.lists.positive_scores, problem.lists.positive_indptr[:-1]
    if problem.reference == "first":
        return scores[starts].astype(np.float64)
    if problem.reference == "mean":
        counts = np.diff(problem.lists.positive_indptr)
        return np.add.reduceat(scores.astype(np.float64), starts) / counts
    lowest = {"min": np.minimum, "max": np.maximum}[problem.reference]
    return lowest.reduceat(scores, starts).astype(np.float64)


def _numpy(problem: Problem) -> System:
    """Vectorised over blocks of queries, which a pool of threads works on: NumPy lets go of the GIL."""
    indptr, scores = problem.lists.negative_indptr, problem.lists.negative_scores
    n_queries, n_entries = len(indptr) - 1, len(scores)

    def call(block_entries: int) -> Any:
        values = _references(problem)
        result, kept = np.empty(n_entries, np.float32), np.empty(n_entries, bool)

        def part(first: int, end: int) -> Any:
            span = slice(int(indptr[first]), int(indptr[end]))
            return _numpy_part(problem, values, (first, end), result[span], kept[span])

        borders = np.searchsorted(indptr, np.arange(0, n_entries, block_entries))
        borders = np.unique(np.append(borders, n_queries))
        with ThreadPoolExecutor(problem.threads) as pool:
            dropped = sum(pool.map(part, borders[:-1], borders[1:]), np.zeros(len(REASONS), np.int64))
        return result, kept, dict(zip(REASONS, dropped.tolist(), strict=True))

    return System("numpy", {f"{size} entries a block": partial(call, size) for size in BLOCK_ENTRIES})


def _numpy_part(problem: Problem, values: Any, queries: tuple[int, int], result: Any, kept: Any) -> Any:
    """Margins and choices of the queries first <= query < end, and how many each filter dropped."""
    first, end = queries
    indptr = problem.lists.negative_indptr[first : end + 1]
    counts = np.diff(indptr)
    score = problem.lists.negative_scores[indptr[0] : indptr[-1]].astype(np.float64)
    value = np.repeat(values[first:end], counts)
    np.subtract(value, score, out=result, casting="same_kind")
    limits = problem.limits
    tests: dict[str, Callable[[], Any]] = {"nan": lambda: ~np.isnan(result)}
    if problem.ranks != (0, None):
        start, stop = problem.ranks
        rank = np.arange(len(score)) - np.repeat(indptr[:-1] - indptr[0], counts)
        tests["rank"] = lambda: (rank >= start) & (rank < (len(score) if stop is None else stop))
    if "min_score" in limits:
        tests["min_score"] = lambda: score >= limits["min_score"]
    if "max_score" in limits:
        tests["max_score"] = lambda: score <= limits["max_score"]
    if "absolute_margin" in limits:
        tests["absolute_margin"] = lambda: score + limits["absolute_margin"] <= value
    if "relative_margin" in limits:
        tests["relative_margin"] = lambda: score <= value - np.abs(value) * limits["relative_margin"]
    kept[:] = True
    dropped = np.zeros(len(REASONS), np.int64)
    left = len(score)
    for reason, test in tests.items():
        kept &= test()
        stay = int(np.count_nonzero(kept))
        dropped[REASONS.index(reason)] = left - stay
        left = stay
    return dropped


@cache
def _numba_kernel(on: tuple[bool, ...]) -> Any:
    """Compiled for the filters that are on (LIMITS), without branches: each counts what those before it left."""
    import numba

    low_on, high_on, absolute_on, relative_on = on

    @numba.njit(parallel=True, nogil=True, error_model="numpy")
    def kernel(lists: tuple[Any, ...], settings: tuple[Any, ...], result: Any, kept: Any, parts: int) -> Any:
        values, indptr, scores = lists
        first, end, min_score, max_score, absolute_margin, relative_margin = settings
        n_queries = len(indptr) - 1
        left = np.zeros((parts, 8), np.int64)  # a row has its own cache line
        for part in numba.prange(parts):
            number = rank = low = high = absolute = relative = 0
            for query in range(part * n_queries // parts, (part + 1) * n_queries // parts):
                value, start = values[query], indptr[query]
                limit = value - abs(value) * relative_margin
                for j in range(start, indptr[query + 1]):
                    score = np.float64(scores[j])
                    margin = value - score
                    result[j] = margin
                    stays = not np.isnan(margin)
                    number += stays
                    stays &= (j - start >= first) & (j - start < end)
                    rank += stays
                    stays &= not (low_on & (score < min_score))
                    low += stays
                    stays &= not (high_on & (score > max_score))
                    high += stays
                    stays &= not (absolute_on & (score + absolute_margin > value))
                    absolute += stays
                    stays &= not (relative_on & (score > limit))
                    relative += stays
                    kept[j] = stays
            left[part, 0], left[part, 1], left[part, 2] = number, rank, low
            left[part, 3], left[part, 4], left[part, 5] = high, absolute, relative
        return left

    return kernel


def _numba(problem: Problem) -> System:
    lists = problem.lists
    kernel = _numba_kernel(tuple(name in problem.limits for name in LIMITS))
    first, end = problem.ranks
    limits = (problem.limits.get(name, 0.0) for name in LIMITS)
    settings = (first, np.iinfo(np.int64).max if end is None else end, *limits)

    def call(parts: int) -> Any:
        n_entries = len(lists.negative_scores)
        result, kept = np.empty(n_entries, np.float32), np.empty(n_entries, bool)  # of large pages, unlike numba's own
        values = _references(problem)
        left = kernel((values, lists.negative_indptr, lists.negative_scores), settings, result, kept, parts)
        counts = [len(result), *left.sum(axis=0)[: len(REASONS)].tolist()]
        return result, kept, dict(zip(REASONS, (np.diff(counts) * -1).tolist(), strict=True))

    sizes = {"a part a thread": problem.threads, "16 parts a thread": 16 * problem.threads}
    return System("numba", {setting: partial(call, parts) for setting, parts in sizes.items()})


PEERS: Sequence[Peer] = (Peer("numpy", (), _numpy), Peer("numba", ("numba",), _numba))


def check(problem: Problem) -> Callable[[System, Any, Any], dict[str, float]]:
    """Another's margins, choices and counts are ours, bit for bit; only a mean may be added up in another order."""

    def compare(system: System, expected: Any, found: Any) -> dict[str, float]:
        differs = int(np.count_nonzero((found[0] != expected[0]) & ~(np.isnan(found[0]) & np.isnan(expected[0]))))
        if problem.reference == "mean":
            differs = int(np.count_nonzero(~np.isclose(found[0], expected[0], rtol=1e-6, atol=1e-6, equal_nan=True)))
        other = int(np.count_nonzero(found[1] != expected[1]))
        if differs or (other and problem.reference != "mean"):
            raise PeerError(f"{system.name}: {differs} margins and {other} choices differ from {OURS}")
        counts = {reason: n for reason, n in expected[2].items() if reason in REASONS}
        if problem.reference != "mean" and found[2] != {**found[2], **counts}:
            raise PeerError(f"{system.name}: drops {found[2]} but {OURS} drops {counts}")
        return {"choices_that_differ": other}

    return compare
