"""Semi-hard candidates (Schroff et al. 2015, FaceNet, section 3.2): farther than the positive, but nearest to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gplfast.mining.bm25 import Ranking

if TYPE_CHECKING:
    from gplfast.mining.lists import Int64, Lists

# A search that did not reach below the positive is repeated this much deeper.
_DEEPER = 8
# Entries of one such search at most (12 bytes each): queries whose positive ranks very low are done few at a time.
_ENTRIES = 1 << 24

Search = Callable[["Int64", int, "Lists"], Ranking]


def limits(scores: npt.NDArray[np.float32], positives: Lists) -> npt.NDArray[np.float32]:
    """Score of the lowest positive of each query.

    Args:
        scores: float32 (n,), of each query with each of its positives.
        positives: The passages of each query.

    Returns:
        float32 (n_queries,); -inf, nothing is below it, where a search never returns one of them (score NaN), or there
        is none.
    """
    lowest = np.where(positives.lengths > 0, np.float32(np.inf), np.float32(-np.inf))
    owners = np.repeat(np.arange(len(lowest)), positives.lengths)
    np.minimum.at(lowest, owners, np.where(np.isnan(scores), np.float32(-np.inf), scores))
    return lowest


def below_positive(
    search: Search, found: Ranking, limit: npt.NDArray[np.float32], excluded: Lists, *, depth: int, n_docs: int
) -> Ranking:
    """The best `depth` passages of each query that score below its limit; exact, however low the positive ranks.

    Args:
        search: Best passages of some of these queries (their numbers), so many, some excluded.
        found: What was found so far for all of them: a search with `excluded`.
        limit: float32 (n_queries,), see `limits`.
        excluded: Rows per query that are never returned.
        depth: Passages per query at most.
        n_docs: Rows of the corpus.

    Returns:
        Scores and ids, both (n_queries, depth), best first; padding where fewer are below.
    """
    answer = Ranking(np.full((len(limit), depth), -np.inf, np.float32), np.full((len(limit), depth), -1, np.int64))
    _keep(answer, np.arange(len(limit)), found, limit)
    k = found.ids.shape[1]
    # Where a search gave padding there is nothing more.
    open_queries = np.flatnonzero((answer.ids[:, -1] < 0) & (found.ids[:, -1] >= 0) & (limit > -np.inf))
    while len(open_queries) and k < n_docs:
        k = min(_DEEPER * max(k, depth), n_docs)
        step = max(1, _ENTRIES // k)
        more = []
        for start in range(0, len(open_queries), step):
            part = open_queries[start : start + step]
            deeper = search(part, k, excluded.take(part))
            _keep(answer, part, deeper, limit)
            more.append(part[(answer.ids[part, -1] < 0) & (deeper.ids[:, -1] >= 0)])
        open_queries = np.concatenate(more)
    return answer


def _keep(answer: Ranking, queries: Int64, found: Ranking, limit: npt.NDArray[np.float32]) -> None:
    """Put the first columns of `found` that are below the limit into the answer's rows."""
    depth = answer.ids.shape[1]
    below = (found.ids >= 0) & (found.scores < limit[queries, None])
    order = np.argsort(~below, axis=1, kind="stable")[:, :depth]
    there = np.take_along_axis(below, order, 1)
    width = order.shape[1]
    answer.ids[queries, :width] = np.where(there, np.take_along_axis(found.ids, order, 1), -1)
    answer.scores[queries, :width] = np.where(there, np.take_along_axis(found.scores, order, 1), -np.inf)
