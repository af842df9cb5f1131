"""A teacher's order of the passages that another retriever found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gplfast.mining.bm25 import Ranking

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gplfast.mining.scoring import PairScorer, Progress


def rerank(
    first: Ranking,
    queries: Sequence[str],
    passage_texts: Callable[[np.ndarray[tuple[int], np.dtype[np.int64]]], list[str]],
    scorer: PairScorer,
    top: int,
    *,
    progress: Progress | None = None,
) -> Ranking:
    """Order the best `top` passages of each query by the teacher's score; the rest stay below, in their old order.

    Args:
        first: The ranking to improve.
        queries: The query texts.
        passage_texts: Gives the texts of passage rows.
        scorer: The teacher.
        top: How many passages per query it reads.
        progress: Called with (pairs done, pairs to score).

    Returns:
        The same passages in a new order, with scores that fall along it: the teacher's, and below the lowest of them,
        in steps of one, for the rest.
    """
    head = first.ids[:, :top]
    query_of, position = np.nonzero(head >= 0)
    rows, passage_of = np.unique(head[query_of, position], return_inverse=True)
    scored = scorer.score(
        queries, passage_texts(rows), query_of.astype(np.int64), passage_of.astype(np.int64), progress
    )
    scores, ids = np.full_like(first.scores, -np.inf), first.ids.copy()
    for query in range(len(ids)):
        values = scored[_slice(query_of, query)]
        n_head, n_all = len(values), int((ids[query] >= 0).sum())
        if not n_all:
            continue
        order = np.lexsort((ids[query, :n_head], -values))
        ids[query, :n_head] = ids[query, :n_head][order]
        scores[query, :n_head] = values[order]
        lowest = values.min() if n_head else np.float32(0.0)
        scores[query, n_head:n_all] = lowest - 1.0 - np.arange(n_all - n_head, dtype=np.float32)
    return Ranking(scores, ids)


def _slice(sorted_queries: np.ndarray[tuple[int], np.dtype[np.int64]], query: int) -> slice:
    start, stop = np.searchsorted(sorted_queries, [query, query + 1])
    return slice(int(start), int(stop))
