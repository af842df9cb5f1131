"""Candidates of queries: the positives of each, then its negatives in rank order, and what is known of each pair."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gplfast.errors import DTypeError, ShapeError
from gplfast.store.negatives import RankedLists

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gplfast.store.corpus import Corpus


@dataclass(frozen=True, eq=False)
class Vectors:
    """Embeddings that cosines are computed from.

    Attributes:
        queries: float32 (n_queries, dim), row i of query i.
        docs: float32 (n_docs, dim), row i of document i; may be memory-mapped.
    """

    queries: NDArray[np.float32]
    docs: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Mined:
    """Queries, their positives and their negatives, as one list of candidates per query.

    Attributes:
        corpus: The documents.
        ids: n_queries different ids.
        texts: n_queries texts.
        indptr: int64 (n_queries + 1,); the candidates of query i are `docs[indptr[i]:indptr[i + 1]]`.
        docs: int64 (n,), document rows, each once per query: positives, then negatives, best first.
        grades: int64 (n,), above 0 for positives; 0 (mined) or less (judged so) for negatives.
        cosine: float32 (n,), of query and document under the first encoder, or None.
        teacher: float32 (n,), the cross-encoder's score, or None. NaN: it gave none.
        vectors: What the cosines are from, for those of documents with each other; or None.
    """

    corpus: Corpus
    ids: list[str]
    texts: list[str]
    indptr: NDArray[np.int64]
    docs: NDArray[np.int64]
    grades: NDArray[np.int64]
    cosine: NDArray[np.float32] | None = None
    teacher: NDArray[np.float32] | None = None
    vectors: Vectors | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit each other.

        Raises:
            DTypeError: indptr, docs or grades is not int64 (n,).
            ShapeError: Lengths differ, indptr falls, or a negative stands before a positive.
        """
        for what, array in (("indptr", self.indptr), ("docs", self.docs), ("grades", self.grades)):
            if array.dtype != np.int64 or array.ndim != 1:
                raise DTypeError(f"candidates: {what} is {array.dtype} {array.shape} but int64 (n,) is needed")
        n, n_queries = len(self.docs), len(self.texts)
        if len(self.ids) != n_queries or len(self.indptr) != n_queries + 1:
            raise ShapeError(
                f"candidates: {n_queries} texts but {len(self.ids)} ids and indptr of {len(self.indptr)}; "
                f"give {n_queries} ids and indptr of {n_queries + 1}"
            )
        if self.indptr[0] != 0 or self.indptr[-1] != n or (np.diff(self.indptr) < 0).any():
            raise ShapeError(f"candidates: indptr must rise from 0 to {n}")
        for what, values in (("grades", self.grades), ("cosine", self.cosine), ("teacher", self.teacher)):
            if values is not None and values.shape != (n,):
                raise ShapeError(f"candidates: {what} has shape {values.shape} but docs has ({n},); give one per pair")
        positive = self.grades > 0
        owners = self.owners
        if n and (positive[1:] & ~positive[:-1] & (owners[1:] == owners[:-1])).any():
            raise ShapeError("candidates: a query has a negative before a positive; give its positives first")

    def __len__(self) -> int:
        """How many queries."""
        return len(self.texts)

    @property
    def owners(self) -> NDArray[np.int64]:
        """int64 (n,), the query of each candidate."""
        return np.repeat(np.arange(len(self)), np.diff(self.indptr))

    @property
    def scores(self) -> NDArray[np.float32] | None:
        """float32 (n,): the teacher's where there is one, else the cosines; None where neither is known."""
        return self.cosine if self.teacher is None else self.teacher

    @property
    def positives(self) -> RankedLists:
        """The positives of each query, with `scores`."""
        return self._lists(self.grades > 0)

    @property
    def negatives(self) -> RankedLists:
        """The negatives of each query in rank order, with `scores`."""
        return self._lists(self.grades <= 0)

    def only(self, kept: NDArray[np.bool_]) -> Mined:
        """The same queries with some of their candidates.

        Args:
            kept: bool (n,).
        """
        return replace(
            self,
            indptr=self._indptr(kept),
            docs=self.docs[kept],
            grades=self.grades[kept],
            cosine=None if self.cosine is None else self.cosine[kept],
            teacher=None if self.teacher is None else self.teacher[kept],
        )

    def _lists(self, kept: NDArray[np.bool_]) -> RankedLists:
        scores = self.scores
        return RankedLists(self._indptr(kept), self.docs[kept], None if scores is None else scores[kept])

    def _indptr(self, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        counts = np.bincount(self.owners[kept], minlength=len(self))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
