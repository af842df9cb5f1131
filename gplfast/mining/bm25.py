"""BM25 as a source of candidates, without a server: bm25s (Lucene's variant), ties broken by row."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gplfast.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gplfast.mining.lists import Lists

# Lucene's defaults; with English stop words and no stemmer this gives .663 nDCG@10 on scifact (BEIR's README: .665).
K1 = 1.2
B = 0.75


class Ranking(NamedTuple):
    """The best rows of each query: scores float32 and ids int64, both (n_queries, k), padding -inf and -1."""

    scores: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]


class Bm25:
    """An index over texts, held in memory."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Index the texts.

        Args:
            texts: The passages; row i of the answers is `texts[i]`.

        Raises:
            MissingExtraError: bm25s is not installed.
        """
        self._bm25s = _import_bm25s()
        self.n_docs = len(texts)
        tokens = self._tokenize(texts)
        self._index: Any = None
        # bm25s cannot index a corpus without a single word; nothing can match it either.
        if any(tokens):
            self._index = self._bm25s.BM25(method="lucene", k1=K1, b=B)
            self._index.index(tokens, show_progress=False)

    def search(
        self,
        queries: Sequence[str],
        k: int,
        *,
        exclude: Lists | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Ranking:
        """The k best passages of each query by (score descending, row ascending).

        Only passages that share a word with the query are found; where fewer than k do, the rest is padding.

        Args:
            queries: The query texts.
            k: How many passages per query.
            exclude: Rows per query that are never returned.
            progress: Called with (queries done, all queries).

        Returns:
            Scores and ids, both (n_queries, k).
        """
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        for number, tokens in enumerate(self._tokenize(queries)):
            if self._index is not None and tokens:
                all_scores = self._scores(tokens)
                if exclude is not None:
                    all_scores[exclude.list(number)] = 0.0
                best = _best(all_scores, k)
                ids[number, : len(best)] = best
                scores[number, : len(best)] = all_scores[best]
            if progress is not None and (number % 64 == 63 or number + 1 == len(queries)):
                progress(number + 1, len(queries))
        return Ranking(scores, ids)

    def pair_scores(self, queries: Sequence[str], pairs: Lists) -> npt.NDArray[np.float32]:
        """The score of each query with some passages, to the bit what `search` gives.

        Args:
            queries: The query texts.
            pairs: The passages of each query.

        Returns:
            float32 (n_pairs,), in the order of `pairs.rows`; NaN where the two share no word: `search` never returns
            such a passage.
        """
        scores = np.full(len(pairs.rows), np.nan, np.float32)
        for number, tokens in enumerate(self._tokenize(queries)):
            if self._index is not None and tokens:
                found = self._scores(tokens)[pairs.list(number)]
                scores[pairs.indptr[number] : pairs.indptr[number + 1]] = np.where(found > 0, found, np.nan)
        return scores

    def own_scores(self, parts: Sequence[str], row: int) -> npt.NDArray[np.float32]:
        """The scores of many texts with one passage, to the bit what `pair_scores` gives, whatever the corpus' size.

        Args:
            parts: The texts, n of them.
            row: The passage.

        Returns:
            float32 (n,); NaN where the two share no word.
        """
        scores = np.full(len(parts), np.nan, np.float32)
        weights: dict[str, np.float32] = {}
        for number, tokens in enumerate(self._tokenize(parts) if self._index is not None else []):
            total = np.float32(0)
            for token in tokens:
                if token not in weights:
                    weights[token] = self._weight(token, row)
                total += weights[token]
            scores[number] = total if total > 0 else np.nan
        return scores

    def _weight(self, token: str, row: int) -> np.float32:
        """What a token adds to the score of a passage: its entry of the index's columns, rows ascending in each."""
        column = self._index.vocab_dict.get(token)
        if column is None:
            return np.float32(0)
        start, stop = self._index.scores["indptr"][column : column + 2]
        at = start + np.searchsorted(self._index.scores["indices"][start:stop], row)
        found = at < stop and self._index.scores["indices"][at] == row
        return np.float32(self._index.scores["data"][at]) if found else np.float32(0)

    def _scores(self, tokens: list[str]) -> npt.NDArray[np.float32]:
        return np.asarray(self._index.get_scores(tokens), np.float32)

    def _tokenize(self, texts: Sequence[str]) -> list[list[str]]:
        tokens: list[list[str]] = self._bm25s.tokenize(
            list(texts), stopwords="english", return_ids=False, show_progress=False
        )
        return tokens


def stop_words() -> frozenset[str]:
    """English words that say little, in lower case: bm25s's longer list.

    Raises:
        MissingExtraError: bm25s is not installed.
    """
    _import_bm25s()
    from bm25s.stopwords import STOPWORDS_EN_PLUS

    return frozenset(STOPWORDS_EN_PLUS)


def _best(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    matched = np.flatnonzero(scores > 0)
    if len(matched) > k:
        threshold = np.partition(scores[matched], len(matched) - k)[len(matched) - k]
        matched = matched[scores[matched] >= threshold]
    order = np.lexsort((matched, -scores[matched]))
    return matched[order[:k]].astype(np.int64)


def _import_bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtraError("BM25 needs the package bm25s: pip install bm25s") from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # the package sets it to DEBUG for everyone
    return bm25s
