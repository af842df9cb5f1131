"""Which passages are parts of one document: rows of a split document, or neighbouring rows with one title."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gplfast.mining.lists import Int64
    from gplfast.store.corpus import Corpus


def document_starts(corpus: Corpus) -> Int64:
    """By row the first row of its document, int64 (n_passages,).

    Split passages (`input.split_words`) belong together by the document's id; else neighbouring rows by a title that is
    the same and not empty. Any other passage is a document of its own.
    """
    if corpus.split_words is not None:
        names = corpus.parent_ids
    else:
        names = [title.strip() for title in corpus.titles(np.arange(len(corpus)))]
    starts = np.arange(len(names), dtype=np.int64)
    for row in range(1, len(names)):
        if names[row] and names[row] == names[row - 1]:
            starts[row] = starts[row - 1]
    return starts


def document_stops(starts: Int64) -> Int64:
    """By row the row after the last one of its document, int64 (n_passages,)."""
    firsts = np.flatnonzero(starts == np.arange(len(starts)))
    ends = np.append(firsts[1:], len(starts)).astype(np.int64)
    return ends[np.searchsorted(firsts, starts, side="right") - 1]


def neighbours(row: int, start: int, stop: int) -> list[int]:
    """The passages of the document start..stop-1 just before and just after a row."""
    return [other for other in (row - 1, row + 1) if start <= other < stop]
