"""mine: hard negatives, the best passages of each retriever that are not the query's own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from gplfast.config import MineConfig, output_settings
from gplfast.mining import dense
from gplfast.mining.bm25 import Bm25, Ranking
from gplfast.mining.lists import Lists, from_sequences, same_text_groups, single, widen
from gplfast.store.manifest import Manifest, freshness
from gplfast.store.negatives import Negatives
from gplfast.store.shards import ShardSet

if TYPE_CHECKING:
    from pathlib import Path

    from gplfast.mining.dense import Encoder
    from gplfast.store.corpus import Corpus
    from gplfast.store.generated import GeneratedQueries

SHARD_QUERIES = 4096
BM25 = "bm25"
Report = Callable[[str, int, int], None]
Source = Callable[[int, int, Lists], Ranking]


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
    queries: GeneratedQueries,
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

    Args:
        corpus: The passages.
        queries: The generated queries.
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


def exclusions(corpus: Corpus, queries: GeneratedQueries, *, duplicates: bool) -> Lists:
    """Per query the rows that are no negatives: its passage and, when asked for, all passages of the same text."""
    positives = single(queries.passages)
    return widen(positives, same_text_groups(corpus.texts())) if duplicates else positives


@dataclasses.dataclass(frozen=True)
class _Job:
    corpus: Corpus
    queries: GeneratedQueries
    wanted: Manifest
    config: MineConfig
    embeddings: Path
    threads: int
    report: Report | None

    @property
    def k(self) -> int:
        return min(self.config.negatives_per_query, len(self.corpus))


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
        part = from_sequences([excluded.list(query) for query in range(start, stop)])
        rankings = {name: source(start, stop, part) for name, source in sources.items()}
        found = Negatives.from_padded(
            np.arange(start, stop), {name: (ranking.ids, ranking.scores) for name, ranking in rankings.items()}
        )
        shards.write(shard, found.table())
        if job.report is not None:
            job.report("mine", stop, n_queries)
    done = Negatives.from_table(shards.table(), str(shards.directory))
    counts = {f"negatives {name}": len(ranked.docs) for name, ranked in done.lists.items()}
    per_query = np.diff(done.union()[0])
    shards.finish({"queries": n_queries, "queries without negatives": int((per_query == 0).sum()), **counts})


def _bm25(job: _Job) -> Source:
    index = Bm25(job.corpus.texts())
    return lambda start, stop, excluded: index.search(job.queries.texts[start:stop], job.k, exclude=excluded)


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
    return lambda start, stop, excluded: dense.search(
        vectors[start:stop], docs, job.k, metric=metric, exclude=excluded, threads=job.threads
    )


def _n_shards(n_queries: int) -> int:
    return max(1, -(-n_queries // SHARD_QUERIES))
