"""Hard positives: of several positives the one that the retriever finds last.

The hardest positive of FaceNet (Schroff et al. 2015, section 3.2) and of batch-hard triplets (Hermans et al. 2017),
over all of a query's positives instead of those in a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gplfast.mining.lists import Int64, Lists


def hardest(scores: npt.NDArray[np.float32], positives: Lists) -> Int64:
    """The positive of each query with the lowest score; of equal ones the one with the highest row.

    That is the one a search by (score descending, row ascending) returns last. One without a score (NaN: never
    returned) counts as lower than all others.

    Args:
        scores: float32 (n,), of each query with each of its positives.
        positives: The passages of each query.

    Returns:
        int64 (n_queries,), -1 where a query has no positive.
    """
    owners = np.repeat(np.arange(len(positives.indptr) - 1), positives.lengths)
    order = np.lexsort((-positives.rows, np.where(np.isnan(scores), -np.inf, scores), owners))
    first = positives.indptr[:-1][positives.lengths > 0]
    found = np.full(len(positives.indptr) - 1, -1, np.int64)
    found[positives.lengths > 0] = positives.rows[order[first]]
    return found
