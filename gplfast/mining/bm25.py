"""BM25 as a source of candidates, without a server: Lucene's variant, ties broken by row.

Words and stop words are those of bm25s, and so are the scores, to the bit: like it, this keeps what each word adds to
the score of each passage. It is made here because bm25s goes through the passages one at a time, over lists of Python
objects: 2.5 times as long for 40,000 passages of 40 words, and 2.4 times the memory.
"""

from __future__ import annotations

import itertools
import logging
import math
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
# Passages whose words are Python objects at a time.
_TEXTS = 1 << 12


class Ranking(NamedTuple):
    """The best rows of each query: scores float32 and ids int64, both (n_queries, k), padding -inf and -1."""

    scores: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]


class _Counts(NamedTuple):
    """How often words occur in some passages, by (word, passage): words and passages int32, times float32, all (n,)."""

    words: npt.NDArray[np.int32]
    passages: npt.NDArray[np.int32]
    times: npt.NDArray[np.float32]


class Bm25:
    """An index over texts, held in memory: 8 bytes for each different word of each, and while it is made 20."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Index the texts.

        Args:
            texts: The passages; row i of the answers is `texts[i]`.

        Raises:
            MissingExtraError: bm25s is not installed.
        """
        self._bm25s = _import_bm25s()
        self.n_docs = len(texts)
        self._columns: dict[str, int] = {}
        lengths = np.zeros(self.n_docs, np.int64)
        parts = [self._count(texts[start : start + _TEXTS], start, lengths) for start in range(0, len(texts), _TEXTS)]
        n_words = len(self._columns)
        n_with = sum((np.bincount(part.words, minlength=n_words) for part in parts), np.zeros(n_words, np.int64))
        # CSC: what word w adds to passages is from indptr[w] to indptr[w + 1], passages ascending.
        self._indptr = np.concatenate([[0], np.cumsum(n_with)])
        self._passages = np.empty(self._indptr[-1], np.int32)
        self._weights = np.empty(self._indptr[-1], np.float32)
        rarity = _rarity(n_with, self.n_docs)
        norms = K1 * ((1 - B) + B * lengths / max(lengths.mean(), 1e-9)) if self.n_docs else lengths
        heads = self._indptr[:-1].copy()
        for part in (parts.pop(0) for _ in range(len(parts))):  # each is given back when it was read
            counts = np.bincount(part.words, minlength=n_words)
            at = heads[part.words] + np.arange(len(part.words)) - (np.cumsum(counts) - counts)[part.words]
            self._passages[at] = part.passages
            self._weights[at] = rarity[part.words] * (part.times / (norms[part.passages] + part.times))
            heads += counts

    def _count(self, texts: Sequence[str], start: int, lengths: npt.NDArray[np.int64]) -> _Counts:
        """The words of passages start...; new ones get a column, and the passages' lengths are written."""
        made = self._bm25s.tokenize(list(texts), stopwords="english", return_ids=True, show_progress=False)
        columns = np.zeros(len(made.vocab), np.int64)
        new = [self._columns.setdefault(word, len(self._columns)) for word in made.vocab]
        columns[list(made.vocab.values())] = new
        sizes = np.fromiter(map(len, made.ids), np.int64, len(texts))
        lengths[start : start + len(texts)] = sizes
        words = columns[np.fromiter(itertools.chain.from_iterable(made.ids), np.int64, int(sizes.sum()))]
        keys = np.sort(words * _TEXTS + np.repeat(np.arange(len(texts)), sizes))
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        words, passages = np.divmod(keys[first], _TEXTS)
        times = np.diff(first, append=len(keys)).astype(np.float32)
        return _Counts(words.astype(np.int32), (start + passages).astype(np.int32), times)

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
            columns = self._of(tokens)
            if columns:
                all_scores = self._scores(columns)
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
            rows = pairs.list(number)
            total = np.zeros(len(rows), np.float32)
            for column in self._of(tokens):
                total += self._added(column, rows)
            scores[pairs.indptr[number] : pairs.indptr[number + 1]] = np.where(total > 0, total, np.nan)
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
        weights: dict[int, np.float32] = {}
        for number, tokens in enumerate(self._tokenize(parts)):
            total = np.float32(0)
            for column in self._of(tokens):
                if column not in weights:
                    weights[column] = self._added(column, np.array([row]))[0]
                total += weights[column]
            scores[number] = total if total > 0 else np.nan
        return scores

    def _of(self, tokens: list[str]) -> list[int]:
        """The columns of a query's words, those left out that no passage has."""
        return [self._columns[token] for token in tokens if token in self._columns]

    def _added(self, column: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """What a word adds to the scores of some passages, float32 (n,)."""
        start, stop = self._indptr[column : column + 2]
        at = start + np.searchsorted(self._passages[start:stop], rows)
        at = np.minimum(at, stop - 1)  # each word is in some passage
        return np.where(self._passages[at] == rows, self._weights[at], np.float32(0))

    def _scores(self, columns: list[int]) -> npt.NDArray[np.float32]:
        """Of all passages, float32 (n_docs,), summed in the order of the words."""
        scores = np.zeros(self.n_docs, np.float32)
        for column in columns:
            part = slice(self._indptr[column], self._indptr[column + 1])
            np.add.at(scores, self._passages[part], self._weights[part])
        return scores

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


def _rarity(n_with: npt.NDArray[np.int64], n_docs: int) -> npt.NDArray[np.float32]:
    """The inverse document frequency of words that so many passages have, float32 (n_words,)."""
    different, which = np.unique(n_with, return_inverse=True)
    # math.log, as numpy's may differ in the last bit between machines
    logs = [math.log(1 + (n_docs - n + 0.5) / (n + 0.5)) for n in different.tolist()]
    return np.array(logs, np.float32)[which]


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
