"""Dense retrieval as a source of candidates: embeddings kept on disk, exact search with the positives left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from gplfast.mining.bm25 import Ranking
from gplfast.store.embeddings import EmbeddingStore

if TYPE_CHECKING:
    from pathlib import Path

    from gplfast.mining.lists import Lists
    from gplfast.ops import Hits, Index

# Each shard is encoded as one call, so its values follow from the shard and the batch size alone and a killed run gives
# the same bytes.
SHARD_ROWS = 2048
# Rows of queries per call of the search, only so that progress is seen; the answers do not depend on it.
_SEARCH_ROWS = 2048
# So few queries are searched without packing the documents first, which would take longer than the search.
_FEW_ROWS = 64

# Pairs whose vectors are copied at a time: 209,000 pairs of 384 dimensions take 2.3 s, and 9.5 s with 32,768, as the
# memory of larger copies is mapped anew each time.
_SCORED_PAIRS = 4096
_METRICS: dict[str, Literal["ip", "cosine"]] = {"cosine": "cosine", "dot": "ip"}

Progress = Callable[[int, int], None]
Kind = Literal["query", "document"]


class Encoder(Protocol):
    """What embeddings are made with (`gplfast.models.bi_encoder.BiEncoder` is one)."""

    @property
    def fingerprint(self) -> str:
        """Of the weights, tokenizer, pooling and prompts."""

    @property
    def dim(self) -> int:
        """Columns of the embeddings."""

    def encode(
        self,
        texts: Sequence[str],
        *,
        kind: Kind,
        batch_size: int,
        progress: Progress | None,
    ) -> npt.NDArray[np.float32]:
        """float32 (n_texts, dim)."""


def embed(
    encoder: Encoder,
    texts: Callable[[range], list[str]],
    n_rows: int,
    root: Path,
    *,
    texts_fingerprint: str,
    kind: Kind,
    batch_size: int = 0,
    progress: Progress | None = None,
) -> npt.NDArray[Any]:
    """Embeddings of all texts, from disk where they were made before.

    Args:
        encoder: The bi-encoder.
        texts: Gives the texts of a range of rows.
        n_rows: How many texts there are.
        root: Directory of all embeddings; each (encoder, texts, kind) has one of its own there.
        texts_fingerprint: Of all texts in order.
        kind: "query" or "document": which prompt the encoder puts in front.
        batch_size: Texts per batch at most, 0: as many as fit by tokens; changes the last bits, so what was begun with
            another one is begun again.
        progress: Called with (rows done, all rows).

    Returns:
        float32 (n_rows, dim), memory-mapped.
    """
    identity = embeddings_identity(encoder, texts_fingerprint, kind)
    store = EmbeddingStore(
        root / identity[:24], identity, encoder.dim, n_rows, shard_rows=SHARD_ROWS, batch_size=batch_size
    )
    for shard in store.missing():
        rows = store.rows(shard)

        def show(done: int, _: int, start: int = rows.start) -> None:
            if progress is not None:
                progress(start + done, n_rows)

        values = encoder.encode(texts(rows), kind=kind, batch_size=batch_size, progress=show)
        store.write(shard, np.ascontiguousarray(values, np.float32))
    return store.array()


def embeddings_identity(encoder: Encoder, texts_fingerprint: str, kind: Kind) -> str:
    """What embeddings are known by: sha256 (hex) of the encoder, the texts and the prompt."""
    return hashlib.sha256(f"{encoder.fingerprint} {texts_fingerprint} {kind}".encode()).hexdigest()


class Exact:
    """Exact search of documents that are packed once, at the first search of more than `_FEW_ROWS` queries.

    Holds the documents, which are not copied, and from then on what was packed: a byte an element and at most 83 a
    document, 4.1 GB for 8.8 million of 384 dimensions.
    """

    def __init__(self, docs: npt.NDArray[np.float32], *, metric: str, threads: int = 0) -> None:
        """Nothing is packed yet.

        Args:
            docs: float32 (n_docs, dim), may be a memory map; must not change any more.
            metric: "cosine" or "dot".
            threads: CPU threads, 0 for all.
        """
        self._docs, self._metric, self._threads = docs, _METRICS[metric], threads or None
        self._index: Index | None = None

    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        *,
        exclude: Lists | None = None,
        progress: Progress | None = None,
    ) -> Ranking:
        """See the function `search`."""
        parts = [Ranking(np.empty((0, k), np.float32), np.empty((0, k), np.int64))]
        for start in range(0, len(queries), _SEARCH_ROWS):
            stop = min(start + _SEARCH_ROWS, len(queries))
            never = None if exclude is None else exclude.part(start, stop)
            hits = self._part(np.ascontiguousarray(queries[start:stop]), k, never, few=len(queries) <= _FEW_ROWS)
            parts.append(Ranking(*hits))
            if progress is not None:
                progress(stop, len(queries))
        return Ranking(np.concatenate([hits.scores for hits in parts]), np.concatenate([hits.ids for hits in parts]))

    def _part(self, queries: npt.NDArray[np.float32], k: int, exclude: Lists | None, *, few: bool) -> Hits:
        from gplfast import ops

        if few and self._index is None:
            return ops.search(queries, self._docs, k, metric=self._metric, exclude=exclude, threads=self._threads)
        if self._index is None:
            index = ops.Index(self._docs.shape[1], self._metric)
            index.add(self._docs, threads=self._threads)
            self._index = index
        return self._index.search(queries, k, exclude=exclude, threads=self._threads)


def search(
    queries: npt.NDArray[np.float32],
    docs: npt.NDArray[np.float32],
    k: int,
    *,
    metric: str,
    exclude: Lists | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Ranking:
    """The k best rows of each query by (score descending, row ascending), exact, excluded rows never among them.

    Args:
        queries: float32 (n_queries, dim).
        docs: float32 (n_docs, dim).
        k: Rows per query; padding (-1, -inf) only where fewer are left.
        metric: "cosine" or "dot".
        exclude: Rows per query that are never returned.
        threads: CPU threads, 0 for all.
        progress: Called with (queries done, all queries).
    """
    return Exact(docs, metric=metric, threads=threads).search(queries, k, exclude=exclude, progress=progress)


def pair_scores(
    queries: npt.NDArray[np.float32],
    docs: npt.NDArray[np.float32],
    pairs: Lists,
    *,
    metric: str,
    threads: int = 0,
) -> npt.NDArray[np.float32]:
    """The score of each query with some rows, to the bit what `search` gives.

    Args:
        queries: float32 (n_queries, dim).
        docs: float32 (n_docs, dim).
        pairs: Rows of docs of each query.
        metric: "cosine" or "dot".
        threads: CPU threads, 0 for all.

    Returns:
        float32 (n_pairs,), in the order of `pairs.rows`; NaN where a pair has no score: `search` never returns it.
    """
    from gplfast import ops

    owners = np.repeat(np.arange(len(queries)), pairs.lengths)
    scores = np.empty(len(owners), np.float32)
    for start in range(0, len(owners), _SCORED_PAIRS):
        part = slice(start, start + _SCORED_PAIRS)
        n = len(owners[part])
        both = np.concatenate([queries[owners[part]], docs[pairs.rows[part]]])  # a copy of these rows only
        indices = np.arange(2 * n, dtype=np.int64).reshape(2, n).T.ravel()
        lists = (2 * np.arange(n + 1, dtype=np.int64), indices)
        found = ops.gram(both, lists, metric=_METRICS[metric], triangle=True, threads=threads or None)
        scores[part] = found.values
    return scores


def text_rows(texts: Sequence[str]) -> Callable[[range], list[str]]:
    """The `texts` argument of `embed` for a sequence in memory."""
    return lambda rows: list(texts[rows.start : rows.stop])
