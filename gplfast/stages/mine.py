"""mine: hard negatives, the best passages of each retriever that are not the query's own."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gplfast.errors import DataError
from gplfast.mining import dense, draws, retrievers, semi_hard, sources
from gplfast.mining.approximate import Approximate
from gplfast.mining.audit import audited, forget
from gplfast.mining.bm25 import Ranking
from gplfast.mining.explicit import read_explicit
from gplfast.mining.filtering import OVERFETCH, Asked, Filtering, Tally, named
from gplfast.mining.hard_positives import hardest
from gplfast.mining.lists import Copies, Lists, Widened, same_text_groups, without
from gplfast.mining.round_trip import any_returns
from gplfast.settings import output_settings
from gplfast.store.manifest import Manifest, file_fingerprint, freshness
from gplfast.store.negatives import Negatives
from gplfast.store.shards import ShardSet

if TYPE_CHECKING:
    import pyarrow as pa

    from gplfast.config import MineConfig
    from gplfast.mining.dense import Encoder
    from gplfast.mining.lists import Int64
    from gplfast.mining.retrievers import Retriever
    from gplfast.store.corpus import Corpus
    from gplfast.store.labelled import Positives

logger = logging.getLogger(__name__)
SHARD_QUERIES = 4096
BM25 = sources.BM25
_COUNTS = b"gplfast.counts"
Report = Callable[[str, int, int], None]


def manifest(
    inputs: dict[str, str],
    fingerprints: dict[str, str],
    config: MineConfig,
    seed: int = 0,
    filters: Mapping[str, Any] | None = None,
) -> Manifest:
    """What the negatives depend on.

    Args:
        inputs: "corpus" and "queries".
        fingerprints: Short name of each retriever that is used, in order, to the fingerprint of its weights.
        config: Settings of the step.
        seed: The run's seed; recorded where something is drawn.
        filters: What the filters depend on, see `gplfast.mining.filtering.identity`; nothing where none is on.

    Raises:
        ConfigError: The sources are malformed.
        DataError: The file of explicit negatives cannot be read.
    """
    settings = output_settings(config)
    # Paths do not matter, weights do; the names are kept because they name the columns.
    settings["retrievers"] = list(fingerprints)
    settings["metrics"] = [_metric_of(config)[name] for name in fingerprints]
    settings["shard_queries"] = SHARD_QUERIES
    if config.sources:
        settings["sources"] = sources.canonical(sources.plan(config))
    if sources.draws(config):
        settings["seed"] = seed
    if filters:
        settings["filter"] = dict(filters)
    if config.explicit:
        inputs = {**inputs, "explicit": _fingerprint_of(config.explicit)}
    return Manifest("negatives", inputs=inputs, config=settings, models=fingerprints)


def _fingerprint_of(file: str) -> str:
    try:
        return file_fingerprint(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be opened ({error.strerror}); check --explicit") from error


def metrics(config: MineConfig) -> list[str]:
    """One similarity per retriever."""
    given = list(config.metrics)
    return given if len(given) == len(config.retrievers) else given * len(config.retrievers)


def _metric_of(config: MineConfig) -> dict[str, str]:
    """The similarity of each retriever by its short name; BM25 has one of its own, whatever is written here."""
    return {BM25: "cosine", **dict(zip(sources.short_names(config.retrievers), metrics(config), strict=True))}


def mine(
    corpus: Corpus,
    queries: Positives,
    directory: Path,
    wanted: Manifest,
    config: MineConfig,
    *,
    encoders: dict[str, Callable[[], Encoder] | None],
    embeddings: Path,
    seed: int = 0,
    threads: int = 0,
    filters: Asked | None = None,
    report: Report | None = None,
) -> Negatives:
    """Find the negatives of each query, of each source so many, and write them, shard by shard.

    Positives (and passages of the same text, when asked for) are excluded inside the search, so the number is reached
    whenever the corpus has that many others; BM25 gives fewer where fewer share a word with the query. What is drawn
    or listed by the user has no scores.

    With `round_trip_top` = K a query gets no negatives at all, and is counted, when none of the retrievers has one of
    its positives among its K best by (score descending, row ascending). Positives do not compete with each other, nor
    do passages of the same text where they are excluded.

    Args:
        corpus: The passages.
        queries: Generated or labelled ones, with their positives.
        directory: The artifact's directory.
        wanted: The manifest to write, see `manifest`.
        config: Settings of the step.
        encoders: Short name of each retriever that is used to what opens it, None for BM25.
        embeddings: Directory of all embeddings.
        seed: The run's seed.
        threads: CPU threads, 0 for all.
        filters: Which candidates are no negatives, and the audit of those that are; none by default.
        report: Called with (what, done, all).

    Returns:
        The negatives of every query; the same for any number of threads and after any kill.
    """
    if not freshness(directory, wanted).fresh:
        forget(directory)
        job = _Job(corpus, queries, wanted, config, embeddings, seed, threads, filters or Asked(), report)
        _run(job, ShardSet(directory, wanted), encoders)
    found = load(directory, wanted, n_queries=len(queries), n_passages=len(corpus))
    if filters is not None and filters.config.audit:
        teacher = filters.teacher(queries.texts, corpus.texts, report and functools.partial(report, "audit"))
        audited(directory, Lists(*queries.positives), found, filters, teacher, seed=seed)
    return found


def load(directory: Path, made: Manifest, *, n_queries: int, n_passages: int) -> Negatives:
    """Read the finished artifact that has the manifest `made`.

    Raises:
        ArtifactError: It is damaged or belongs to another collection.
    """
    table = ShardSet(directory, made).table()
    return Negatives.from_table(table, str(directory), n_queries=n_queries, n_docs=n_passages)


def exclusions(corpus: Corpus, queries: Positives, *, duplicates: bool) -> Lists | Widened:
    """Per query the rows that are no negatives: its positives, what it was cut from, and, if asked, their copies."""
    never = Lists(*queries.never_negative)
    return Widened(never, Copies(same_text_groups(corpus.texts()))) if duplicates else never


@dataclasses.dataclass(frozen=True)
class _Job:
    corpus: Corpus
    queries: Positives
    wanted: Manifest
    config: MineConfig
    embeddings: Path
    seed: int
    threads: int
    filters: Asked
    report: Report | None

    @functools.cached_property
    def planned(self) -> list[sources.Source]:
        """The sources, with more candidates where filters will drop some."""
        planned = sources.plan(self.config)
        over = OVERFETCH if self.filters.config.on and not self.config.candidates else 1
        return [source if source.windowed else source._replace(depth=over * source.depth) for source in planned]

    @functools.cached_property
    def positives(self) -> Lists:
        return Lists(*self.queries.positives)

    @functools.cached_property
    def excluded(self) -> Lists | Widened:
        return exclusions(self.corpus, self.queries, duplicates=self.config.exclude_duplicates)

    @functools.cached_property
    def explicit(self) -> Lists:
        """The user's negatives."""
        return read_explicit(Path(self.config.explicit), self.corpus, self.queries)

    def pool(self, column: str) -> Int64:
        """The rows that `random` or `gold` draw from."""
        return np.arange(len(self.corpus)) if column == sources.RANDOM else np.unique(self.positives.rows)

    def show(self, what: str) -> Callable[[int, int], None] | None:
        return None if self.report is None else functools.partial(self.report, what)


class _Shard(NamedTuple):
    """Queries start..stop-1, what each retriever found for them, and their exclusions and positives."""

    queries: Int64
    found: Mapping[str, Ranking]
    retrievers: Mapping[str, Retriever]
    excluded: Lists
    positives: Lists

    @property
    def start(self) -> int:
        return int(self.queries[0]) if len(self.queries) else 0


def _run(job: _Job, shards: ShardSet, encoders: dict[str, Callable[[], Encoder] | None]) -> None:
    n_queries = len(job.queries)
    missing = shards.missing(_n_shards(n_queries))
    opened: dict[str, Retriever] = {}
    for name, open_encoder in encoders.items():
        if missing:
            opened[name] = (
                retrievers.bm25(job.corpus.texts(), job.queries.texts)
                if open_encoder is None
                else _dense(job, name, open_encoder())
            )
    recall = _recall(job, opened)
    filtering = Filtering(
        job.filters,
        job.queries.texts,
        job.corpus.texts,
        docs=[retriever.docs for retriever in opened.values() if retriever.docs is not None],
        n_candidates=max(source.depth - source.first for source in job.planned),
        threads=job.threads,
        progress=job.show("filter"),
    )
    for number in missing:
        start, stop = number * SHARD_QUERIES, min((number + 1) * SHARD_QUERIES, n_queries)
        shards.write(number, _mined(job, opened, np.arange(start, stop), recall, filtering))
        if job.report is not None:
            job.report("mine", stop, n_queries)
    shards.finish(_counts(job, shards))


def _mined(
    job: _Job, opened: Mapping[str, Retriever], queries: Int64, recall: dict[str, int], filtering: Filtering
) -> pa.Table:
    """The negatives of a shard; with them what `_counts` cannot see in them."""
    start, stop = (int(queries[0]), int(queries[-1]) + 1) if len(queries) else (0, 0)
    excluded, positives = job.excluded.part(start, stop), job.positives.part(start, stop)
    found = {name: retriever.search(queries, _n_searched(job, name), excluded) for name, retriever in opened.items()}
    shard = _Shard(queries, found, opened, excluded, positives)
    kept, tally = _round_trip(job, shard), Tally()
    drop = functools.partial(filtering, kept=kept, tally=tally)
    chosen = {source.column: _chosen(job, source, shard, drop) for source in job.planned}
    negatives = Negatives.from_padded(
        queries,
        {
            source.column: (chosen[source.column].ids, chosen[source.column].scores if source.retriever else None)
            for source in job.planned
        },
        _hard_positives(job, shard),
    )
    table = tally.with_pseudo_positives(negatives, job.filters.config)
    told = {"dropped": int((~kept).sum()), **({"recall": recall} if recall else {}), **tally.told()}
    counts = {_COUNTS: json.dumps(told)}
    return table.replace_schema_metadata({**table.schema.metadata, **counts})


def _recall(job: _Job, opened: Mapping[str, Retriever]) -> dict[str, int]:
    """How much of the exact answer each approximate retriever finds, for the counts of the manifest."""
    found = {}
    for name, retriever in opened.items():
        if retriever.recall is not None:
            k = _n_searched(job, name)
            share = retriever.recall(k, job.excluded)
            logger.info("%s: %s finds %.3f of the exact %d best", name, job.config.search, share, k)
            found[f"recall@{k} {name}, per mille"] = round(1000 * share)
    return found


def _n_searched(job: _Job, retriever: str) -> int:
    """How many passages of a retriever are searched for."""
    depths = [source.depth for source in job.planned if source.retriever == retriever]
    return min(max([*depths, job.config.round_trip_top]), len(job.corpus))


def _candidates(job: _Job, source: sources.Source, shard: _Shard) -> Ranking:
    """What a source offers for each query, best first: at least as many as are asked for where there are."""
    if source.column in sources.DRAWN:
        pool = job.pool(source.column)
        return draws.drawn(
            pool, source.depth, shard.excluded, seed=job.seed, column=source.column, first_query=shard.start
        )
    if source.column == sources.EXPLICIT:
        given = job.explicit.part(shard.start, shard.start + len(shard.queries))
        return draws.listed(without(given, shard.excluded))
    found = shard.found[source.retriever]
    if source.semi_hard:
        retriever = shard.retrievers[source.retriever]
        limit = semi_hard.limits(retriever.pair_scores(shard.queries, shard.positives), shard.positives)

        def deeper(numbers: Int64, k: int, excluded: Lists) -> Ranking:
            return retriever.search(shard.queries[numbers], k, excluded)

        return semi_hard.below_positive(
            deeper, found, limit, shard.excluded, depth=source.depth, n_docs=len(job.corpus)
        )
    return Ranking(found.scores[:, source.first : source.depth], found.ids[:, source.first : source.depth])


def _chosen(job: _Job, source: sources.Source, shard: _Shard, drop: Callable[..., Ranking]) -> Ranking:
    """The negatives among a source's candidates, those left out that `drop` drops."""
    candidates = _candidates(job, source, shard)
    at_random = job.config.sampling == "random" and source.column not in sources.DRAWN
    places = None
    if at_random:
        candidates, places = draws.shuffled(candidates, seed=job.seed, column=source.column, first_query=shard.start)
    retriever = shard.retrievers.get(source.retriever)
    own = retriever and functools.partial(retriever.pair_scores, shard.queries, shard.positives)
    chosen = draws.first(drop(candidates, shard.positives, own, shard.queries, source, places=places), source.n)
    return draws.best_first(chosen) if at_random and source.retriever else chosen


def _hard_positives(job: _Job, shard: _Shard) -> Int64 | None:
    """The positive of each query that the first retriever ranks lowest, where that is asked for."""
    if job.config.positives == "all":
        return None
    retriever = next(iter(shard.retrievers.values()))
    return hardest(retriever.pair_scores(shard.queries, shard.positives), shard.positives)


def _round_trip(job: _Job, shard: _Shard) -> npt.NDArray[np.bool_]:
    """Which queries some retriever takes back to a positive; all of them where that is not asked for."""
    top = job.config.round_trip_top
    kept = np.full(len(shard.queries), top == 0)
    for name, ranking in shard.found.items() if top else ():
        scores = shard.retrievers[name].pair_scores(shard.queries, shard.positives)
        kept |= any_returns(ranking, scores, shard.positives, top)
    return kept


def _counts(job: _Job, shards: ShardSet) -> dict[str, int]:
    done = Negatives.from_table(shards.table(), str(shards.directory))
    told: list[dict[str, Any]] = [json.loads(table.schema.metadata[_COUNTS]) for table in shards.tables()]
    n_dropped = sum(shard["dropped"] for shard in told)
    n_without = int((np.diff(done.union()[0]) == 0).sum())
    counts = {"queries": len(job.queries), "queries without negatives": n_without - n_dropped}
    if job.config.round_trip_top:
        counts["queries dropped by round trip"] = n_dropped
    counts |= {f"negatives {name}": len(ranked.docs) for name, ranked in done.lists.items()}
    counts |= told[0].get("recall", {})
    counts |= named(job.filters.config, [shard.get("filters", {}) for shard in told])
    return counts


def _dense(job: _Job, name: str, encoder: Encoder) -> Retriever:
    config = job.config
    embed = functools.partial(dense.embed, encoder, root=job.embeddings, batch_size=config.batch_size)
    docs = embed(
        job.corpus.texts,
        len(job.corpus),
        texts_fingerprint=job.corpus.fingerprint,
        kind="document",
        progress=job.show(f"embed passages ({name})"),
    )
    vectors = embed(
        dense.text_rows(job.queries.texts),
        len(job.queries),
        texts_fingerprint=job.wanted.inputs["queries"],
        kind="query",
        progress=job.show(f"embed queries ({name})"),
    )
    metric = _metric_of(config)[name]
    if config.search == "exact":
        return retrievers.exact(vectors, docs, metric=metric, threads=job.threads)
    identity = dense.embeddings_identity(encoder, job.corpus.fingerprint, "document")
    index = Approximate(
        docs,
        job.embeddings / f"{identity[:24]}-{metric}.{config.search}",
        kind=config.search,
        metric=metric,
        nprobe=config.nprobe,
        threads=job.threads,
        progress=job.show(f"index passages ({name})"),
    )
    return retrievers.approximate(vectors, docs, index, metric=metric, threads=job.threads)


def _n_shards(n_queries: int) -> int:
    return max(1, -(-n_queries // SHARD_QUERIES))
