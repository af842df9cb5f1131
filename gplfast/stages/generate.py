"""generate: queries from passages, sampled with counters, in shards of passages."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gplfast.config import GenerateConfig, output_settings
from gplfast.mining.sampling import permutation
from gplfast.mining.windows import random_windows
from gplfast.store.generated import GeneratedQueries
from gplfast.store.manifest import Manifest, freshness
from gplfast.store.shards import ShardSet

if TYPE_CHECKING:
    from pathlib import Path

    from gplfast.store.corpus import Corpus

# GPL's rule: at least 250 K queries, at least 3 per passage (train.py:99-110).
TARGET_QUERIES = 250_000
FEWEST_PER_PASSAGE = 3
SHARD_PASSAGES = 256
_COUNTS = b"gplfast.counts"
Report = Callable[[str, int, int], None]


class Generator(Protocol):
    """What queries are made with (`gplfast.models.query_generator.QueryGenerator` is one)."""

    @property
    def max_input_tokens(self) -> int:
        """The longest passage it reads."""

    def generate(
        self,
        texts: Sequence[str],
        n_samples: int,
        *,
        sampling: Any,
        seed: int,
        items: Sequence[int],
        batch_size: int,
        max_input_tokens: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> list[list[str]]:
        """n_samples queries of each text."""


class Plan(NamedTuple):
    """Which passages are used and how often.

    Attributes:
        passages: int64 (n,), rows, ascending.
        per_passage: queries drawn from each.
    """

    passages: npt.NDArray[np.int64]
    per_passage: int


def manifest(corpus_fingerprint: str, model_fingerprint: str, config: GenerateConfig, seed: int) -> Manifest:
    """What the queries depend on."""
    settings = {**output_settings(config), "seed": seed, "shard_passages": SHARD_PASSAGES}
    return Manifest(
        "queries", inputs={"corpus": corpus_fingerprint}, config=settings, models={"generator": model_fingerprint}
    )


def plan(n_passages: int, config: GenerateConfig, seed: int) -> Plan:
    """Apply GPL's rule for the number of queries, and the limit on all of them.

    Args:
        n_passages: Size of the corpus.
        config: Settings of the step.
        seed: Seed of the sample of passages that `max_queries` asks for.
    """
    per_passage = config.queries_per_passage or auto_queries_per_passage(n_passages)
    rows = np.arange(n_passages, dtype=np.int64)
    if config.max_queries and n_passages * per_passage > config.max_queries:
        n_kept = max(1, config.max_queries // per_passage)
        rows = np.sort(permutation(seed, "sample", 0, n_passages)[:n_kept])
    return Plan(rows, per_passage)


def auto_queries_per_passage(n_passages: int) -> int:
    """3, or as many as give 250,000 queries when 3 would give fewer."""
    if FEWEST_PER_PASSAGE * n_passages < TARGET_QUERIES:
        return math.ceil(TARGET_QUERIES / n_passages)
    return FEWEST_PER_PASSAGE


def generate(
    corpus: Corpus,
    directory: Path,
    wanted: Manifest,
    config: GenerateConfig,
    open_generator: Callable[[], Generator],
    *,
    seed: int,
    report: Report | None = None,
) -> GeneratedQueries:
    """Generate the queries of the corpus and write them, shard by shard.

    Each query follows from (seed, passage, number of the sample) alone. Per passage equal queries are kept once, in the
    order in which they were drawn; empty ones are dropped; both are counted.

    Args:
        corpus: The passages.
        directory: The artifact's directory.
        wanted: The manifest to write, see `manifest`.
        config: Settings of the step.
        open_generator: Opens the model; called only when there is something to do.
        seed: Seed of the sampling.
        report: Called with (what, done, all).

    Returns:
        The queries.
    """
    if not freshness(directory, wanted).fresh:
        draw = functools.partial(_draw, config=config, seed=seed)
        _run(corpus, ShardSet(directory, wanted), plan(len(corpus), config, seed), open_generator, draw, report=report)
    return load(directory, wanted, n_passages=len(corpus))


def load(directory: Path, made: Manifest, *, n_passages: int) -> GeneratedQueries:
    """Read the finished artifact that has the manifest `made`.

    Raises:
        ArtifactError: It is damaged or belongs to another corpus.
    """
    return GeneratedQueries.from_table(ShardSet(directory, made).table(), str(directory), n_passages=n_passages)


def _run(
    corpus: Corpus,
    shards: ShardSet,
    todo: Plan,
    open_generator: Callable[[], Generator],
    draw: Callable[..., list[list[str]]],
    *,
    report: Report | None,
) -> None:
    missing = shards.missing(_n_shards(todo))
    generator = open_generator() if missing else None
    for shard in missing:
        if generator is None:
            break
        rows = todo.passages[shard * SHARD_PASSAGES : (shard + 1) * SHARD_PASSAGES]
        before = shard * SHARD_PASSAGES

        def show(done: int, total: int, before: int = before, n_rows: int = len(rows)) -> None:
            if report is not None:
                report("generate", before + done * n_rows // total, len(todo.passages))

        drawn = draw(generator, corpus, rows, todo.per_passage, progress=show)
        shards.write(shard, _table(drawn, rows))
    totals = {"passages": len(todo.passages), "queries": 0, "empty": 0, "duplicate": 0}
    for table in shards.tables():
        totals["queries"] += table.num_rows
        for name, value in json.loads(table.schema.metadata[_COUNTS]).items():
            totals[name] += value
    shards.finish(totals)


def _draw(
    generator: Generator,
    corpus: Corpus,
    rows: npt.NDArray[np.int64],
    per_passage: int,
    *,
    config: GenerateConfig,
    seed: int,
    progress: Callable[[int, int], None],
) -> list[list[str]]:
    """The queries of each passage as drawn: not stripped, with repeats."""
    from gplfast.models.sampling import Sampling

    texts = corpus.texts(rows)
    sampling = Sampling(
        top_k=config.top_k,
        top_p=config.top_p,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
    )
    options: dict[str, Any] = {"sampling": sampling, "seed": seed, "batch_size": config.batch_size}
    options["progress"] = progress
    options["max_input_tokens"] = config.passage_tokens or None
    if config.window == "head":
        items = [int(row) for row in rows]
        return generator.generate([config.prefix + text for text in texts], per_passage, items=items, **options)
    # Every sample reads a window of its own, so each is an item of its own.
    items = [int(row) * per_passage + sample for row in rows for sample in range(per_passage)]
    n_tokens = config.passage_tokens or generator.max_input_tokens
    repeated, titles = ([x for x in texts_of for _ in range(per_passage)] for texts_of in (texts, corpus.titles(rows)))
    windows = [config.prefix + text for text in random_windows(titles, repeated, items, n_tokens, seed=seed)]
    flat = generator.generate(windows, 1, items=items, **options)
    return [
        [query for sample in flat[start : start + per_passage] for query in sample]
        for start in range(0, len(flat), per_passage)
    ]


def _table(drawn: list[list[str]], rows: npt.NDArray[np.int64]) -> Any:
    texts: list[str] = []
    passages: list[int] = []
    counts = {"empty": 0, "duplicate": 0}
    for row, queries in zip(rows, drawn, strict=True):
        stripped = [" ".join(query.split()) for query in queries]
        kept = list(dict.fromkeys(query for query in stripped if query))
        n_empty = sum(not query for query in stripped)
        counts["empty"] += n_empty
        counts["duplicate"] += len(stripped) - n_empty - len(kept)
        texts += kept
        passages += [int(row)] * len(kept)
    table = GeneratedQueries(texts, np.array(passages, np.int64)).table()
    return table.replace_schema_metadata({_COUNTS: json.dumps(counts)})


def _n_shards(todo: Plan) -> int:
    return max(1, -(-len(todo.passages) // SHARD_PASSAGES))
