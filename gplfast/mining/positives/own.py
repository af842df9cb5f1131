"""Queries from a part of their own passage: ict, crop, noise, title, salient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gplfast.errors import DataError
from gplfast.mining.bm25 import Bm25
from gplfast.mining.positives import cuts, salient
from gplfast.mining.positives.job import Job, Method, Sample, Sampler, in_order
from gplfast.mining.positives.text import Span, Words, draws, pick, sentences
from gplfast.positive_settings import ENCODER

if TYPE_CHECKING:
    from gplfast.mining.dense import Kind
    from gplfast.mining.lists import Int64

Scores = npt.NDArray[np.float32]
# Of some passages the scores of each one's candidates.
Scorer = Callable[["Int64", Sequence[Sequence[str]]], Iterator[Scores]]


def ict(job: Job) -> Method:
    """The sentences of each passage, in random order."""

    def of(rows: Int64) -> Iterator[Sampler]:
        for row, body in zip(rows.tolist(), job.bodies(rows), strict=True):
            yield in_order(row, cuts.shuffled_sentences(body, seed=job.seed, row=row))

    return of


def crop(job: Job) -> Method:
    """Random crops of each passage."""

    def of(rows: Int64) -> Iterator[Sampler]:
        for row, body in zip(rows.tolist(), job.bodies(rows), strict=True):
            words = Words.of(body)

            def sample(number: int, row: int = row, words: Words = words) -> Sample | None:
                random = draws(job.seed, "crop", row, number, 2)
                return (cuts.crop(words, job.ratios, random), row) if words else None

            yield sample

    return of


def noise(job: Job) -> Method:
    """Random crops of each passage, their words deleted, replaced or masked at random."""
    config = job.config
    fates = cuts.Noise(config.noise_delete, config.noise_replace, config.noise_mask, config.mask_text)

    def other_word(where: np.uint64, which: np.uint64) -> str:
        words = Words.of(job.corpus.text(pick(where, len(job.corpus))))
        return words.run(pick(which, len(words)), 1) if words else ""

    def sample(row: int, words: Words, number: int) -> Sample | None:
        random = draws(job.seed, "noise", row, number, cuts.n_random(len(words), job.ratios))
        return (cuts.noisy_crop(words, job.ratios, fates, random, other_word), row) if words else None

    def of(rows: Int64) -> Iterator[Sampler]:
        for row, body in zip(rows.tolist(), job.bodies(rows), strict=True):
            yield functools.partial(sample, row, Words.of(body))

    return of


def title(job: Job) -> Method:
    """The title of each passage, once.

    Raises:
        DataError: No passage has one.
    """
    if not any(name.strip() for name in job.corpus.titles(np.arange(len(job.corpus)))):
        raise DataError(
            f"generate: method title needs titles but none of {len(job.corpus)} passages has one; name their column "
            "(input.title_column), or use another method, e.g. crop"
        )

    def of(rows: Int64) -> Iterator[Sampler]:
        for row, name in zip(rows.tolist(), job.corpus.titles(rows), strict=True):
            yield in_order(row, [name] if name.strip() else [])

    return of


def salient_parts(job: Job) -> Method:
    """The candidates of each passage that score best with it, best first."""
    config = job.config
    scorer = _by_encoder(job) if config.salient_by == ENCODER else _by_bm25(job)

    def of(rows: Int64) -> Iterator[Sampler]:
        bodies = job.bodies(rows)
        places = [_candidates(job, row, body) for row, body in zip(rows.tolist(), bodies, strict=True)]
        texts = [[body[start:end] for start, end in spans] for body, spans in zip(bodies, places, strict=True)]
        for row, body, spans, scores in zip(rows.tolist(), bodies, places, scorer(rows, texts), strict=True):
            best = [spans[number] for number in salient.order(scores)]
            if config.salient_masked:
                yield in_order(row, [salient.masked(body, span, config.mask_text) for span in best])
            else:
                yield in_order(row, [body[start:end] for start, end in best])

    return of


def _candidates(job: Job, row: int, body: str) -> list[Span]:
    config = job.config
    if config.salient_unit == "sentences":
        return sentences(body)
    n = max(config.salient_candidates, job.quota)
    random = draws(job.seed, "salient", row, 0, 2 * n)
    return salient.random_spans(Words.of(body), n, config.salient_words_min, config.salient_words_max, random)


def _by_bm25(job: Job) -> Scorer:
    index = Bm25(job.corpus.texts())

    def score(rows: Int64, texts: Sequence[Sequence[str]]) -> Iterator[Scores]:
        for row, parts in zip(rows.tolist(), texts, strict=True):
            yield index.own_scores(parts, row)

    return score


def _by_encoder(job: Job) -> Scorer:
    encoder = job.open_encoder()

    def unit(texts: Sequence[str], kind: Kind) -> npt.NDArray[np.float64]:
        vectors = encoder.encode(texts, kind=kind, batch_size=0, progress=None).astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        units: npt.NDArray[np.float64] = np.divide(
            vectors, lengths, out=np.full_like(vectors, np.nan), where=lengths > 0
        )
        return units

    def score(rows: Int64, texts: Sequence[Sequence[str]]) -> Iterator[Scores]:
        passages = unit(job.corpus.texts(rows), "document")
        parts = unit([text for part in texts for text in part], "query")
        start = 0
        for passage, part in zip(passages, texts, strict=True):
            yield (parts[start : start + len(part)] @ passage).astype(np.float32)
            start += len(part)

    return score
