"""Exact search: the k best documents of each query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from gplfast.errors import DTypeError, ShapeError
from gplfast.ops.extension import LARGEST, _core, positive, threads_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32] | NDArray[np.float16]
    Lists = Sequence[NDArray[np.int64]] | tuple[NDArray[np.int64], NDArray[np.int64]]

Metric = Literal["ip", "cosine"]


class Hits(NamedTuple):
    """What a search found, best first in each row."""

    scores: NDArray[np.float32]
    """(n_queries, k) float32; -inf where fewer than k documents exist."""
    ids: NDArray[np.int64]
    """(n_queries, k) int64 row numbers of documents; -1 where fewer than k exist."""


def search(
    queries: Floats,
    docs: Floats,
    k: int,
    *,
    metric: Metric = "ip",
    exclude: Lists | None = None,
    threads: int | None = None,
) -> Hits:
    """Find the exact k best documents of each query by inner product or cosine.

    Every pair is compared, no score matrix is stored: memory is O(n_queries k) and tiles per thread.

    Args:
        queries: (n_queries, dim) float32 or float16, C-contiguous. A query with NaN finds nothing.
        docs: (n_docs, dim) float32 or float16, C-contiguous. May be a memory map. Documents whose score is NaN are not
            returned. Several searches of the same documents: see `Index`.
        k: How many documents per query, at least 1. Where fewer exist, rows are padded with id -1 and score -inf.
        metric: "ip" (inner product) or "cosine".
        exclude: Documents never returned, per query: a list with one (n,) int64 array of row numbers for each query,
            or a tuple (indptr (n_queries + 1,) int64, ids (n,) int64). Any order, repeats allowed. k documents come
            back whenever k that are not excluded exist.
        threads: Number of threads; None for every CPU this process may use. Never changes the answer.

    Returns:
        Hits(scores (n_queries, k) float32, ids (n_queries, k) int64), ordered by score descending; equal scores by
        id ascending. Scores are canonical (see the module).

    Raises:
        ShapeError: Dimensions differ, or `exclude` has another number of queries or an id that is not a row.
        DTypeError: An array has another type or memory order; the message says what to call.
        ConfigError: k, metric or threads is out of range.
        UnavailableError: GPLFAST_ISA names an instruction set that is not available.

    Example:
        >>> import numpy as np
        >>> docs = np.eye(3, dtype=np.float32)
        >>> search(docs[:1], docs, k=2).ids
        array([[0, 1]])
    """
    scores, ids = _core.search(
        queries,
        docs,
        positive("search", "k", k, LARGEST),
        metric,
        exclude_pair(exclude, "search"),
        threads_of("search", threads),
    )
    return Hits(scores, ids)


def merge_hits(parts: Sequence[Hits], k: int) -> Hits:
    """Merge what was found in disjoint sets of documents: the answer of one search of all of them.

    Args:
        parts: Hits of the same queries, each of any k; their ids must count documents of all sets together
            (`Index.search` with `rows` does that). No document in two of them.
        k: How many documents per query to keep, at least 1 and at most the k that each part was searched with.

    Returns:
        Hits(scores (n_queries, k), ids (n_queries, k)), ordered as by `search`.

    Raises:
        ShapeError: There is no part, or they have different numbers of queries, or one has fewer than k columns.
    """
    k = positive("merge_hits", "k", k)
    if not parts or any(part.ids.shape[0] != parts[0].ids.shape[0] or part.ids.shape[1] < k for part in parts):
        shapes = [part.ids.shape for part in parts]
        message = f"merge_hits: parts have shapes {shapes} but all must have the same rows and at least k={k} columns"
        raise ShapeError(message)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    ids = np.concatenate([part.ids for part in parts], axis=1)
    places = np.where(ids < 0, np.iinfo(np.int64).max, ids)  # padding is last, behind hits with a score of -inf too
    order = np.lexsort((places, -scores), axis=1)[:, :k]
    return Hits(np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1))


def exclude_pair(exclude: object, op: str) -> tuple[object, object] | None:
    """What the extension takes for `exclude`."""
    return None if exclude is None else pair_of(exclude, f"{op}: exclude", f"{op}: exclude of query")


def pair_of(lists: object, name: str, name_of_one: str) -> tuple[object, object]:
    """One array per list becomes (indptr, ids); a tuple is taken as that pair. The extension checks the contents.

    Raises:
        ShapeError: A tuple that is no pair.
        DTypeError: No sequence, or one of something else than 1-D int64 arrays; the message begins with the names.
    """
    if isinstance(lists, tuple):
        if len(lists) != 2:
            message = f"{name} is a tuple of {len(lists)} but (indptr, ids) has 2; give a list otherwise"
            raise ShapeError(message)
        return lists
    if not isinstance(lists, Sequence):
        message = f"{name} is a {type(lists).__name__} but a list of int64 arrays or (indptr, ids) is needed"
        raise DTypeError(message)
    for place, ids in enumerate(lists):
        if not isinstance(ids, np.ndarray) or ids.dtype != np.int64 or ids.ndim != 1:
            message = f"{name_of_one} {place} is not a 1-D int64 array; call np.array(ids, np.int64)"
            raise DTypeError(message)
    indptr = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(ids) for ids in lists], out=indptr[1:])
    return indptr, np.concatenate([np.empty(0, np.int64), *lists])
