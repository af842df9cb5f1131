"""evaluate: how well systems find the judged passages, per query, and whether the difference is chance."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gplfast.errors import DataError, MissingExtraError
from gplfast.mining import dense
from gplfast.mining.bm25 import Bm25, Ranking
from gplfast.mining.lists import Lists, from_sequences
from gplfast.mining.rerank import rerank
from gplfast.settings import output_settings
from gplfast.store.atomic import read_json, read_parquet, write_json, write_parquet
from gplfast.store.manifest import Manifest, freshness, retract

if TYPE_CHECKING:
    from pathlib import Path

    from gplfast.config import EvaluateConfig
    from gplfast.mining.dense import Encoder
    from gplfast.mining.scoring import PairScorer
    from gplfast.store.corpus import Corpus, Queries
    from gplfast.store.qrels import Qrels

logger = logging.getLogger(__name__)
METRICS = ("nDCG@10", "MRR@10", "Recall@100", "MAP")
MAIN_METRIC = METRICS[0]
# A split document is found through its pieces: enough of them that top_k different documents are among them.
_PIECES_PER_DOCUMENT = 5
_RESAMPLES = 9999
Report = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Judged:
    """What systems are measured on.

    Attributes:
        corpus: The passages.
        ids: The judged queries, in the order of the queries file.
        texts: Their texts.
        qrels: Query id to document id to grade.
        fingerprint: Of corpus, queries and judgements.
    """

    corpus: Corpus
    ids: list[str]
    texts: list[str]
    qrels: Qrels
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Result:
    """The quality of one system.

    Attributes:
        means: Metric to its mean over all judged queries.
        query_ids: The judged queries.
        per_query: Metric to float64 (n_queries,).
    """

    means: dict[str, float]
    query_ids: list[str]
    per_query: dict[str, npt.NDArray[np.float64]]


def judged(corpus: Corpus, queries: Queries, qrels: Qrels, fingerprint: str) -> Judged:
    """Choose the judged queries. Those without any relevant passage are left out: no system can find one.

    Raises:
        DataError: There is none.
    """
    rows = [row for row, name in enumerate(queries.ids) if name in qrels]
    if not rows:
        raise DataError(
            f"cannot evaluate: {len(qrels)} queries are judged but none of the {len(queries)} queries is one"
        )
    answerable = [row for row in rows if max(qrels[queries.ids[row]].values()) > 0]
    if not answerable:
        raise DataError(f"cannot evaluate: none of the {len(rows)} judged queries has a passage of grade 1 or more")
    if len(answerable) < len(rows):
        logger.warning(
            "%d of %d judged queries have no relevant passage and are left out", len(rows) - len(answerable), len(rows)
        )
    rows = answerable
    kept = {queries.ids[row]: qrels[queries.ids[row]] for row in rows}
    return Judged(corpus, list(kept), [queries.texts[row] for row in rows], kept, fingerprint)


def manifest(judged_fingerprint: str, system: str, models: dict[str, str], config: EvaluateConfig) -> Manifest:
    """What the quality of a system depends on."""
    settings = {**output_settings(config), "system": system, "queries": "with a relevant passage"}
    # Only the teacher reranks, and the test compares two systems.
    settings.pop("test")
    if "teacher" not in models:
        settings.pop("rerank_top")
    return Manifest("evaluation", inputs={"judged": judged_fingerprint}, config=settings, models=models)


def evaluate(
    data: Judged, directory: Path, wanted: Manifest, config: EvaluateConfig, retrieve: Callable[[], Ranking]
) -> Result:
    """Measure one system and write its ranking (`run.parquet`) and metrics per query (`queries.parquet`).

    Args:
        data: The judged queries.
        directory: The artifact's directory.
        wanted: The manifest to write, see `manifest`.
        config: Settings of the step.
        retrieve: Gives the system's ranking; called only when there is something to do.
    """
    if not freshness(directory, wanted).fresh:
        directory.mkdir(parents=True, exist_ok=True)
        run = to_run(data, retrieve(), config.top_k)
        result = measure(data.qrels, run, data.ids)
        retract(directory)
        _write(directory, run, result)
        files = ["metrics.json", "queries.parquet", "run.parquet"]
        wanted.with_counts({"queries": len(data.ids)}).with_files(directory, files).write(directory)
    return load(directory)


def load(directory: Path) -> Result:
    """Read the artifact.

    Raises:
        ArtifactError: It is damaged.
    """
    table = read_parquet(directory / "queries.parquet")
    per_query = {name: table[name].to_numpy().astype(np.float64) for name in METRICS}
    means = read_json(directory / "metrics.json")
    return Result({name: float(means[name]) for name in METRICS}, table["query"].to_pylist(), per_query)


def dense_ranking(
    data: Judged,
    encoder: Encoder,
    embeddings: Path,
    config: EvaluateConfig,
    *,
    similarity: str,
    threads: int = 0,
    report: Report | None = None,
    name: str = "",
) -> Ranking:
    """What a bi-encoder finds, exactly."""

    def show(what: str) -> Callable[[int, int], None] | None:
        return None if report is None else lambda done, total: report(f"{what} ({name})", done, total)

    docs = dense.embed(
        encoder,
        data.corpus.texts,
        len(data.corpus),
        embeddings,
        texts_fingerprint=data.corpus.fingerprint,
        kind="document",
        batch_size=config.batch_size,
        progress=show("embed passages"),
    )
    queries = encoder.encode(data.texts, kind="query", batch_size=config.batch_size, progress=None)
    return dense.search(
        queries, docs, depth(data, config), metric=similarity, exclude=same_id(data, config), threads=threads
    )


def bm25_ranking(data: Judged, config: EvaluateConfig, report: Report | None = None) -> Ranking:
    """What BM25 finds."""
    show = None if report is None else lambda done, total: report("bm25", done, total)
    index = Bm25(data.corpus.texts())
    return index.search(data.texts, depth(data, config), exclude=same_id(data, config), progress=show)


def teacher_ranking(
    data: Judged, first: Ranking, scorer: PairScorer, config: EvaluateConfig, report: Report | None = None
) -> Ranking:
    """What the teacher makes of the best `rerank_top` passages of another ranking."""
    show = None if report is None else lambda done, total: report("rerank", done, total)
    return rerank(first, data.texts, data.corpus.texts, scorer, config.rerank_top, progress=show)


def depth(data: Judged, config: EvaluateConfig) -> int:
    """How many rows are retrieved so that `top_k` documents are among them."""
    pieces = 1 if data.corpus.split_words is None else _PIECES_PER_DOCUMENT
    return min(config.top_k * pieces, len(data.corpus))


def same_id(data: Judged, config: EvaluateConfig) -> Lists | None:
    """Per query the rows of the document whose id is the query's, which BEIR leaves out of rankings."""
    if not config.drop_same_id:
        return None
    rows: dict[str, list[int]] = {name: [] for name in data.ids}
    for row, name in enumerate(data.corpus.parent_ids):
        if name in rows:
            rows[name].append(row)
    return from_sequences([rows[name] for name in data.ids])


def to_run(data: Judged, ranking: Ranking, top_k: int) -> dict[str, dict[str, float]]:
    """Query id to document id to score, `top_k` documents each; a split document has the score of its best piece."""
    parents = data.corpus.parent_ids
    run: dict[str, dict[str, float]] = {}
    for name, ids, scores in zip(data.ids, ranking.ids, ranking.scores, strict=True):
        found: dict[str, float] = {}
        for row, score in zip(ids.tolist(), scores.tolist(), strict=True):
            if row >= 0 and len(found) < top_k:
                found.setdefault(parents[row], score)
        run[name] = found
    return run


def measure(qrels: Qrels, run: Mapping[str, Mapping[str, float]], query_ids: Sequence[str]) -> Result:
    """nDCG@10, MRR@10, Recall@100 and MAP by ir_measures (trec_eval's definitions, MAP over the top 100)."""
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtraError("evaluation needs ir-measures: pip install 'gplfast[eval]'") from error

    names = dict(
        zip(
            (ir_measures.nDCG @ 10, ir_measures.RR @ 10, ir_measures.R @ 100, ir_measures.AP @ 100),
            METRICS,
            strict=True,
        )
    )
    row_of = {name: row for row, name in enumerate(query_ids)}
    per_query = {name: np.zeros(len(query_ids), np.float64) for name in METRICS}
    filled = {query: dict(docs) for query, docs in run.items() if docs}
    if filled:
        for value in ir_measures.iter_calc(list(names), qrels, filled):
            per_query[names[value.measure]][row_of[value.query_id]] = value.value
    means = {name: float(values.mean()) for name, values in per_query.items()}
    return Result(means, list(query_ids), per_query)


def p_values(results: Mapping[str, Result], test: str, seed: int) -> dict[str, float]:
    """Two-sided p of nDCG@10 for each pair of systems, named "later vs earlier"."""
    pairs = itertools.combinations(results, 2)
    return {f"{b} vs {a}": significance(results[a], results[b], test, seed) for a, b in pairs}


def significance(first: Result, second: Result, test: str, seed: int = 0) -> float:
    """Two-sided p that two systems differ in nDCG@10 on the same queries: paired t-test, or sign-flip permutation.

    Raises:
        DataError: The two were measured on different queries.
    """
    if first.query_ids != second.query_ids:
        raise DataError(
            f"cannot compare: one system has {len(first.query_ids)} queries and the other {len(second.query_ids)}, "
            "not the same ones; evaluate both on one split"
        )
    difference = second.per_query[MAIN_METRIC] - first.per_query[MAIN_METRIC]
    if len(difference) < 2 or not difference.any():
        return 1.0
    from scipy import stats

    if test == "t-test":
        outcome = stats.ttest_1samp(difference, 0.0)
    else:
        random = np.random.Generator(np.random.Philox(key=seed))
        outcome = stats.permutation_test(
            (difference,), np.mean, permutation_type="samples", n_resamples=_RESAMPLES, rng=random
        )
    return float(outcome.pvalue)


def _write(directory: Path, run: Mapping[str, Mapping[str, float]], result: Result) -> None:
    import pyarrow as pa

    rows = [(query, doc, score) for query, docs in run.items() for doc, score in docs.items()]
    columns: dict[str, Any] = {
        "query": pa.array([row[0] for row in rows], pa.large_string()),
        "document": pa.array([row[1] for row in rows], pa.large_string()),
        "score": pa.array([row[2] for row in rows], pa.float32()),
    }
    write_parquet(directory / "run.parquet", pa.table(columns))
    ids = pa.array(result.query_ids, pa.large_string())
    write_parquet(directory / "queries.parquet", pa.table({"query": ids, **result.per_query}))
    write_json(directory / "metrics.json", result.means)
