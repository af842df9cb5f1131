"""mine: hard negatives, the best passages of each retriever that are not the query's own."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from gplfast.mining import dense
from gplfast.mining.bm25 import Bm25, Ranking
from gplfast.mining.lists import Lists, same_text_groups, widen
from gplfast.mining.round_trip import any_returns
from gplfast.settings import output_settings
from gplfast.store.manifest import Manifest, freshness
from gplfast.store.negatives import Negatives
from gplfast.store.shards import ShardSet

if TYPE_CHECKING:
    from pathlib import Path

    from gplfast.config import MineConfig
    from gplfast.mining.dense import Encoder
    from gplfast.store.corpus import Corpus
    from gplfast.store.labelled import Positives

SHARD_QUERIES = 4096
BM25 = "bm25"
_COUNTS = b"gplfast.counts"
Report = Callable[[str, int, int], None]


class Source(NamedTuple):
    """A retriever over queries start..stop-1.

    Attributes:
        search: Their best passages, some excluded.
        own_scores: float32, of each with each of the given passages.
    """

    search: Callable[[int, int, Lists], Ranking]
    own_scores: Callable[[int, int, Lists], npt.NDArray[np.float32]]


def manifest(inputs: dict[str, str], fingerprints: dict[str, str], config: MineConfig) -> Manifest:
    """What the negatives depend on.

    Args:
        inputs: "corpus" and "queries".
        fingerprints: Short name of each retriever, in order, to the fingerprint of its weights.
        config: Settings of the step.
    """
    settings = output_settings(config)
    # Paths do not matter, weights do; the names are kept because they name the columns.
    settings["retrievers"] = list(fingerprints)
    settings["metrics"] = metrics(config)
    settings["shard_queries"] = SHARD_QUERIES
    return Manifest("negatives", inputs=inputs, config=settings, models=fingerprints)


def metrics(config: MineConfig) -> list[str]:
    """One similarity per retriever."""
    given = list(config.metrics)
    return given if len(given) == len(config.retrievers) else given * len(config.retrievers)


def mine(
    corpus: Corpus,
    queries: Positives,
    directory: Path,
    wanted: Manifest,
    config: MineConfig,
    *,
    encoders: dict[str, Callable[[], Encoder] | None],
    embeddings: Path,
    threads: int = 0,
    report: Report | None = None,
) -> Negatives:
    """Find `negatives_per_query` passages per query and retriever and write them, shard by shard.

    Positives (and passages of the same text, when asked for) are excluded inside the search, so the number is reached
    whenever the corpus has that many others; BM25 gives fewer where fewer share a word with the query.

    With `round_trip_top` = K a query gets no negatives at all, and is counted, when none of the retrievers has one of
    its positives among its K best by (score descending, row ascending). Positives do not compete with each other, nor
    do passages of the same text where they are excluded.

    Args:
        corpus: The passages.
        queries: Generated or labelled ones, with their positives.
        directory: The artifact's directory.
        wanted: The manifest to write, see `manifest`.
        config: Settings of the step.
        encoders: Short name of each retriever to what opens it, None for BM25.
        embeddings: Directory of all embeddings.
        threads: CPU threads, 0 for all.
        report: Called with (what, done, all).

    Returns:
        The negatives of every query.
    """
    if not freshness(directory, wanted).fresh:
        job = _Job(corpus, queries, wanted, config, embeddings, threads, report)
        _run(job, ShardSet(directory, wanted), encoders)
    return load(directory, wanted, n_queries=len(queries), n_passages=len(corpus))


def load(directory: Path, made: Manifest, *, n_queries: int, n_passages: int) -> Negatives:
    """Read the finished artifact that has the manifest `made`.

    Raises:
        ArtifactError: It is damaged or belongs to another collection.
    """
    table = ShardSet(directory, made).table()
    return Negatives.from_table(table, str(directory), n_queries=n_queries, n_docs=n_passages)


def exclusions(corpus: Corpus, queries: Positives, *, duplicates: bool) -> Lists:
    """Per query the rows that are no negatives: its positives and, when asked for, all passages of the same text."""
    positives = Lists(*queries.positives)
    return widen(positives, same_text_groups(corpus.texts())) if duplicates else positives


@dataclasses.dataclass(frozen=True)
class _Job:
    corpus: Corpus
    queries: Positives
    wanted: Manifest
    config: MineConfig
    embeddings: Path
    threads: int
    report: Report | None

    @property
    def k(self) -> int:
        """How many passages are searched for."""
        return min(max(self.config.negatives_per_query, self.config.round_trip_top), len(self.corpus))

    @functools.cached_property
    def positives(self) -> Lists:
        return Lists(*self.queries.positives)


def _run(job: _Job, shards: ShardSet, encoders: dict[str, Callable[[], Encoder] | None]) -> None:
    n_queries = len(job.queries)
    missing = shards.missing(_n_shards(n_queries))
    excluded = exclusions(job.corpus, job.queries, duplicates=job.config.exclude_duplicates)
    sources: dict[str, Source] = {}
    for (name, open_encoder), metric in zip(encoders.items(), metrics(job.config), strict=True):
        if missing:
            sources[name] = _bm25(job) if open_encoder is None else _dense(job, name, open_encoder(), metric)
    for shard in missing:
        start, stop = shard * SHARD_QUERIES, min((shard + 1) * SHARD_QUERIES, n_queries)
        part = excluded.part(start, stop)
        rankings = {name: source.search(start, stop, part) for name, source in sources.items()}
        kept = _round_trip(job, sources, rankings, start, stop)
        n_most = job.config.negatives_per_query
        found = Negatives.from_padded(
            np.arange(start, stop),
            {
                name: (np.where(kept[:, None], ranking.ids[:, :n_most], -1), ranking.scores[:, :n_most])
                for name, ranking in rankings.items()
            },
        )
        table = found.table()
        counts = {_COUNTS: json.dumps({"dropped": int((~kept).sum())})}
        shards.write(shard, table.replace_schema_metadata({**table.schema.metadata, **counts}))
        if job.report is not None:
            job.report("mine", stop, n_queries)
    shards.finish(_counts(job, shards))


def _round_trip(
    job: _Job, sources: Mapping[str, Source], rankings: Mapping[str, Ranking], start: int, stop: int
) -> npt.NDArray[np.bool_]:
    """Which queries some retriever takes back to a positive; all of them where that is not asked for."""
    top, own = job.config.round_trip_top, job.positives.part(start, stop)
    kept = np.full(stop - start, top == 0)
    for name, ranking in rankings.items() if top else ():
        kept |= any_returns(ranking, sources[name].own_scores(start, stop, own), own, top)
    return kept


def _counts(job: _Job, shards: ShardSet) -> dict[str, int]:
    done = Negatives.from_table(shards.table(), str(shards.directory))
    n_dropped = sum(json.loads(table.schema.metadata[_COUNTS])["dropped"] for table in shards.tables())
    n_without = int((np.diff(done.union()[0]) == 0).sum())
    counts = {"queries": len(job.queries), "queries without negatives": n_without - n_dropped}
    if job.config.round_trip_top:
        counts["queries dropped by round trip"] = n_dropped
    return counts | {f"negatives {name}": len(ranked.docs) for name, ranked in done.lists.items()}


def _bm25(job: _Job) -> Source:
    index = Bm25(job.corpus.texts())
    texts = job.queries.texts
    return Source(
        lambda start, stop, excluded: index.search(texts[start:stop], job.k, exclude=excluded),
        lambda start, stop, pairs: index.pair_scores(texts[start:stop], pairs),
    )


def _dense(job: _Job, name: str, encoder: Encoder, metric: str) -> Source:
    def show(what: str) -> Callable[[int, int], None] | None:
        return None if job.report is None else functools.partial(job.report, f"embed {what} ({name})")

    embed = functools.partial(dense.embed, encoder, root=job.embeddings, batch_size=job.config.batch_size)
    docs = embed(
        job.corpus.texts,
        len(job.corpus),
        texts_fingerprint=job.corpus.fingerprint,
        kind="document",
        progress=show("passages"),
    )
    vectors = embed(
        dense.text_rows(job.queries.texts),
        len(job.queries),
        texts_fingerprint=job.wanted.inputs["queries"],
        kind="query",
        progress=show("queries"),
    )
    return Source(
        lambda start, stop, excluded: dense.search(
            vectors[start:stop], docs, job.k, exclude=excluded, metric=metric, threads=job.threads
        ),
        lambda start, stop, pairs: dense.pair_scores(
            vectors[start:stop], docs, pairs, metric=metric, threads=job.threads
        ),
    )


def _n_shards(n_queries: int) -> int:
    return max(1, -(-n_queries // SHARD_QUERIES))
