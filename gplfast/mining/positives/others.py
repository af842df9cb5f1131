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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gplfast.mining.lists import Int64


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
        DataError: The corpus has one passage.
    """
    job.need_others()
    starts = documents.document_starts(job.corpus)
    stops = documents.document_stops(starts)
    if not (stops - starts > 1).any():
        whole = _Searched(job, np.arange(len(job.corpus)), np.zeros(len(job.corpus), np.int64))
        return whole.samplers

    def of(rows: Int64) -> Iterator[Sampler]:
        # Whole documents, however the shards cut them.
        parts = [np.arange(starts[row], stops[row]) for row in rows.tolist()]
        wanted = np.unique(np.concatenate(parts))
        return _Searched(job, wanted, starts[wanted]).samplers(rows)

    return of


class _Searched:
    """Passages whose recurring spans are known."""

    def __init__(self, job: Job, rows: Int64, numbers: Int64) -> None:
        """Search these rows, in documents of these numbers; rows ascend."""
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
