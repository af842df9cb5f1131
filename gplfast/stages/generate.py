"""generate: queries from passages, sampled with counters, in shards of passages.

With a generator here; the methods without one are in `mining.positives`, and make the same artifact.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gplfast.errors import DataError
from gplfast.mining.copies import is_copied, plain
from gplfast.mining.positives.job import Job
from gplfast.mining.positives.makers import counted, open_method
from gplfast.mining.sampling import permutation
from gplfast.mining.windows import random_windows
from gplfast.positive_settings import T5, read_by, recorded
from gplfast.settings import output_settings
from gplfast.store.generated import GeneratedQueries
from gplfast.store.manifest import Manifest, freshness
from gplfast.store.shards import ShardSet

if TYPE_CHECKING:
    from pathlib import Path

    from gplfast.config import GenerateConfig
    from gplfast.store.corpus import Corpus, Queries

# GPL's rule: at least 250 K queries, at least 3 per passage (train.py:99-110).
TARGET_QUERIES = 250_000
FEWEST_PER_PASSAGE = 3
SHARD_PASSAGES = 256
_COUNTS = b"gplfast.counts"
_COUNTED = ("passages", "drawn", "queries", "empty", "duplicate", "copied", "made up", "passages below quota")
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
        first_sample: Sequence[int],
        batch_size: int,
        max_input_tokens: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> list[list[str]]:
        """Of each text the queries of `n_samples` samples, by their numbers from its `first_sample` on."""


class Plan(NamedTuple):
    """Which passages are used and how often.

    Attributes:
        passages: int64 (n,), rows (of the given queries, where there are such), ascending.
        per_passage: queries drawn from each.
    """

    passages: npt.NDArray[np.int64]
    per_passage: int


def manifest(
    corpus_fingerprint: str, model_fingerprint: str, config: GenerateConfig, seed: int, *, given: str = ""
) -> Manifest:
    """What the queries depend on.

    Args:
        corpus_fingerprint: Of the passages.
        model_fingerprint: Of the generator, or of the bi-encoder that scores spans; "" where the method has no model.
        config: Settings of the step; of a method those that it reads are recorded.
        seed: Seed of every draw.
        given: Fingerprint of the given queries.
    """
    if config.method == T5:
        read = read_by(config)
        settings = {name: value for name, value in output_settings(config).items() if name in read}
    else:
        settings = recorded(config)
    inputs = {"corpus": corpus_fingerprint} | ({"given queries": given} if given else {})
    role = "generator" if config.method == T5 else "encoder"
    return Manifest(
        "queries",
        inputs=inputs,
        config={**settings, "seed": seed, "shard_passages": SHARD_PASSAGES},
        models={role: model_fingerprint} if model_fingerprint else {},
    )


def plan(n_passages: int, config: GenerateConfig, seed: int) -> Plan:
    """Apply GPL's rule for the number of queries, and the limit on all of them.

    Where the rule says how many each passage has, they become fewer first, down to 3, and then the passages.

    Args:
        n_passages: Size of the corpus.
        config: Settings of the step.
        seed: Seed of the sample of passages that `max_queries` asks for.
    """
    per_passage = config.queries_per_passage or auto_queries_per_passage(n_passages)
    rows = np.arange(n_passages, dtype=np.int64)
    limit = config.max_queries
    if limit and n_passages * per_passage > limit:
        if not config.queries_per_passage:
            per_passage = max(FEWEST_PER_PASSAGE, limit // n_passages)
        per_passage = min(per_passage, limit)
        rows = np.sort(permutation(seed, "sample", 0, n_passages)[: limit // per_passage])
    return Plan(rows, per_passage)


def _plan(corpus: Corpus, config: GenerateConfig, given: Queries | None, seed: int) -> Plan:
    """The plan; a passage has one title, and a given query is one query."""
    if given is not None or config.method == "title":
        config = dataclasses.replace(config, queries_per_passage=1)
    return plan(len(corpus) if given is None else len(given), config, seed)


def auto_queries_per_passage(n_passages: int) -> int:
    """3, or as many as give 250,000 queries when 3 would give fewer."""
    if FEWEST_PER_PASSAGE * n_passages < TARGET_QUERIES:
        return math.ceil(TARGET_QUERIES / n_passages)
    return FEWEST_PER_PASSAGE


def most_extra_draws(quota: int, share: float) -> int:
    """How many samples of a passage may be drawn beyond its quota: the share of it, rounded up."""
    return math.ceil(round(share * quota, 6))  # 0.7 x 10 is 7.000000000000001


def generate(
    corpus: Corpus,
    directory: Path,
    wanted: Manifest,
    config: GenerateConfig,
    open_model: Callable[[], Any],
    *,
    seed: int,
    given: Queries | None = None,
    report: Report | None = None,
) -> GeneratedQueries:
    """Generate the queries of the corpus by the method of the settings and write them, shard by shard.

    Each query follows from (seed, passage, number of the sample) alone. Per passage empty queries, repeats of an
    earlier one and, of a generator, copies from the passage are dropped and counted, and further samples are drawn
    until it has as many as were asked for, or `extra_draws` is used up; those that stay are in the order in which they
    were drawn. What other methods drop: see `mining.positives.quota.fill`.

    Args:
        corpus: The passages.
        directory: The artifact's directory.
        wanted: The manifest to write, see `manifest`.
        config: Settings of the step.
        open_model: Opens the method's model, a `Generator` or a bi-encoder; called only when there is something to do.
        seed: Seed of the sampling.
        given: Real queries, to be paired with their best passages (method bm25).
        report: Called with (what, done, all).

    Returns:
        The queries.

    Raises:
        DataError: The corpus lacks what the method needs, or the method made no query at all.
    """
    if not freshness(directory, wanted).fresh:
        todo, shards = _plan(corpus, config, given, seed), ShardSet(directory, wanted)
        if config.method == T5:
            _run(corpus, shards, todo, open_model, config, seed=seed, report=report)
        else:
            n_extra = most_extra_draws(todo.per_passage, config.extra_draws)
            job = Job(corpus, config, seed, todo.per_passage, n_extra, open_model, given)
            _run_without_generator(job, shards, todo, report)
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
    config: GenerateConfig,
    *,
    seed: int,
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

        draw = functools.partial(_draw, generator, config=config, seed=seed)
        titles_texts = zip(rows, corpus.titles(rows), corpus.texts(rows), strict=True)
        passages = [_Passage(int(row), title, text, config.copied == "drop") for row, title, text in titles_texts]
        _fill(passages, todo.per_passage, most_extra_draws(todo.per_passage, config.extra_draws), draw, show)
        shards.write(shard, _table(passages, todo.per_passage))
    shards.finish(_totals(shards, dict.fromkeys(_COUNTED, 0) | {"passages": len(todo.passages)}))


def _run_without_generator(job: Job, shards: ShardSet, todo: Plan, report: Report | None) -> None:
    missing = shards.missing(_n_shards(todo))
    make = open_method(job) if missing else None
    for shard in missing:
        if make is None:
            break
        stop = min((shard + 1) * SHARD_PASSAGES, len(todo.passages))
        made = make(todo.passages[shard * SHARD_PASSAGES : stop])
        shards.write(shard, _counted_table(GeneratedQueries(made.texts, made.passages, made.sources), made.counts))
        if report is not None:
            report("generate", stop, len(todo.passages))
    items, method = "passages" if job.given is None else "given queries", job.config.method
    totals = _totals(shards, {items: len(todo.passages), "queries": 0} | dict.fromkeys(counted(job), 0))
    if not totals["queries"]:
        found = ", ".join(f"{name} {number}" for name, number in totals.items() if number)
        raise DataError(f"generate: method {method} made 0 queries ({found or 'no passages'}); use another method")
    shards.finish(totals)


def _totals(shards: ShardSet, totals: dict[str, int]) -> dict[str, int]:
    for table in shards.tables():
        totals["queries"] += table.num_rows
        for name, value in json.loads(table.schema.metadata[_COUNTS]).items():
            totals[name] += value
    return totals


class _Passage:
    """The queries of one passage so far."""

    def __init__(self, row: int, title: str, text: str, drop_copies: bool) -> None:
        self.row, self.title, self.text = row, title, text
        self.kept: list[str] = []
        self.n_drawn = 0
        self.counts: collections.Counter[str] = collections.Counter()
        self._seen: set[str] = set()
        self._words = plain(text) if drop_copies else ""

    def take(self, drawn: Sequence[str], quota: int) -> None:
        """Keep or drop the next samples; `quota` of them were to be drawn at first."""
        for text in drawn:
            query = " ".join(text.split())
            if fault := self._fault(query):
                self.counts[fault] += 1
            else:
                self.kept.append(query)
                self.counts["made up"] += self.n_drawn >= quota
            self._seen.add(query)
            self.n_drawn += 1

    def _fault(self, query: str) -> str:
        """Which rule drops the query, the first that does; "" where none."""
        words = plain(query)
        if not words:
            return "empty"
        if query in self._seen:
            return "duplicate"
        return "copied" if is_copied(words, self._words) else ""


def _fill(
    passages: Sequence[_Passage],
    quota: int,
    n_extra: int,
    draw: Callable[..., list[list[str]]],
    progress: Callable[[int, int], None],
) -> None:
    """Draw each passage's samples by number, 0 and on, until `quota` are kept or `quota + n_extra` are drawn.

    Each round draws as many as a passage lacks, which is never one too many, so the rounds leave no trace.
    """
    progress_of_round: Callable[[int, int], None] | None = progress
    while True:
        lacking: dict[int, list[_Passage]] = collections.defaultdict(list)
        for passage in passages:
            lacking[min(quota - len(passage.kept), quota + n_extra - passage.n_drawn)].append(passage)
        lacking.pop(0, None)
        if not lacking:
            return
        for n_lacking, group in sorted(lacking.items()):
            for passage, drawn in zip(group, draw(group, n_lacking, progress=progress_of_round), strict=True):
                passage.take(drawn, quota)
        progress_of_round = None  # the bar has reached the end of the shard


def _draw(
    generator: Generator,
    passages: Sequence[_Passage],
    n_samples: int,
    *,
    config: GenerateConfig,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> list[list[str]]:
    """The next `n_samples` queries of each passage as drawn: not stripped, with repeats."""
    from gplfast.models.sampling import Sampling

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
        texts = [config.prefix + passage.text for passage in passages]
        rows, first = [passage.row for passage in passages], [passage.n_drawn for passage in passages]
        return generator.generate(texts, n_samples, items=rows, first_sample=first, **options)
    # Every sample reads a window of its own.
    each = [(passage, passage.n_drawn + number) for passage in passages for number in range(n_samples)]
    rows, samples = [passage.row for passage, _ in each], [sample for _, sample in each]
    windows = random_windows(
        [passage.title for passage, _ in each],
        [passage.text for passage, _ in each],
        rows,
        samples,
        config.passage_tokens or generator.max_input_tokens,
        seed=seed,
    )
    texts = [config.prefix + text for text in windows]
    flat = [query for (query,) in generator.generate(texts, 1, items=rows, first_sample=samples, **options)]
    return [flat[start : start + n_samples] for start in range(0, len(flat), n_samples)]


def _table(passages: Sequence[_Passage], quota: int) -> Any:
    counts: collections.Counter[str] = collections.Counter()
    for passage in passages:
        counts.update(passage.counts)
        counts["drawn"] += passage.n_drawn
        counts["passages below quota"] += len(passage.kept) < quota
    rows = np.repeat([passage.row for passage in passages], [len(passage.kept) for passage in passages])
    texts = [query for passage in passages for query in passage.kept]
    return _counted_table(GeneratedQueries(texts, rows.astype(np.int64)), counts)


def _counted_table(queries: GeneratedQueries, counts: collections.Counter[str]) -> Any:
    return queries.table().replace_schema_metadata(
        {_COUNTS: json.dumps({name: counts[name] for name in sorted(counts)})}
    )


def _n_shards(todo: Plan) -> int:
    return max(1, -(-len(todo.passages) // SHARD_PASSAGES))
