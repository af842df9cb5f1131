"""Which (query, positive, negative) is visited when: counters as random numbers, so any row can be drawn alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gplfast.mining.lists import Int64, Lists

_WORD = np.uint64(32)


class Visits(NamedTuple):
    """Rows of training data: query, positive and negative, each int64 (n_rows,)."""

    queries: Int64
    positives: Int64
    negatives: Int64


def words(seed: int, stage: str, item: int, n: int) -> npt.NDArray[np.uint64]:
    """N random 64-bit words of the stream (seed, stage, item); raw Philox, the same in every numpy version."""
    name = int.from_bytes(stage.encode("utf-8")[:8].ljust(8, b"\0"), "little")
    # The counter's upper words hold the item, its lower words count within the stream.
    generator = np.random.Philox(key=[seed, name], counter=[0, 0, item, 0])
    return np.asarray(generator.random_raw(n), np.uint64) if n else np.empty(0, np.uint64)


def permutation(seed: int, stage: str, item: int, n: int) -> Int64:
    """A permutation of 0..n-1 drawn from the stream (seed, stage, item)."""
    return np.argsort(words(seed, stage, item, n), kind="stable").astype(np.int64)


def below(random: npt.NDArray[np.uint64], limits: Int64) -> Int64:
    """Whole numbers in [0, limit), one per random word, for limits below 2**31 (bias under 2**-32 x limit)."""
    return ((random >> _WORD) * limits.astype(np.uint64) >> _WORD).astype(np.int64)


def visited(positives: Lists, negatives: Lists) -> Int64:
    """The queries that have a positive and a negative, ascending."""
    return np.flatnonzero((positives.lengths > 0) & (negatives.lengths > 0)).astype(np.int64)


def visits(positives: Lists, negatives: Lists, *, seed: int, start: int, stop: int) -> Visits:
    """Rows start..stop-1 of the endless sequence of visits (GPL, section 3).

    Per epoch every query is visited once, in an order of its own, with one positive and one negative drawn uniformly.

    Args:
        positives: Positive passages of each query.
        negatives: Negative passages of each query, each once (see `union`).
        seed: The run's seed.
        start: First row.
        stop: Row after the last one.

    Returns:
        The rows. Queries without a positive or negative are never visited; no rows when there is no query at all.
        Any range gives the same rows as the same part of a longer one.
    """
    eligible = visited(positives, negatives)
    n = len(eligible)
    if n == 0 or stop <= start:
        nothing = np.empty(0, np.int64)
        return Visits(nothing, nothing, nothing)
    parts = []
    for epoch in range(start // n, (stop - 1) // n + 1):
        order = eligible[permutation(seed, "visits", 2 * epoch, n)]
        draws = words(seed, "visits", 2 * epoch + 1, 2 * n)
        positive = positives.rows[positives.indptr[order] + below(draws[:n], positives.lengths[order])]
        negative = negatives.rows[negatives.indptr[order] + below(draws[n:], negatives.lengths[order])]
        cut = slice(max(start - epoch * n, 0), min(stop - epoch * n, n))
        parts.append((order[cut], positive[cut], negative[cut]))
    queries, chosen_positives, chosen_negatives = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Visits(queries, chosen_positives, chosen_negatives)
