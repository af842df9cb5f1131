"""The methods by name: from a job to what makes the queries of some passages."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import numpy as np

from gplfast.mining.positives import others, own, pairing
from gplfast.mining.positives.quota import COUNTED, Made, fill
from gplfast.positive_settings import BM25

if TYPE_CHECKING:
    from collections.abc import Callable

    from gplfast.mining.lists import Int64
    from gplfast.mining.positives.job import Job, Method

# Method to what it is, and what a passage lacks of which no query can be made.
_METHODS: dict[str, tuple[Callable[[Job], Method], str]] = {
    "ict": (own.ict, "sentence"),
    "crop": (own.crop, "word"),
    "noise": (own.noise, "word"),
    "title": (own.title, "title"),
    "salient": (own.salient_parts, "salient span"),
    "neighbours": (others.neighbours, "neighbour"),
    "spans": (others.spans, "recurring span"),
    BM25: (pairing.cuts_of_passages, "word"),
}
# Their queries are cut from another passage than the one they are paired with.
_OF_OTHERS = ("neighbours", "spans", BM25)


def counted(job: Job) -> tuple[str, ...]:
    """What a method counts besides passages and queries."""
    if job.given is not None:
        return ("drawn", "duplicate", pairing.WITHOUT)
    method = job.config.method
    own_counts = (pairing.WITHOUT,) if method == BM25 else ()
    return (*COUNTED, f"passages without {_METHODS[method][1]}", *own_counts)


def open_method(job: Job) -> Callable[[Int64], Made]:
    """What makes the queries of some passages (of some given queries, where there are such).

    Each query follows from (corpus, settings, seed, passage, number of the sample) alone: the same for any shards.

    Args:
        job: What is to be made.

    Raises:
        DataError: The corpus lacks what the method needs.
        MissingExtraError: bm25s is needed and not installed.
    """
    if job.given is not None:
        return pairing.given(job, job.given.texts)
    make_samplers, lacks = _METHODS[job.config.method]
    method = make_samplers(job)
    pair = pairing.best_others(job) if job.config.method == BM25 else None

    def make(rows: Int64) -> Made:
        made = _fill(job, rows, method, f"passages without {lacks}")
        return made if pair is None else pair(made)

    return make


def _fill(job: Job, rows: Int64, method: Method, without: str) -> Made:
    samples: list[tuple[str, int]] = []
    lengths: list[int] = []
    counts: collections.Counter[str] = collections.Counter()
    # A query that is all of its passage, with or without the title, teaches nothing.
    wholes = zip(job.corpus.texts(rows), job.corpus.bodies(rows), strict=True)
    for sample, whole in zip(method(rows), wholes, strict=True):
        found = fill(sample, whole, job.quota, job.n_extra)
        counts.update(found.counts)
        counts[without] += not found.counts["drawn"]
        samples += found.samples
        lengths.append(len(found.samples))
    sources = np.array([source for _, source in samples], np.int64) if job.config.method in _OF_OTHERS else None
    return Made([text for text, _ in samples], np.repeat(rows, lengths), sources, counts)
