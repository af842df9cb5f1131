"""Near duplicates among candidates and positives, by the cosine of their embeddings."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gplfast.mining.lists import owner_of

if TYPE_CHECKING:
    from gplfast.filter_settings import FilterConfig
    from gplfast.mining.lists import Int64, Lists

Bools = npt.NDArray[np.bool_]
# Cosines computed at a time, of pairs of candidates: 64 MiB.
_GRAM_VALUES = 1 << 24
# Pairs of a candidate and a positive at a time: 8 MB for each of the arrays that name them.
_PAIRS = 1 << 20


def near_positives(
    docs: npt.NDArray[Any],
    positives: Lists,
    candidates: Lists,
    alive: Bools,
    threshold: float,
    *,
    groups: Int64 | None = None,
    threads: int = 0,
) -> Bools:
    """Which candidates have an embedding whose cosine to one of their query's positives is above a threshold.

    Args:
        docs: (n_docs, dim) float32 or float16.
        positives: Of each query, any number.
        candidates: Of each query.
        alive: bool (n,), the candidates that are looked at.
        threshold: Compared with the canonical cosine, a float32. A row without a cosine (zeros, NaN) is near nothing.
        groups: int64 (n_docs,), see `corpus_groups`; None: all pairs are compared.
        threads: CPU threads, 0 for all.

    Returns:
        bool (n,).
    """
    from gplfast import ops

    owners = owner_of(candidates)
    at = np.flatnonzero(alive)
    ends = np.cumsum(positives.lengths[owners[at]])
    near = np.zeros(len(alive), np.bool_)
    start = 0
    while start < len(at):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS, side="right")))
        part = at[start:stop]
        starts, repeats = positives.indptr[owners[part]], positives.lengths[owners[part]]
        pairs = np.repeat(part, repeats)
        shifts = np.repeat(starts - (ends[start:stop] - repeats), repeats)
        own = positives.rows[shifts + np.arange(before, ends[stop - 1])]
        rows = candidates.rows[pairs]
        if groups is not None:
            together = groups[own] == groups[rows]
            pairs, own, rows = pairs[together], own[together], rows[together]
        both = np.ascontiguousarray(np.stack([own, rows], axis=1).ravel())
        indptr = 2 * np.arange(len(pairs) + 1, dtype=np.int64)
        found = ops.gram(docs, (indptr, both), triangle=True, threads=threads or None)
        near[pairs[found.values > np.float32(threshold)]] = True
        start = stop
    return near


class Pairs(NamedTuple):
    """Pairs of similar candidates of the same query, by their positions in the lists; both int64 (n_pairs,)."""

    earlier: Int64
    later: Int64


def similar_pairs(
    docs: npt.NDArray[Any],
    candidates: Lists,
    alive: Bools,
    threshold: float,
    *,
    groups: Int64 | None = None,
    threads: int = 0,
) -> Pairs:
    """The pairs of a query's candidates whose embeddings have a cosine above a threshold.

    Args:
        docs: (n_docs, dim) float32 or float16.
        candidates: Of each query.
        alive: bool (n,), the candidates that are looked at.
        threshold: As of `near_positives`.
        groups: int64 (n_docs,), see `corpus_groups`; None: all pairs are compared.
        threads: CPU threads, 0 for all.

    Returns:
        The pairs, by query. Memory: they, and 64 MiB of cosines.
    """
    from gplfast import ops

    if groups is not None:
        alive = alive & _grouped(candidates, alive, groups)
    at = np.flatnonzero(alive)
    indptr = np.searchsorted(at, candidates.indptr).astype(np.int64)
    lengths = np.diff(indptr)
    ends = np.cumsum(lengths * (lengths - 1) // 2)
    found, start = [Pairs(*[np.empty(0, np.int64)] * 2)], 0
    while start < len(lengths):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _GRAM_VALUES, side="right")))
        part = at[indptr[start] : indptr[stop]]
        here = indptr[start : stop + 1] - indptr[start]
        values = ops.gram(docs, (here, candidates.rows[part]), triangle=True, threads=threads or None)
        hits = np.flatnonzero(values.values > np.float32(threshold))
        owner = np.searchsorted(values.indptr, hits, side="right") - 1
        row, column = triangle_places(hits - values.indptr[owner], np.diff(here)[owner])
        found.append(Pairs(part[here[owner] + row], part[here[owner] + column]))
        start = stop
    return Pairs(*(np.concatenate(side) for side in zip(*found, strict=True)))


def triangle_places(numbers: Int64, sizes: Int64) -> tuple[Int64, Int64]:
    """Row and column of the values above the diagonal of square matrices, numbered row by row, all int64 (n,)."""
    # Counted from the end, row r from below holds the values r (r + 1) / 2 and on.
    back = sizes * (sizes - 1) // 2 - 1 - numbers
    below = ((np.sqrt(8.0 * back + 1.0) - 1.0) / 2.0).astype(np.int64)
    below += (below + 1) * (below + 2) // 2 <= back  # a root that was rounded down
    below -= below * (below + 1) // 2 > back
    rows = sizes - 2 - below
    return rows, sizes - 1 - (back - below * (below + 1) // 2)


def greedy(candidates: Lists, alive: Bools, pairs: Pairs) -> Bools:
    """Which candidates stay when each is dropped that is similar to one before it which stays.

    Args:
        candidates: Of each query.
        alive: bool (n,), those that are there.
        pairs: The similar ones.

    Returns:
        bool (n,), some of `alive`.
    """
    kept = alive.copy()
    if not len(pairs.later):
        return kept
    places = pairs.later - candidates.indptr[owner_of(candidates)[pairs.later]]
    order = np.argsort(places, kind="stable")
    earlier, later = pairs.earlier[order], pairs.later[order]
    # One place of all lists at a time: what comes before it is decided.
    borders = np.flatnonzero(np.diff(places[order], prepend=-1, append=np.iinfo(np.int64).max))
    for start, stop in itertools.pairwise(borders.tolist()):
        kept[later[start:stop][kept[earlier[start:stop]]]] = False
    return kept


def corpus_groups(
    docs: npt.NDArray[Any], config: FilterConfig, n_queries: int, n_candidates: int, threads: int = 0
) -> Int64 | None:
    """Groups of passages outside of which no two are near duplicates, or None where they cost more than they save.

    The groups are the connected components of the passages at the lower threshold that is on (`gplfast.dedup`).
    Passages of different groups are not similar, so only those that share a group need be compared: the answer is the
    same with and without. They take n_docs^2 / 2 comparisons once; within lists it is n_candidates^2 / 2 per query.

    Args:
        docs: (n_docs, dim) float32 or float16.
        config: Which filters.
        n_queries: How many queries, of all sources.
        n_candidates: Candidates of each.
        threads: CPU threads, 0 for all.

    Returns:
        int64 (n_docs,) or None.
    """
    from gplfast import ops

    each = n_candidates**2 if config.near_negative < 1.0 else 2 * n_candidates
    if not config.by_vector or len(docs) ** 2 > n_queries * each:
        return None
    threshold = min(config.near_positive, config.near_negative)
    return ops.dedup(docs, threshold, rule="components", threads=threads or None).representative


def _grouped(candidates: Lists, alive: Bools, groups: Int64) -> Bools:
    """Which of the entries that are alive share their group with another one of their list."""
    at = np.flatnonzero(alive)
    keys = np.stack([owner_of(candidates)[at], groups[candidates.rows[at]]], axis=1)
    _, inverse, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    shared = np.zeros(len(alive), np.bool_)
    shared[at] = counts[inverse.reshape(-1)] > 1
    return shared
