"""Queries whose positive BM25 finds: cuts of other passages, or real queries without judgements."""

from __future__ import annotations

import collections
import functools
from typing import TYPE_CHECKING

import numpy as np

from gplfast.mining.bm25 import Bm25
from gplfast.mining.lists import Lists, from_sequences, same_text_groups, single, widener
from gplfast.mining.positives.job import N_CUT, Job, Method, Sample, Sampler
from gplfast.mining.positives.quota import Made
from gplfast.mining.positives.text import Words, draws, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gplfast.mining.lists import Int64

WITHOUT = "queries without passage"


def cuts_of_passages(job: Job) -> Method:
    """Random cuts of each passage.

    Raises:
        DataError: The corpus has one passage.
    """
    job.need_others()

    def sample(row: int, words: Words, number: int) -> Sample | None:
        return (job.cut(words, draws(job.seed, "bm25", row, number, N_CUT)), row) if words else None

    def of(rows: Int64) -> Iterator[Sampler]:
        for row, body in zip(rows.tolist(), job.bodies(rows), strict=True):
            yield functools.partial(sample, row, Words.of(body))

    return of


def best_others(job: Job) -> Callable[[Made], Made]:
    """What gives each query its best passage by BM25 in place of its own, copies of its own left out.

    A query that shares a word with no other passage is dropped and counted.
    """
    texts = job.corpus.texts()
    index, with_copies = Bm25(texts), widener(same_text_groups(texts))
    return lambda made: _paired(index, made, with_copies(single(made.passages)))


def given(job: Job, texts: Sequence[str]) -> Callable[[Int64], Made]:
    """What gives each real query its best passage by BM25; equal queries count once.

    Source: query with its top BM25 passage; pseudo-positives of unlabelled queries as in RocketQA (Qu et al. 2021,
        "Data augmentation"), where a teacher keeps those above 0.9: here `label.keep_share` and the filters do that.
    """
    index, lines = Bm25(job.corpus.texts()), [one_line(text) for text in texts]
    first = {line: number for number, line in reversed(list(enumerate(lines)))}

    def make(items: Int64) -> Made:
        chosen = [lines[item] for item in items.tolist() if first[lines[item]] == item]
        counts = collections.Counter({"drawn": len(items), "duplicate": len(items) - len(chosen)})
        nothing = from_sequences([[] for _ in chosen])
        return _paired(index, Made(chosen, np.zeros(len(chosen), np.int64), None, counts), nothing)

    return make


def _paired(index: Bm25, made: Made, excluded: Lists) -> Made:
    best = index.search(made.texts, 1, exclude=excluded).ids[:, 0]
    found = np.flatnonzero(best >= 0)
    counts = made.counts + collections.Counter({WITHOUT: len(best) - len(found)})
    sources = None if made.sources is None else made.sources[found]
    return Made([made.texts[number] for number in found], best[found], sources, counts)
