"""Queries from another passage of the document: neighbours, recurring spans."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from gplfast.errors import DataError
from gplfast.mining.bm25 import stop_words
from gplfast.mining.positives import documents, recurring
from gplfast.mining.positives.job import N_CUT, Job, Method, Sample, Sampler
from gplfast.mining.positives.text import Words, draws, pick
from gplfast.store.memory import available_bytes, in_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gplfast.mining.lists import Int64

# Of a text that is searched for spans that recur, see `recurring.find`; the text itself comes on top.
_BYTES_PER_WORD = 250
_WORD = r"[\pL\pN]+"  # `copies.WORD` for RE2


def neighbours(job: Job) -> Method:
    """Of each passage cuts of the passages just before and behind it in its document, either with even chances.

    Raises:
        DataError: No document has two passages.
    """
    starts = documents.document_starts(job.corpus)
    stops = documents.document_stops(starts)
    if not (stops - starts > 1).any():
        raise DataError(
            f"generate: method neighbours needs documents of several passages but of {len(job.corpus)} passages no two "
            "in a row have the same title; split long documents (input.split_words), or give the parts of a document "
            "one title, one after the other, or use another method, e.g. crop"
        )

    def sample(row: int, near: list[tuple[int, Words]], number: int) -> Sample | None:
        if not near:
            return None
        random = draws(job.seed, "near", row, number, 1 + N_CUT)
        source, words = near[pick(random[0], len(near))]
        return job.cut(words, random[1:]), source

    def of(rows: Int64) -> Iterator[Sampler]:
        for row in rows.tolist():
            near = documents.neighbours(row, int(starts[row]), int(stops[row]))
            found = [(other, Words.of(body)) for other, body in zip(near, job.bodies(near), strict=True)]
            yield functools.partial(sample, row, [(other, words) for other, words in found if words])

    return of


def spans(job: Job) -> Method:
    """Of each passage windows of others around a span that both have.

    The others are passages of its document; where no document has two, any.

    Raises:
        DataError: The corpus has one passage, or what is searched at once does not fit in memory.
    """
    job.need_others()
    starts = documents.document_starts(job.corpus)
    stops = documents.document_stops(starts)
    if not (stops - starts > 1).any():
        whole = _Searched(job, np.arange(len(job.corpus)), np.zeros(len(job.corpus), np.int64))
        return whole.samplers

    searched: _Searched | None = None

    def of(rows: Int64) -> Iterator[Sampler]:
        nonlocal searched
        if searched is not None:  # the last document may go on from shard to shard: it is searched once
            n_known = searched.n_known(rows)
            yield from searched.samplers(rows[:n_known])
            rows = rows[n_known:]
        if not len(rows):
            return
        # Whole documents, however the shards cut them.
        firsts = np.unique(starts[rows])
        wanted = np.concatenate([np.arange(first, stops[first]) for first in firsts.tolist()])
        searched = None  # one at a time in memory
        searched = _Searched(job, wanted, starts[wanted])
        yield from searched.samplers(rows)

    return of


class _Searched:
    """Passages whose recurring spans are known."""

    def __init__(self, job: Job, rows: Int64, numbers: Int64) -> None:
        """Search these rows, in documents of these numbers; rows ascend.

        Raises:
            DataError: They do not fit in memory.
        """
        _refuse_too_large(job, rows)
        self._job, self._rows = job, rows
        self._texts = [Words.of(body) for body in job.bodies(rows)]
        config = job.config
        self._found = recurring.find(
            self._texts,
            numbers.tolist(),
            stop_words(),
            shortest=config.span_words_min,
            longest=config.span_words_max,
        )

    def n_known(self, rows: Int64) -> int:
        """How many of these rows were searched before the first that was not."""
        return int(np.logical_and.accumulate(np.isin(rows, self._rows)).sum())

    def samplers(self, rows: Int64) -> Iterator[Sampler]:
        """What samples each passage."""
        for row, number in zip(rows.tolist(), np.searchsorted(self._rows, rows).tolist(), strict=True):
            yield functools.partial(self._sample, row, number)

    def _sample(self, row: int, passage: int, number: int) -> Sample | None:
        config, found = self._job.config, self._found
        random = draws(self._job.seed, "span", row, number, recurring.N_RANDOM)
        at = recurring.draw(found, passage, random)
        if at is None:
            return None
        source = int(found.passages[at])
        query = recurring.window(
            self._texts[source],
            (int(found.firsts[at]), int(found.lengths[at])),
            (config.span_window_min, config.span_window_max),
            config.span_keep,
            random[2:],
        )
        return query, int(self._rows[source])


def _refuse_too_large(job: Job, rows: Int64) -> None:
    import pyarrow.compute as pc

    texts = job.corpus.table["text"]
    if len(rows) < len(texts):
        texts = texts.take(rows)
    n_words = int(pc.sum(pc.count_substring_regex(texts, _WORD)).as_py() or 0)
    needed = _BYTES_PER_WORD * n_words + int(pc.sum(pc.binary_length(texts)).as_py() or 0)
    free = available_bytes()
    if 0 < free < needed:  # 0: not known
        raise DataError(
            f"generate: method spans needs about {in_words(needed)} of memory for the {n_words:,} words of "
            f"{len(rows):,} passages that it searches at once but {in_words(free)} are available; give the parts of "
            "each document a title of their own, one after the other, or split long documents (input.split_words), so "
            "that it searches a few documents at a time, or use another method, e.g. crop"
        )
