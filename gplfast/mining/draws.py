"""Negatives drawn by counters: rows of a pool for each query, and some of a query's candidates."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from gplfast.mining.bm25 import Ranking
from gplfast.mining.sampling import below, permutation, words

if TYPE_CHECKING:
    from gplfast.mining.lists import Int64, Lists

_STAGE = "mine"
# At least so many times the wanted rows must be there for a draw with rejection; below, all are put in order.
_SPARSE = 4


def drawn(pool: Int64, n: int, excluded: Lists, *, seed: int, column: str, first_query: int) -> Ranking:
    """Rows of a pool, drawn uniformly and without repeats for each query, none of them excluded.

    Args:
        pool: int64 (n_pool,), ascending and different, at least one.
        n: Rows per query; all that are left where there are fewer.
        excluded: Rows of each query that are never drawn; they need not be in the pool.
        seed: The run's seed.
        column: The source; each has draws of its own.
        first_query: Row of the first of these queries: the draws of a query depend on its row alone.

    Returns:
        Rows in the order of the draw, padding -1; scores NaN, as nothing ranked them, padding -inf.
    """
    ids = np.full((len(excluded.indptr) - 1, n), -1, np.int64)
    for number in range(len(ids)):
        never = np.unique(excluded.list(number))
        places = np.searchsorted(pool, never)
        taken = places[pool[np.minimum(places, len(pool) - 1)] == never]
        free = _distinct(len(pool) - len(taken), n, seed, _item(column, first_query + number))
        # The j-th row that is not taken: every taken one before it moves it on.
        ids[number, : len(free)] = pool[free + np.searchsorted(taken - np.arange(len(taken)), free, "right")]
    return Ranking(np.where(ids < 0, -np.inf, np.nan).astype(np.float32), ids)


def shuffled(candidates: Ranking, *, seed: int, column: str, first_query: int) -> tuple[Ranking, Int64]:
    """The candidates of each query in random order, padding (-1, anywhere before) last, and the place each had before.

    Args:
        candidates: (n_queries, n_candidates).
        seed: The run's seed.
        column: The source; each has draws of its own.
        first_query: Row of the first of these queries: the order depends on the query's row and its candidates alone.
    """
    order = np.argsort(candidates.ids < 0, axis=1, kind="stable")
    for number, n_there in enumerate((candidates.ids >= 0).sum(axis=1).tolist()):
        places = permutation(seed, _STAGE, _item(column, first_query + number), n_there)
        order[number, :n_there] = order[number, places]
    return _taken(candidates, order), order


def listed(lists: Lists) -> Ranking:
    """Lists as candidates in their order, scores NaN, padded to the longest."""
    ids = np.full((len(lists.lengths), max(1, int(lists.lengths.max(initial=0)))), -1, np.int64)
    ids[np.arange(ids.shape[1]) < lists.lengths[:, None]] = lists.rows
    return Ranking(np.where(ids < 0, -np.inf, np.nan).astype(np.float32), ids)


def first(candidates: Ranking, n: int) -> Ranking:
    """The first `n` candidates of each query; padding may be anywhere before and is last after."""
    return _taken(candidates, np.argsort(candidates.ids < 0, axis=1, kind="stable")[:, :n])


def best_first(chosen: Ranking) -> Ranking:
    """The same, of each query by (score descending, row ascending), padding last."""
    return _taken(chosen, np.lexsort((chosen.ids, -chosen.scores, chosen.ids < 0), axis=1))


def _taken(ranking: Ranking, order: Int64) -> Ranking:
    return Ranking(np.take_along_axis(ranking.scores, order, 1), np.take_along_axis(ranking.ids, order, 1))


def _distinct(n_rows: int, n: int, seed: int, item: int) -> Int64:
    """Min(n, n_rows) different numbers below n_rows in random order."""
    if n_rows <= _SPARSE * n:
        return permutation(seed, _STAGE, item, n_rows)[:n]
    n_words = n
    while True:  # fewer than one in four is a repeat: two or three rounds
        n_words += n // 2 + 8
        numbers = below(words(seed, _STAGE, item, n_words), np.full(n_words, n_rows, np.int64))
        _, where = np.unique(numbers, return_index=True)
        if len(where) >= n:
            first: Int64 = numbers[np.sort(where)[:n]]
            return first


def _item(column: str, query: int) -> int:
    """A stream for each (source, query), whatever other sources there are."""
    return zlib.crc32(column.encode("utf-8")) << 32 | query
