"""Scores in float64, to tell a wrong result from float32 rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAIRS_AT_ONCE = 1 << 16


def rounding(dim: int) -> float:
    """How far apart float32 scores of the same pair may be, relative to |query| |document|.

    Errors of a sum of `dim` rounded terms add up like a random walk; eight deviations of it.
    """
    return float(8.0 * np.sqrt(dim) * 2.0**-24)


def pair_scores(
    queries: NDArray[np.float32],
    docs: NDArray[np.float32],
    rows: NDArray[np.int64],
    ids: NDArray[np.int64],
    metric: str,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of the pairs (rows[i], ids[i]), and for each the length that rounding is relative to.

    Returns:
        (n,) float64 scores; (n,) float64: |query| |document| for "ip", 1 for "cosine".
    """
    scores, lengths = np.empty(len(rows)), np.ones(len(rows))
    for start in range(0, len(rows), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        a, b = queries[rows[part]].astype(np.float64), docs[ids[part]].astype(np.float64)
        scores[part] = np.einsum("ij,ij->i", a, b)
        product = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        if metric == "ip":
            lengths[part] = product
        else:
            scores[part] /= np.where(product == 0, 1, product)
    return scores, lengths
