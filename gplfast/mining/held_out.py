"""Passages whose queries no training sees: what a model is chosen by, instead of by judged queries."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from gplfast.errors import DataError
from gplfast.mining.lists import same_text_groups
from gplfast.mining.sampling import permutation

if TYPE_CHECKING:
    from gplfast.mining.lists import Int64
    from gplfast.store.corpus import Corpus
    from gplfast.store.generated import GeneratedQueries

_STAGE = "held out"


class HeldOut(NamedTuple):
    """Generated queries parted by passage.

    Attributes:
        train: bool (n_queries,), those that are trained on.
        dev: bool (n_queries,), those that a student is measured with. What is neither belongs to a held-out passage but
            has the text of a query that is trained on.
        groups: int64 (n_passages,), equal for passages of equal text (see `same_text_groups`).
    """

    train: npt.NDArray[np.bool_]
    dev: npt.NDArray[np.bool_]
    groups: Int64


def held_out(corpus: Corpus, queries: GeneratedQueries, share: float, seed: int) -> HeldOut:
    """Draw the passages whose queries are held out of training, by counters (seed, "held out").

    Passages of equal text are held out together, so no text is a positive on both sides; they may still be negatives,
    as the passages of a test set are. The draw follows from the passages that have queries, the share and the seed.

    Args:
        corpus: The passages.
        queries: The generated queries.
        share: Of the different passage texts that have queries: how many are held out, rounded, at least one.
        seed: The run's seed.

    Raises:
        DataError: Fewer than two different passages have queries, or every held-out query is also one of training.
    """
    passages = same_text_groups(corpus.texts())
    own = passages[queries.passages]
    having = np.unique(own)
    if len(having) < 2:
        raise DataError(
            f"cannot hold queries out: {len(having)} different passages have queries but 2 are needed; "
            "set dev_share to 0, or give more passages"
        )
    n_held = min(max(1, math.floor(share * len(having) + 0.5)), len(having) - 1)
    held = np.isin(own, having[permutation(seed, _STAGE, 0, len(having))[:n_held]])
    texts = same_text_groups(queries.texts)
    dev = held & ~np.isin(texts, texts[~held])
    if not dev.any():
        raise DataError(
            f"cannot hold queries out: the {int(held.sum())} queries of {n_held} held-out passages are all queries of "
            "other passages too; hold more out (dev_share), or look at the generated queries"
        )
    return HeldOut(~held, dev, passages)


def searched(found: HeldOut, queries: GeneratedQueries, n_passages: int, seed: int) -> Int64:
    """The passages that held-out queries are searched in: their own, and others drawn by counters.

    Args:
        found: What is held out.
        queries: The generated queries.
        n_passages: How many passages at most, 0 for all; the held-out queries' own are always among them.
        seed: The run's seed.

    Returns:
        int64, ascending rows, one for each different text (the first that has it).
    """
    different = np.unique(found.groups)
    own = np.unique(found.groups[queries.passages[found.dev]])
    if not n_passages or n_passages >= len(different):
        return different
    others = np.setdiff1d(different, own, assume_unique=True)
    order = permutation(seed, _STAGE, 1, len(others))
    return np.sort(np.concatenate([own, others[order[: max(0, n_passages - len(own))]]]))
