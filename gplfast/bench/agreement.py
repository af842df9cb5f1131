"""How far two systems agree: order of scores, directions of vectors, neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gplfast.ops import search

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating]

NEIGHBOURS = 10
_MOST_QUERIES = 256


def spearman(first: Floats, second: Floats) -> float:
    """Rank correlation of (n,) and (n,) scores, ties at their mean rank; 1 where all scores of both are the same."""
    ranks = _ranks(first), _ranks(second)
    constant = [bool((rank == rank[0]).all()) for rank in ranks]
    return float(all(constant)) if any(constant) else float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: Floats) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def cosines(first: Floats, second: Floats) -> NDArray[np.float64]:
    """(n,) cosines of the rows of two (n, dim) matrices; 1 where both are zero."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products: NDArray[np.float64] = np.einsum("ij,ij->i", a, b) / np.where(lengths == 0, 1, lengths)
    products[lengths == 0] = (a == b).all(axis=1)[lengths == 0]
    return products


def neighbour_overlap(first: NDArray[np.float32], second: NDArray[np.float32], threads: int) -> float:
    """Share of the ten nearest other rows by cosine that two embeddings of the same texts have in common.

    Of the first 256 rows, each against all; of fewer than eleven rows, of as many neighbours as there are.
    """
    n_queries, k = min(len(first), _MOST_QUERIES), min(NEIGHBOURS, len(first) - 1)
    if k < 1:
        return 1.0
    own = np.arange(n_queries + 1, dtype=np.int64), np.arange(n_queries, dtype=np.int64)
    found = [
        search(rows[:n_queries], rows, k, metric="cosine", threads=threads, exclude=own).ids for rows in (first, second)
    ]
    return sum(len(np.intersect1d(*lists)) for lists in zip(*found, strict=True)) / (n_queries * k)
