"""mine: hard negatives, the best passages of each retriever that are not the query's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gplfast.config import MineConfig, output_settings
from gplfast.mining import dense
from gplfast.mining.bm25 import Bm25, Ranking
from gplfast.mining.dense import Encoder
from gplfast.mining.lists import Lists, from_sequences, same_text_groups, widen
from gplfast.store.corpus import Corpus
from gplfast.store.generated import GeneratedQueries
from gplfast.store.manifest import Manifest, freshness
from gplfast.store.negatives import Negatives
from gplfast.store.shards import ShardSet

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
    embeddings: Path,
    wanted: Manifest,
    config: MineConfig,
    encoders: dict[str, Callable[[], Encoder] | None],
    *,
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
        embeddings: Directory of all embeddings.
        wanted: The manifest to write, see `manifest`.
        config: Settings of the step.
        encoders: Short name of each retriever to what opens it, None for BM25.
        threads: CPU threads, 0 for all.
        report: Called with (what, done, all).

    Returns:
        The negatives of every query.
    """
    if not freshness(directory, wanted).fresh:
        _run(corpus, queries, directory, embeddings, wanted, config, encoders, threads, report)
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
    positives = from_sequences(queries.passages.reshape(-1, 1))
    return widen(positives, same_text_groups(corpus.texts())) if duplicates else positives


def _run(
    corpus: Corpus,
    queries: GeneratedQueries,
    directory: Path,
    embeddings: Path,
    wanted: Manifest,
    config: MineConfig,
    encoders: dict[str, Callable[[], Encoder] | None],
    threads: int,
    report: Report | None,
) -> None:
    shards = ShardSet(directory, wanted)
    missing = shards.missing(_n_shards(len(queries)))
    excluded = exclusions(corpus, queries, duplicates=config.exclude_duplicates)
    k = min(config.negatives_per_query, len(corpus))
    names = list(encoders) if missing else []
    sources: dict[str, Source] = {}
    for name, metric in zip(names, metrics(config), strict=False):
        open_encoder = encoders[name]
        if open_encoder is None:
            sources[name] = _bm25_source(corpus, queries, k)
        else:
            sources[name] = _dense_source(
                corpus, queries, embeddings, wanted, config, name, open_encoder(), metric, k, threads, report
            )
    for shard in missing:
        start, stop = shard * SHARD_QUERIES, min((shard + 1) * SHARD_QUERIES, len(queries))
        part = from_sequences([excluded.list(query) for query in range(start, stop)])
        rankings = {name: source(start, stop, part) for name, source in sources.items()}
        found = Negatives.from_padded(
            np.arange(start, stop), {name: (ranking.ids, ranking.scores) for name, ranking in rankings.items()}
        )
        shards.write(shard, found.table())
        if report is not None:
            report("mine", stop, len(queries))
    done = Negatives.from_table(shards.table(), str(directory))
    counts = {f"negatives {name}": len(ranked.docs) for name, ranked in done.lists.items()}
    per_query = np.diff(done.union()[0])
    shards.finish({"queries": len(queries), "queries without negatives": int((per_query == 0).sum()), **counts})


def _bm25_source(corpus: Corpus, queries: GeneratedQueries, k: int) -> Source:
    index = Bm25(corpus.texts())
    return lambda start, stop, excluded: index.search(queries.texts[start:stop], k, exclude=excluded)


def _dense_source(
    corpus: Corpus,
    queries: GeneratedQueries,
    embeddings: Path,
    wanted: Manifest,
    config: MineConfig,
    name: str,
    encoder: Encoder,
    metric: str,
    k: int,
    threads: int,
    report: Report | None,
) -> Source:
    embed = functools.partial(dense.embed, encoder, root=embeddings, batch_size=config.batch_size)
    show = None if report is None else functools.partial(report, f"embed passages ({name})")
    docs = embed(
        corpus.texts, len(corpus), texts_fingerprint=corpus.fingerprint, kind="document", progress=show
    )
    show = None if report is None else functools.partial(report, f"embed queries ({name})")
    vectors = embed(
        dense.text_rows(queries.texts),
        len(queries),
        texts_fingerprint=wanted.inputs["queries"],
        kind="query",
        progress=show,
    )
    return lambda start, stop, excluded: dense.search(
        vectors[start:stop], docs, k, metric=metric, exclude=excluded, threads=threads
    )


def _n_shards(n_queries: int) -> int:
    return max(1, -(-n_queries // SHARD_QUERIES))
