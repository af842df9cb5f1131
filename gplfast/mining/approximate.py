"""Approximate candidates by FAISS, for those who name it: the answers depend on an index that is built once and kept.

HNSW is configured as negminer does (M 64, efConstruction 256, efSearch 128), but searches by inner product, of
normalised vectors for cosine. What is found is scored as the exact search scores it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gplfast.errors import ArtifactError, MissingExtraError
from gplfast.mining import dense
from gplfast.mining.bm25 import Ranking
from gplfast.mining.lists import Lists, from_sequences
from gplfast.mining.sampling import permutation
from gplfast.store.atomic import atomic_path

if TYPE_CHECKING:
    from pathlib import Path

    from gplfast.mining.lists import Int64, Widened

HNSW, IVF = "faiss-hnsw", "faiss-ivf"
M, EF_CONSTRUCTION, EF_SEARCH = 64, 256, 128
RECALL_QUERIES = 100
# FAISS trains on at most so many vectors per list.
_TRAIN_ROWS_PER_LIST = 256
_ADD_ROWS = 65_536
# FAISS on a GPU finds no more, and looks into no more lists.
_GPU_MOST = 2048
Progress = Callable[[int, int], None]
Vectors = npt.NDArray[np.float32]


class Approximate:
    """A FAISS index over documents; searches leave out what is excluded and give k where k are left."""

    def __init__(
        self,
        docs: Vectors,
        file: Path,
        *,
        kind: str,
        metric: str,
        nprobe: int = 1,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Open the index, or build and write it.

        Args:
            docs: float32 (n_docs, dim), may be a memory map.
            file: Where the index is kept; a killed run goes on with the same one. It holds the vectors once more.
            kind: "faiss-hnsw", or "faiss-ivf" with sqrt(n_docs) lists.
            metric: "cosine" or "dot".
            nprobe: Lists that IVF looks into.
            threads: CPU threads, 0 for all. HNSW built by several threads is another index each time it is built.
            progress: Called with (documents added, all documents).

        Raises:
            MissingExtraError: faiss is not installed.
            ArtifactError: The file is damaged or belongs to other documents.
        """
        self._faiss, self._docs = _import_faiss(), docs
        self._kind, self._metric, self._nprobe, self._threads = kind, metric, nprobe, threads
        self._use_threads()
        if not file.is_file():
            index = self._build(progress)
            with atomic_path(file) as temporary:
                self._faiss.write_index(index, str(temporary))
        try:
            self._index = self._faiss.read_index(str(file))
        except RuntimeError as error:
            raise ArtifactError(f"cannot read {file}: it is damaged; delete it to build the index again") from error
        if (self._index.ntotal, self._index.d) != docs.shape:
            raise ArtifactError(
                f"{file} holds ({self._index.ntotal}, {self._index.d}) but the documents are {docs.shape}; delete it"
            )
        self._gpu_index = self._on_gpu()

    def search(self, queries: Vectors, k: int, exclude: Lists | None = None) -> Ranking:
        """About the k best documents of each query by (score descending, row ascending).

        As many more are fetched as its list excludes (the next power of two, so that queries are searched together).
        Queries for which the index gives too few are searched with twice the effort, up to the whole index, and what is
        then missing is found by the exact search.

        Args:
            queries: float32 (n_queries, dim).
            k: Documents per query; padding (-1, -inf) only where fewer are left.
            exclude: Rows per query that are never returned.

        Returns:
            Scores, to the bit those of the exact search, and ids, both (n_queries, k).
        """
        n = len(queries)
        never = Lists(np.zeros(n + 1, np.int64), np.empty(0, np.int64)) if exclude is None else exclude
        answer = Ranking(np.full((n, k), -np.inf, np.float32), np.full((n, k), -1, np.int64))
        more = np.where(never.lengths > 0, 1 << np.ceil(np.log2(np.maximum(never.lengths, 1))).astype(np.int64), 0)
        for number in np.unique(more).tolist():
            rows = np.flatnonzero(more == number)
            found = self._search_more(queries[rows], k, never.take(rows), number)
            answer.ids[rows], answer.scores[rows] = found.ids, found.scores
        return answer

    def _search_more(self, queries: Vectors, k: int, never: Lists, more: int) -> Ranking:
        """As `search`, of queries that exclude at most `more` documents."""
        n = len(queries)
        answer = Ranking(np.full((n, k), -np.inf, np.float32), np.full((n, k), -1, np.int64))
        fetched = min(k + more, len(self._docs))
        pending, there = np.arange(n), np.clip(len(self._docs) - never.lengths, 0, k)
        effort = max(EF_SEARCH, fetched) if self._kind == HNSW else self._nprobe
        most = len(self._docs) if self._kind == HNSW else self._index.nlist
        while len(pending):
            lists = never.take(pending)
            found = self._scored(queries[pending], self._fetch(queries[pending], fetched, min(effort, most)), lists, k)
            answer.ids[pending], answer.scores[pending] = found.ids, found.scores
            pending = pending[(found.ids >= 0).sum(axis=1) < there[pending]]
            if effort >= most:
                break
            effort *= 2
        if len(pending):
            lists = never.take(pending)
            found = self._exact(queries[pending], k, lists)
            answer.ids[pending], answer.scores[pending] = found.ids, found.scores
        return answer

    def recall(self, queries: Callable[[Int64], Vectors], n_queries: int, k: int, exclude: Lists | Widened) -> float:
        """The share of the exact k best that `search` finds, on `RECALL_QUERIES` queries drawn by counters.

        Args:
            queries: Gives the vectors of some rows.
            n_queries: How many queries there are.
            k: Documents per query.
            exclude: Of all queries.
        """
        rows = np.sort(permutation(0, "recall", 0, n_queries)[:RECALL_QUERIES])
        lists = exclude.take(rows)
        exact, found = self._exact(queries(rows), k, lists), self.search(queries(rows), k, lists)
        n_both = sum(int(np.isin(a[a >= 0], b).sum()) for a, b in zip(exact.ids, found.ids, strict=True))
        return n_both / max(1, int((exact.ids >= 0).sum()))

    def _build(self, progress: Progress | None) -> Any:
        faiss, (n_docs, dim) = self._faiss, self._docs.shape
        if self._kind == HNSW:
            index = faiss.IndexHNSWFlat(dim, M, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = EF_CONSTRUCTION
        else:
            n_lists = max(1, round(math.sqrt(n_docs)))
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, n_lists, faiss.METRIC_INNER_PRODUCT)
            index.cp.min_points_per_centroid = 1  # otherwise it warns on stderr
            index.cp.spherical = self._metric == "cosine"
            rows = np.sort(permutation(0, "ivf", 0, n_docs)[: _TRAIN_ROWS_PER_LIST * n_lists])
            index.train(self._prepared(self._docs[rows]))
        for start in range(0, n_docs, _ADD_ROWS):
            index.add(self._prepared(self._docs[start : start + _ADD_ROWS]))
            if progress is not None:
                progress(min(start + _ADD_ROWS, n_docs), n_docs)
        return index

    def _fetch(self, queries: Vectors, k: int, effort: int) -> Int64:
        self._use_threads()
        if self._kind == HNSW:
            options = self._faiss.SearchParametersHNSW(efSearch=effort)
        else:
            options = self._faiss.SearchParametersIVF(nprobe=effort)
        index = self._index if self._gpu_index is None or max(k, effort) > _GPU_MOST else self._gpu_index
        return np.asarray(index.search(self._prepared(queries), k, params=options)[1], np.int64)

    def _scored(self, queries: Vectors, ids: Int64, exclude: Lists, k: int) -> Ranking:
        """The k best of what was fetched, by their canonical scores."""
        for number, row in enumerate(ids):
            row[np.isin(row, exclude.list(number))] = -1
        scores = np.full(ids.shape, -np.inf, np.float32)
        pairs = from_sequences([row[row >= 0] for row in ids])
        scores[ids >= 0] = dense.pair_scores(queries, self._docs, pairs, metric=self._metric, threads=self._threads)
        ids[np.isnan(scores)] = -1
        scores[np.isnan(scores)] = -np.inf
        order = np.lexsort((ids, -scores, ids < 0), axis=1)[:, :k]
        best = Ranking(np.full((len(ids), k), -np.inf, np.float32), np.full((len(ids), k), -1, np.int64))
        best.ids[:, : order.shape[1]] = np.take_along_axis(ids, order, 1)
        best.scores[:, : order.shape[1]] = np.take_along_axis(scores, order, 1)
        return best

    def _exact(self, queries: Vectors, k: int, exclude: Lists) -> Ranking:
        return dense.search(queries, self._docs, k, exclude=exclude, metric=self._metric, threads=self._threads)

    def _prepared(self, vectors: Vectors) -> Vectors:
        """As FAISS takes them: unit length for cosine; what has no score (zero for cosine, NaN, infinite) as zeros."""
        rows = np.array(vectors, np.float32, order="C")
        rows[~np.isfinite(rows).all(axis=1)] = 0
        if self._metric == "cosine":
            lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
            np.divide(rows, lengths, out=rows, where=lengths > 0, casting="same_kind")
        return rows

    def _on_gpu(self) -> Any:
        """The IVF index on a GPU where FAISS has one; None elsewhere. HNSW runs on CPUs only."""
        if self._kind != IVF or not self._faiss.get_num_gpus():
            return None
        self._gpu = self._faiss.StandardGpuResources()  # must live as long as the index
        return self._faiss.index_cpu_to_gpu(self._gpu, 0, self._index)

    def _use_threads(self) -> None:
        from gplfast import ops

        self._faiss.omp_set_num_threads(self._threads or ops.available_threads())


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(
            "approximate search needs faiss, which is not installed: pip install 'gplfast[faiss]' (or faiss-gpu), "
            "or leave mine.search at exact"
        ) from error
    return faiss
