"""Scores of documents with each other, within lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from gplfast.ops.exact_search import pair_of
from gplfast.ops.extension import _core, threads_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gplfast.ops.exact_search import Floats, Lists, Metric


class Gram(NamedTuple):
    """Scores within lists of documents."""

    values: NDArray[np.float32] | NDArray[np.float16]
    """(n_values,): the lists' scores, one list behind the other."""
    indptr: NDArray[np.int64]
    """(n_lists + 1,) int64: the values of list i are `values[indptr[i]:indptr[i + 1]]`."""


def gram(
    docs: Floats,
    lists: Lists,
    *,
    metric: Metric = "cosine",
    triangle: bool = False,
    dtype: Literal["float32", "float16"] = "float32",
    threads: int | None = None,
) -> Gram:
    """Score all pairs of documents within each list, such as each query's candidates.

    Memory is the result and a block of rows per thread.

    Args:
        docs: (n_docs, dim) float32 or float16, C-contiguous. May be a memory map.
        lists: Row numbers of documents: a list with one (m,) int64 array per list, or a tuple (indptr (n_lists + 1,)
            int64, ids (n,) int64). Any order, repeats allowed.
        metric: "cosine" or "ip".
        triangle: False: the m x m symmetric matrix of each list, row by row. True: the m (m - 1) / 2 values above its
            diagonal, row by row, in the order of `scipy.spatial.distance.squareform`.
        dtype: "float32": canonical scores (see the module). "float16": these rounded once more, to nearest, ties to
            even; what is beyond 65504 becomes infinite.
        threads: Number of threads; None for every CPU this process may use. Never changes the answer.

    Returns:
        Gram(values, indptr). A score is NaN where a pair has none.

    Raises:
        ShapeError: Offsets do not fit, or an id is not a row of docs; the message names the list.
        DTypeError: An array has another type or memory order; the message says what to call.
        ConfigError: metric, dtype or threads is out of range.
        UnavailableError: GPLFAST_ISA names an instruction set that is not available.

    Example:
        >>> import numpy as np
        >>> docs = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
        >>> gram(docs, [np.array([0, 2, 1])], metric="ip", triangle=True)
        Gram(values=array([1., 0., 1.], dtype=float32), indptr=array([0, 3]))
    """
    return Gram(
        *_core.gram(
            docs, pair_of(lists, "gram: lists", "gram: list"), metric, triangle, dtype, threads_of("gram", threads)
        )
    )
