"""Which (query, positive, negative) is visited when: counters as random numbers, so any row can be drawn alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gplfast.mining.lists import Int64, Lists

_WORD = np.uint64(32)


class Visits(NamedTuple):
    """Rows of training data: query and positive int64 (n_rows,), negative the same or int64 (n_rows, n_negatives)."""

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


def visits(positives: Lists, negatives: Lists, *, seed: int, start: int, stop: int, n_negatives: int = 1) -> Visits:
    """Rows start..stop-1 of the endless sequence of visits (GPL, section 3).

    Per epoch every query is visited once, in an order of its own, with one positive and `n_negatives` different
    negatives drawn uniformly. A query that has fewer repeats all of its own in the order drawn, so that it is visited
    as often as the others.

    Args:
        positives: Positive passages of each query.
        negatives: Negative passages of each query, each once (see `union`).
        seed: The run's seed.
        start: First row.
        stop: Row after the last one.
        n_negatives: Negatives of a row.

    Returns:
        The rows; their negatives are (n_rows,) for one negative and (n_rows, n_negatives) for more, the first column
        being those of one. Queries without a positive or negative are never visited; no rows when there is no query at
        all. Any range gives the same rows as the same part of a longer one.
    """
    eligible = visited(positives, negatives)
    n = len(eligible)
    if n == 0 or stop <= start:
        nothing = np.empty(0, np.int64)
        return Visits(nothing, nothing, nothing if n_negatives == 1 else np.empty((0, n_negatives), np.int64))
    parts = []
    for epoch in range(start // n, (stop - 1) // n + 1):
        order = eligible[permutation(seed, "visits", 2 * epoch, n)]
        draws = words(seed, "visits", 2 * epoch + 1, (1 + n_negatives) * n)
        positive = positives.rows[positives.indptr[order] + below(draws[:n], positives.lengths[order])]
        places = _different(draws[n:].reshape(n_negatives, n), negatives.lengths[order])
        negative = negatives.rows[negatives.indptr[order] + places].T.reshape(n, *([n_negatives] * (n_negatives > 1)))
        cut = slice(max(start - epoch * n, 0), min(stop - epoch * n, n))
        parts.append((order[cut], positive[cut], negative[cut]))
    queries, chosen_positives, chosen_negatives = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Visits(queries, chosen_positives, chosen_negatives)


def _different(random: npt.NDArray[np.uint64], lengths: Int64) -> Int64:
    """Different places in lists of these lengths, uniformly and in random order; repeated where a list is too short.

    Args:
        random: uint64 (n_draws, n_lists).
        lengths: int64 (n_lists,), all above 0.

    Returns:
        int64 (n_draws, n_lists).
    """
    places = np.empty(random.shape, np.int64)
    for draw, row in enumerate(random):
        # The r-th of the places that are still free: each taken one at or below it moves it up by one.
        place = below(row, np.maximum(lengths - draw, 1))
        for taken in np.sort(places[:draw], axis=0):
            place += place >= taken
        places[draw] = np.where(draw < lengths, place, places[draw % lengths, np.arange(len(lengths))])
    return places
