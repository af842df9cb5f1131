"""Margins of negatives over ragged lists, and the choice of negatives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from gplfast.errors import ConfigError
from gplfast.ops.extension import _core, integer, positive, threads_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
        threads_of("margins", threads),
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
    first, end = (None if rank is None else integer("margins", "a rank", rank) for rank in ranks)
    if first is None or first < 0 or (end is not None and end <= first):
        message = f"margins: ranks is ({first}, {end}) but must be 0 <= first < end"
        raise ConfigError(message)
    if not 0 < temperature < math.inf:
        message = f"margins: temperature is {temperature} but must be above 0 and finite"
        raise ConfigError(message)
    if not 0 <= integer("margins", "seed", seed) < 2**64:
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
        "quota": 0 if quota is None else min(positive("margins", "quota", quota), largest),
        "sampling": sampling,
        "temperature": temperature,
        "seed": seed,
        **{name: math.nan if value is None else value for name, value in limits.items()},
    }
