"""Near duplicates among rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from gplfast.errors import ConfigError
from gplfast.ops.extension import _core, threads_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gplfast.ops.exact_search import Floats, Metric


class Dedup(NamedTuple):
    """Which rows stay, and for whom."""

    representative: NDArray[np.int64]
    """(n_docs,) int64: the row that stays for each row; itself where it stays."""
    kept: NDArray[np.bool_]
    """(n_docs,) bool."""
    n_pairs: int
    """Pairs of rows whose score reaches the threshold, copies included."""


def dedup(
    docs: Floats,
    threshold: float,
    *,
    metric: Metric = "cosine",
    keep: Literal["first", "last"] = "first",
    rule: Literal["components", "greedy", "any-earlier"] = "components",
    threads: int | None = None,
) -> Dedup:
    """Find rows that are near duplicates of rows that stay.

    Two rows are similar when their canonical score, a float32, is at least float32(threshold). All pairs are
    compared exactly; none is missed and none flips by rounding. Rows that are the same bytes are grouped first.
    Memory is O(n_docs) and tiles, and a byte an element where the instruction set has an integer scan; pairs are not
    stored.

    Args:
        docs: (n_docs, dim) float32 or float16, C-contiguous. May be a memory map. A row with NaN is similar to nothing.
        threshold: Finite.
        metric: "cosine" or "ip".
        keep: Which of similar rows comes first in the rules below: the lowest row number or the highest.
        rule: "components": connected components of the similar pairs; the first row of each stays (similar to a row
            that is similar is enough). "greedy": in order, a row goes when it is similar to an earlier row that
            stays. "any-earlier": a row goes when it is similar to any earlier row, whether that stays or not.
        threads: Number of threads; None for every CPU this process may use. Never changes the answer.

    Returns:
        Dedup(representative (n_docs,) int64, kept (n_docs,) bool, n_pairs). The representative of a row that goes is
        the first row of its component ("components"), the first row that stays and is similar to it ("greedy"), or
        the representative of the first row that is similar to it ("any-earlier").

    Raises:
        ShapeError: `docs` is not a matrix with at least one column.
        DTypeError: It has another type or memory order; the message says what to call.
        ConfigError: threshold, metric, keep, rule or threads is out of range.
        UnavailableError: GPLFAST_ISA names an instruction set that is not available.
    """
    if not math.isfinite(threshold) or abs(threshold) > float(np.finfo(np.float32).max):
        message = f"dedup: threshold is {threshold} but must be a finite float32"
        raise ConfigError(message)
    if keep not in {"first", "last"}:
        message = f"dedup: keep is {keep!r}; use 'first' or 'last'"
        raise ConfigError(message)
    representative, n_pairs = _core.dedup(docs, threshold, metric, keep == "last", rule, threads_of("dedup", threads))
    return Dedup(representative, representative == np.arange(len(representative)), n_pairs)
