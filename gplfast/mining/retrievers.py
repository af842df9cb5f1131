"""What finds passages for queries: BM25, exact dense search, approximate dense search, on one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gplfast.mining import dense
from gplfast.mining.bm25 import Bm25, Ranking

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from gplfast.mining.approximate import Approximate
    from gplfast.mining.lists import Int64, Lists, Widened


class Retriever(NamedTuple):
    """A retriever over the queries, which are named by their rows.

    Attributes:
        search: Their best passages, so many, some excluded.
        pair_scores: float32, of each with each of the given passages, in their order; to the bit those of the search.
        recall: Of a search for so many passages with these exclusions (of all queries), compared with the exact one;
            None: it is exact.
        docs: Embeddings of all passages, (n_docs, dim), where it has them.
    """

    search: Callable[[Int64, int, Lists], Ranking]
    pair_scores: Callable[[Int64, Lists], npt.NDArray[np.float32]]
    recall: Callable[[int, Lists | Widened], float] | None = None
    docs: npt.NDArray[Any] | None = None


def bm25(passages: Sequence[str], queries: Sequence[str]) -> Retriever:
    """BM25 over the texts of passages."""
    index = Bm25(passages)
    return Retriever(
        lambda rows, k, excluded: index.search([queries[row] for row in rows], k, exclude=excluded),
        lambda rows, pairs: index.pair_scores([queries[row] for row in rows], pairs),
    )


def exact(vectors: npt.NDArray[Any], docs: npt.NDArray[Any], *, metric: str, threads: int) -> Retriever:
    """Exact search of float32 (n_docs, dim) with queries float32 (n_queries, dim); holds what `dense.Exact` packs."""
    index = dense.Exact(docs, metric=metric, threads=threads)
    return Retriever(
        lambda rows, k, excluded: index.search(vectors[rows], k, exclude=excluded),
        lambda rows, pairs: dense.pair_scores(vectors[rows], docs, pairs, metric=metric, threads=threads),
        docs=docs,
    )


def approximate(
    vectors: npt.NDArray[Any], docs: npt.NDArray[Any], index: Approximate, *, metric: str, threads: int
) -> Retriever:
    """Search of an index over the same documents; scores of pairs are exact."""
    return exact(vectors, docs, metric=metric, threads=threads)._replace(
        search=lambda rows, k, excluded: index.search(vectors[rows], k, excluded),
        recall=lambda k, excluded: index.recall(lambda rows: vectors[rows], len(vectors), k, excluded),
    )
