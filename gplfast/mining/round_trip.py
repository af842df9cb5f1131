"""Round-trip consistency (Dai et al. 2022, Promptagator, section 3.2): a query should find its own passage again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gplfast.mining.bm25 import Ranking
    from gplfast.mining.lists import Int64, Lists


def returns(others: Ranking, scores: npt.NDArray[np.float32], rows: Int64, top: int) -> npt.NDArray[np.bool_]:
    """Whether each query's passage would be among the `top` best of a search without exclusions.

    It is if the last of the `top` best others, by (score descending, row ascending), comes behind it: so the search
    that leaves the passage out answers this too.

    Args:
        others: What a search found that never returns the passages: at least `top` columns, or one for each passage of
            the corpus.
        scores: float32 (n_queries,), of each query with its passage, equal to the bit to what a search gives; NaN where
            a search never returns the passage.
        rows: int64 (n_queries,), the passages.
        top: At least 1.

    Returns:
        bool (n_queries,). Passages that `others` leaves out too, such as copies of the passage, do not count.
    """
    last = min(top, others.ids.shape[1]) - 1
    last_scores, last_ids = others.scores[:, last], others.ids[:, last]
    before = (scores > last_scores) | ((scores == last_scores) & (rows < last_ids))
    found: npt.NDArray[np.bool_] = ~np.isnan(scores) & (before | (last_ids < 0))
    return found


def any_returns(others: Ranking, scores: npt.NDArray[np.float32], positives: Lists, top: int) -> npt.NDArray[np.bool_]:
    """Whether each query finds one of its positives again; they do not compete with each other.

    Args:
        others: As of `returns`, of each query.
        scores: float32 (n,), of each query with each of its positives, in the order of `positives.rows`.
        positives: The passages of each query.
        top: At least 1.

    Returns:
        bool (n_queries,).
    """
    owners = np.repeat(np.arange(len(others.ids)), positives.lengths)
    last = slice(min(top, others.ids.shape[1]) - 1, min(top, others.ids.shape[1]))  # the only column that is looked at
    of_owner = others._replace(scores=others.scores[owners, last], ids=others.ids[owners, last])
    found = returns(of_owner, scores, positives.rows, 1)
    return np.bincount(owners[found], minlength=len(others.ids)) > 0
