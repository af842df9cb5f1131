"""Systems side by side: what is measured, with which model, and the report of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gplfast.serving import Serving, served_fingerprint
from gplfast.store.manifest import Freshness, Manifest, freshness

if TYPE_CHECKING:
    from pathlib import Path

    from gplfast.config import RunConfig
    from gplfast.mining.bm25 import Ranking
    from gplfast.stages.evaluate import Judged, Result

BM25, BM25_TEACHER = "bm25", "bm25+teacher"
Report = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class System:
    """One system of the table.

    Attributes:
        name: As the table shows it.
        directory: Where its evaluation is or will be.
        model: Checkpoint of a bi-encoder, or of the teacher that reranks BM25; None for BM25 alone.
        fingerprint: Of that model.
        pooling: Of a plain language model, which says none itself; empty: the model's own.
        similarity: With it; empty: the model's own.
    """

    name: str
    directory: Path
    model: Path | None = None
    fingerprint: str = ""
    pooling: str = ""
    similarity: str = ""

    def wanted(self, data: Judged, config: RunConfig) -> Manifest:
        """The manifest that its evaluation should have."""
        from gplfast.stages import evaluate

        role = "teacher" if self.name == BM25_TEACHER else "student"
        models = {role: served_fingerprint(self.fingerprint, config)} if self.model is not None else {}
        kind = self.name if self.name in (BM25, BM25_TEACHER) else "bi-encoder"
        wanted = evaluate.manifest(data.fingerprint, kind, models, config.evaluate)
        if self.name == BM25_TEACHER:
            label = {name: getattr(config.label, name) for name in ("max_seq_length", "activation", "relevance_label")}
            wanted = dataclasses.replace(wanted, config={**wanted.config, **label})
        if self.pooling:
            own = {"pooling": self.pooling, "similarity": self.similarity}
            wanted = dataclasses.replace(wanted, config={**wanted.config, **own})
        return wanted

    def freshness(self, data: Judged, config: RunConfig) -> Freshness:
        """Whether it is measured already."""
        return freshness(self.directory, self.wanted(data, config))


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measures systems on one collection.

    Attributes:
        data: The judged queries.
        config: The settings.
        embeddings: Directory of all embeddings.
        scores: Directory of the teacher's scores.
        serving: Opens the models.
        report: Called with (what, done, all).
    """

    data: Judged
    config: RunConfig
    embeddings: Path
    scores: Path
    serving: Serving
    report: Report | None = None

    def measure(self, system: System) -> Result:
        """Measure one system, or read what was measured with the same settings and weights."""
        from gplfast.stages import evaluate

        wanted = system.wanted(self.data, self.config)
        return evaluate.evaluate(self.data, system.directory, wanted, self.config.evaluate, lambda: self._rank(system))

    def _rank(self, system: System) -> Ranking:
        from gplfast.stages import evaluate

        config = self.config.evaluate
        if system.model is None:
            return evaluate.bm25_ranking(self.data, config, self.report)
        if system.name == BM25_TEACHER:
            return self._rerank(system.model)
        encoder = self.serving.encoder(system.model, system.name, pooling=system.pooling)
        return evaluate.dense_ranking(
            self.data,
            encoder,
            self.embeddings,
            config,
            similarity=system.similarity or encoder.similarity,
            threads=self.config.threads,
            report=self.report,
            name=system.name,
        )

    def _rerank(self, teacher: Path) -> Ranking:
        from gplfast.mining.scoring import PairScorer, teacher_identity
        from gplfast.stages import evaluate
        from gplfast.store.scores import ScoreStore

        label = self.config.label
        scorer = PairScorer(
            lambda found: ScoreStore(self.scores, teacher_identity(found, label.activation, label.relevance_label)),
            lambda: self.serving.teacher(teacher),
            max_tokens=label.max_seq_length,
            activation=label.activation,
            batch_size=label.batch_size,
        )
        first = evaluate.bm25_ranking(self.data, self.config.evaluate, self.report)
        return evaluate.teacher_ranking(self.data, first, scorer, self.config.evaluate, self.report)


def summary(
    collection: str,
    results: Mapping[str, Result],
    config: RunConfig,
    seconds: Mapping[str, float],
    models: Mapping[str, str],
) -> dict[str, Any]:
    """What report.json holds; `models`: name to the runtimes that each ran on when something was made."""
    from gplfast.stages import evaluate

    return {
        "collection": collection,
        "split": config.evaluate.split,
        "queries": len(next(iter(results.values())).query_ids) if results else 0,
        "systems": {name: result.means for name, result in results.items()},
        "significance": {"metric": evaluate.MAIN_METRIC, "test": f"paired {config.evaluate.test}, two-sided"},
        "p_values": evaluate.p_values(results, config.evaluate.test, config.seed),
        "seconds": {step: round(value, 1) for step, value in seconds.items()},
        "models": dict(models),
    }


def table(report: Mapping[str, Any]) -> str:
    """The report as aligned text: systems by metrics, p against zero-shot; seconds and runtimes below."""
    systems: Mapping[str, Mapping[str, float]] = report["systems"]
    metrics = list(next(iter(systems.values()), {}))
    against = "zero-shot" if "zero-shot" in systems else next(iter(systems), "")
    rows = [["system", *metrics, f"p ({against})"]]
    for name, means in systems.items():
        pair = [report["p_values"].get(key) for key in (f"{name} vs {against}", f"{against} vs {name}")]
        p = next((value for value in pair if value is not None), None)
        rows.append([name, *(f"{means[metric]:.4f}" for metric in metrics), "" if p is None else _p(p)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    head = (
        f"{report['collection']} ({report['split']}, {report['queries']} queries; p: {report['significance']['test']})"
    )
    seconds = "  ".join(f"{step} {value:.1f}" for step, value in report["seconds"].items())
    models = "  ".join(f"{name} {runtimes}" for name, runtimes in report.get("models", {}).items())
    below = [f"{what}: {words}" for what, words in (("seconds", seconds), ("models", models)) if words]
    return "\n".join([head, *lines, *below])


def _p(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"
