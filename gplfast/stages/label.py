"""label: the teacher's margin of a positive over a negative, for every visit of the training."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gplfast.errors import ArtifactError, DataError, ModelError
from gplfast.mining import averaging
from gplfast.mining.held_out import HeldOut, held_out
from gplfast.mining.lists import Lists, only, single
from gplfast.mining.refreshes import joined
from gplfast.mining.sampling import Visits, visited, visits
from gplfast.mining.scoring import OpenStore, PairScorer, Progress, Teacher, scorer_of
from gplfast.settings import output_settings
from gplfast.store.atomic import write_json
from gplfast.store.manifest import Manifest, freshness, retract
from gplfast.store.margins import Margins
from gplfast.store.shards import ShardSet

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from gplfast.config import LabelConfig, TrainConfig
    from gplfast.store.corpus import Corpus
    from gplfast.store.generated import GeneratedQueries
    from gplfast.store.negatives import Negatives, RankedLists

SHARD_ROWS = 32_768
# Rows whose margins say how wide each teacher's scores are: where |margin| spreads as wide as its mean, the mean of
# 2,048 is known to 1 / sqrt(2048), some 2 %.
SAMPLE_ROWS = 2048
TEACHERS_FILE = "teachers.json"
_SCORES = b"gplfast.scores"
Report = Callable[[str, int, int], None]


class Pairs(NamedTuple):
    """Different (query, passage) pairs of some rows, and where each row finds its own.

    Attributes:
        queries: int64 (n_pairs,).
        passages: int64 (n_pairs,).
        positive: int64 (n_rows,), index of the row's positive pair.
        negative: int64 (n_rows,), or (n_rows, n_negatives).
    """

    queries: npt.NDArray[np.int64]
    passages: npt.NDArray[np.int64]
    positive: npt.NDArray[np.int64]
    negative: npt.NDArray[np.int64]


Score = Callable[[Pairs, Progress], npt.NDArray[np.float32]]


def manifest(
    inputs: dict[str, str],
    teacher_fingerprint: str,
    config: LabelConfig,
    train: TrainConfig,
    seed: int,
    *,
    more_teachers: Sequence[str] = (),
) -> Manifest:
    """What the margins depend on; how many there are follows from the training's steps and batch size."""
    settings = {**output_settings(config), "seed": seed, "shard_rows": SHARD_ROWS, "batch_size": train.batch_size}
    if not more_teachers:
        settings.pop("average", None)
    if train.negatives_per_row > 1:
        settings["negatives_per_row"] = train.negatives_per_row
    if train.steps:
        settings["steps"] = train.steps
    else:
        settings["visits_per_query"], settings["max_steps"] = train.visits_per_query, train.max_steps
    if train.dev_share:
        settings["dev_share"] = train.dev_share
    models = averaging.teacher_models([teacher_fingerprint, *more_teachers])
    if not train.reads_scores:
        settings["scored"] = False
    if not config.asks_teacher(train):
        models = {}
    return Manifest("margins", inputs=inputs, config=settings, models=models)


def label(
    corpus: Corpus,
    queries: GeneratedQueries,
    negatives: Negatives,
    directory: Path,
    wanted: Manifest,
    *,
    config: LabelConfig,
    train: TrainConfig,
    open_teacher: Callable[[], Teacher],
    open_store: OpenStore,
    seed: int,
    more_teachers: Sequence[Callable[[], Teacher]] = (),
    compared_on: Negatives | None = None,
    report: Report | None = None,
    rows: Callable[[int], tuple[int, int]] | None = None,
) -> Margins:
    """Draw the visits of the training, score their pairs and write the margins, shard by shard.

    Each query is visited once per epoch, with one positive and `train.negatives_per_row` different negatives drawn
    uniformly from the union of all retrievers (see `visits`); the positive is the query's passage, or drawn from it
    and what the filters promoted. Queries without a negative are skipped and counted; so
    are those that are held out of training (`dev_share`), and those that `keep_share` leaves out, the ones whose own
    passage the teacher scores lowest. Fewer queries than a batch are fine: epochs go on. For a loss that reads no
    scores (`train.loss`) the rows are not scored, and their margins are NaN.

    Args:
        corpus: The passages.
        queries: The generated queries.
        negatives: Their negatives.
        directory: The artifact's directory.
        wanted: The manifest to write, see `manifest`.
        config: Settings of the step.
        train: Settings of the training: steps and batch size say how many rows there are.
        open_teacher: Opens the model; called only when there is something to score.
        open_store: Opens the stores of the scores; a pair is scored once in its life.
        seed: Seed of the visits.
        more_teachers: Open the other models whose scores are averaged with the first one's, see `averaging`. Their
            factors come from the first `SAMPLE_ROWS` visits and are in `teachers.json`.
        compared_on: The negatives of those visits; by default `negatives`. With it labels of other negatives, as of a
            later segment, are on one scale.
        report: Called with (what, done, all).
        rows: Gives, for so many queries that are trained on, the first row of the visits and the one after the last;
            by default all that the training takes. Any part has the rows that the whole has there.

    Returns:
        The margins, raw logits unless another activation was asked for.

    Raises:
        DataError: No query has a negative.
        ModelError: The teacher gave NaN or infinity.
    """
    if not freshness(directory, wanted).fresh:
        positives, pool, eligible, with_negatives = _trained_on(corpus, queries, negatives, train, seed)
        scorers = [
            functools.partial(_score, scorer_of(config, opener, open_store), corpus, queries)
            for opener in (open_teacher, *(more_teachers if config.asks_teacher(train) else ()))
        ]
        n_sample = min(SAMPLE_ROWS, train.n_steps(len(eligible)) * train.batch_size)
        compared = pool if compared_on is None else Lists(*compared_on.union())
        sample = functools.partial(visits, positives, compared, seed=seed, start=0, stop=n_sample)
        weights = _weights(scorers, config.average, sample, report)
        score = functools.partial(_average, scorers, weights)
        kept = _best_queries(eligible, queries, score, config.keep_share, report)
        first, end = rows(len(kept)) if rows is not None else (0, train.n_steps(len(kept)) * train.batch_size)
        counts = {
            "queries": len(kept),
            "rows drawn": end - first,
            "queries skipped, no negatives": len(queries) - with_negatives,
            "queries dropped by score": len(eligible) - len(kept),
        }
        if train.dev_share:
            counts["queries held out"] = with_negatives - len(eligible)
        draw = functools.partial(visits, only(positives, kept), pool, seed=seed, n_negatives=train.negatives_per_row)
        files = _write_teachers(directory, wanted, config.average, weights)
        rows_score = score if train.reads_scores else _unscored
        _run(ShardSet(directory, wanted), draw, rows_score, counts, report, first=first, files=files)
    return load(directory, wanted, n_queries=len(queries), n_passages=len(corpus))


def load(directory: Path, made: Manifest, *, n_queries: int, n_passages: int) -> Margins:
    """Read the finished artifact that has the manifest `made`.

    Raises:
        ArtifactError: It is damaged or belongs to another collection.
    """
    table = ShardSet(directory, made).table()
    return Margins.from_table(table, str(directory), n_queries=n_queries, n_passages=n_passages)


def mean_negative_score(directory: Path, made: Manifest) -> float:
    """The mean score that the teacher gave the negatives of the rows of a finished artifact; NaN without scores.

    Raises:
        ArtifactError: It is damaged, or made by a version that did not record it.
    """
    try:
        totals = [json.loads(table.schema.metadata[_SCORES]) for table in ShardSet(directory, made).tables()]
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{directory} does not say how its negatives were scored; delete it") from error
    n_scored = sum(total["n"] for total in totals)
    return float(sum(total["sum"] for total in totals) / n_scored) if n_scored else math.nan


def unique_pairs(rows: Visits) -> Pairs:
    """The different pairs of some rows, by query then passage."""
    n = len(rows.queries)
    passages = np.column_stack([rows.positives, rows.negatives])
    both = np.stack([np.repeat(rows.queries, passages.shape[1]), passages.ravel()], axis=1)
    pairs, inverse = np.unique(both, axis=0, return_inverse=True)
    found = inverse.reshape(n, -1)
    return Pairs(pairs[:, 0], pairs[:, 1], found[:, 0], found[:, 1:].reshape(rows.negatives.shape))


class _TrainedOn(NamedTuple):
    """Positives and negatives of each query, the queries that rows are drawn of, and how many have a negative."""

    positives: Lists
    pool: Lists
    eligible: npt.NDArray[np.int64]
    with_negatives: int


def _trained_on(
    corpus: Corpus, queries: GeneratedQueries, negatives: Negatives, train: TrainConfig, seed: int
) -> _TrainedOn:
    positives, pool = single(queries.passages), Lists(*negatives.union())
    eligible = visited(positives, pool)
    with_negatives = len(eligible)
    found = held_out(corpus, queries, train.dev_share, seed) if train.dev_share else None
    if found is not None:
        eligible = eligible[found.train[eligible]]
    if negatives.promoted is not None:
        positives = joined(positives, _promoted(negatives.promoted, queries, found))
    if not len(eligible):
        which = "of those that are not held out none" if train.dev_share else "none"
        raise DataError(
            f"cannot label: {len(queries)} queries and {which} has a negative; the corpus has {len(corpus)} "
            "passages, give more, or look at the counts of generate and mine"
        )
    return _TrainedOn(positives, pool, eligible, with_negatives)


def _promoted(promoted: RankedLists, queries: GeneratedQueries, found: HeldOut | None) -> Lists:
    """What the filters promoted, without passages that are held out."""
    lists = Lists(promoted.indptr, promoted.docs)
    if found is None:
        return lists
    held = np.unique(found.groups[queries.passages[~found.train]])
    kept = ~np.isin(found.groups[lists.rows], held)
    return Lists(np.concatenate([[0], np.cumsum(kept)])[lists.indptr].astype(np.int64), lists.rows[kept])


def _weights(scorers: Sequence[Score], how: str, sample: Callable[[], Visits], report: Report | None) -> list[float]:
    """What each teacher's scores are multiplied by before they are averaged."""
    if len(scorers) == 1 or how == "raw":
        return [1.0] * len(scorers)
    pairs = unique_pairs(sample())

    def show(done: int, total: int) -> None:
        if report is not None:
            report("compare teachers", done, total)

    return averaging.factors([_margins(score(pairs, show), pairs) for score in scorers])


def _write_teachers(directory: Path, wanted: Manifest, how: str, weights: list[float]) -> list[str]:
    """Say beside the labels how several teachers were averaged; returns the files that were written."""
    if len(weights) == 1:
        return []
    directory.mkdir(parents=True, exist_ok=True)
    retract(directory)  # an older manifest would describe another file
    factors = dict(zip(wanted.models.values(), weights, strict=True))
    write_json(directory / TEACHERS_FILE, {"average": how, "factors": factors})
    return [TEACHERS_FILE]


def _average(
    scorers: Sequence[Score], weights: Sequence[float], pairs: Pairs, progress: Progress
) -> npt.NDArray[np.float32]:
    if len(scorers) == 1:
        return scorers[0](pairs, progress)
    return averaging.average([score(pairs, progress) for score in scorers], weights)


def _score(
    scorer: PairScorer, corpus: Corpus, queries: GeneratedQueries, pairs: Pairs, progress: Progress
) -> npt.NDArray[np.float32]:
    query_rows, query_of = np.unique(pairs.queries, return_inverse=True)
    passage_rows, passage_of = np.unique(pairs.passages, return_inverse=True)
    texts = [queries.texts[row] for row in query_rows], corpus.texts(passage_rows)
    return scorer.score(*texts, query_of.astype(np.int64), passage_of.astype(np.int64), progress)


def _best_queries(
    eligible: npt.NDArray[np.int64],
    queries: GeneratedQueries,
    score: Score,
    share: float,
    report: Report | None,
) -> npt.NDArray[np.int64]:
    """The share of the queries whose own passage the teacher scores best, ascending: a generator's nonsense goes."""
    if share >= 1.0:
        return eligible
    rows = np.arange(len(eligible))
    pairs = Pairs(eligible, queries.passages[eligible], rows, rows)
    scores = score(pairs, lambda done, total: None if report is None else report("score queries", done, total))
    order = np.lexsort((eligible, -np.nan_to_num(scores, nan=-np.inf)))
    return np.sort(eligible[order[: max(1, math.ceil(share * len(eligible)))]])


def _run(
    shards: ShardSet,
    draw: Callable[..., Visits],
    score: Score,
    counts: dict[str, int],
    report: Report | None,
    *,
    first: int,
    files: list[str],
) -> None:
    n_rows = counts["rows drawn"]
    for shard in shards.missing(_n_shards(n_rows)):
        start, stop = shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, n_rows)

        def show(done: int, total: int, start: int = start, stop: int = stop) -> None:
            if report is not None:
                report("label", start + (stop - start) * done // max(total, 1), n_rows)

        rows = draw(start=first + start, stop=first + stop)
        pairs = unique_pairs(rows)
        scores = score(pairs, show)
        margins = _margins(scores, pairs)
        valid = np.logical_and.reduce(np.isfinite(margins).reshape(len(margins), -1), axis=1) | (score is _unscored)
        found = scores[pairs.negative][valid]
        n_scored = 0 if score is _unscored else found.size
        total = {_SCORES: json.dumps({"sum": float(np.nansum(found, dtype=np.float64)), "n": n_scored})}
        shards.write(shard, _rows(rows, margins, valid).replace_schema_metadata(total))
    n_written = sum(table.num_rows for table in shards.tables())
    if not n_written:
        raise ModelError(f"the teacher gave NaN for all {n_rows} rows; use another teacher")
    shards.finish({**counts, "rows": n_written, "rows dropped for NaN": n_rows - n_written}, files=files)


def _unscored(pairs: Pairs, progress: Progress) -> npt.NDArray[np.float32]:
    """No score of any pair."""
    progress(len(pairs.queries), len(pairs.queries))
    return np.full(len(pairs.queries), np.nan, np.float32)


def _margins(scores: npt.NDArray[np.float32], pairs: Pairs) -> npt.NDArray[np.float32]:
    negative = scores[pairs.negative]
    positive = scores[pairs.positive].reshape(-1, *[1] * (negative.ndim - 1))
    return np.asarray(positive - negative, np.float32)


def _rows(rows: Visits, margins: npt.NDArray[np.float32], valid: npt.NDArray[Any]) -> pa.Table:
    kept = Margins(rows.queries[valid], rows.positives[valid], rows.negatives[valid], margins[valid])
    return kept.table()


def _n_shards(n_rows: int) -> int:
    return max(1, -(-n_rows // SHARD_ROWS))
