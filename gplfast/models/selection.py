"""The best student of a training: measured now and then on held-out queries, kept, and put back at the end.

Source: early stopping and checkpoint selection on a validation set (Prechelt 1998). R-GPL's code looks at the judged
test queries meanwhile; here only generated queries of held-out passages are looked at (Promptagator, arXiv:2209.11755,
chooses its checkpoints by such queries too).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gplfast import ops, ranks
from gplfast.errors import ArtifactError, ModelError
from gplfast.models import meeting
from gplfast.models.student import device
from gplfast.models.student_encoder import StudentEncoder
from gplfast.store.atomic import atomic_path, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gplfast.config import TrainConfig

logger = logging.getLogger(__name__)

RECORD = "selection.json"
# How often a training is looked at when `select_every` is 0.
_TIMES = 10
_DEPTHS = {"nDCG@10": 10, "MRR@10": 10, "Recall@100": 100}


@dataclasses.dataclass(frozen=True)
class DevSet:
    """Held-out queries and the passages that they are searched in.

    Attributes:
        queries: The queries' texts.
        passages: The passages' texts, all different.
        own: int64 (n_queries,), the index in `passages` of each query's own passage.
    """

    queries: list[str]
    passages: list[str]
    own: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Selected:
    """What selection did.

    Attributes:
        metric: Name of the metric.
        curve: {"step", "score"} of every look, in order; step 0 is the student before training.
        best_step: The earliest step that has the best score.
        best_score: That score.
        n_queries: Held-out queries.
        n_passages: Passages that they were searched in.
        stopped_early: Whether patience ended the training.
    """

    metric: str
    curve: list[dict[str, float]]
    best_step: int
    best_score: float
    n_queries: int
    n_passages: int
    stopped_early: bool


def mean_of(metric: str, ids: npt.NDArray[np.int64], own: npt.NDArray[np.int64]) -> float:
    """Mean metric of rankings in which each query has one relevant passage.

    Args:
        metric: "nDCG@10", "MRR@10" or "Recall@100".
        ids: int64 (n_queries, k), ranked passages, -1 for none; k at least the metric's depth or all passages.
        own: int64 (n_queries,), the relevant one.
    """
    found = ids[:, : _DEPTHS[metric]] == own[:, None]
    above = found.argmax(axis=1)
    gains = {
        "nDCG@10": 1.0 / np.log2(above + 2.0),
        "MRR@10": 1.0 / (above + 1.0),
        "Recall@100": np.ones(len(above)),
    }[metric]
    return float(np.where(found.any(axis=1), gains, 0.0).mean())


def measure(student: Any, dev: DevSet, config: TrainConfig, precision: str, *, threads: int = 0) -> float:
    """The student's mean metric on the held-out queries, by exact search; changes no state of model or torch.

    Args:
        student: A `SentenceTransformer`.
        dev: Queries and passages.
        config: Its settings: metric and similarity.
        precision: "fp32" or "bf16", as its training has it.
        threads: CPU threads of the search, 0 for all.

    Raises:
        ModelError: The student gives NaN: its training diverged.
    """
    encoder = StudentEncoder(student, config, precision)
    passages, queries = encoder.encode(dev.passages, kind="document"), encoder.encode(dev.queries, kind="query")
    if not (np.isfinite(passages).all() and np.isfinite(queries).all()):
        raise ModelError("the student gives NaN on held-out texts: its training diverged; lower the learning rate")
    metric, depth = config.select_metric, min(_DEPTHS[config.select_metric], len(dev.passages))
    cosine = config.similarity == "cosine"
    hits = ops.search(queries, passages, depth, metric="cosine" if cosine else "ip", threads=threads or None)
    return mean_of(metric, hits.ids, dev.own)


class Selector:
    """Looks at the student during training and keeps the best one.

    What it keeps is in `directory`, for a training that goes on after a kill: `best-STEP.safetensors` and the record,
    which is written after it. A step that was looked at before the kill is not looked at again.
    """

    def __init__(
        self,
        student: Any,
        dev: DevSet,
        directory: Path,
        mark: Mapping[str, str],
        config: TrainConfig,
        *,
        n_steps: int,
        threads: int = 0,
    ) -> None:
        """Read what an earlier process kept for the same mark; anything else there is dropped.

        Args:
            student: The model in training.
            dev: What it is measured on.
            directory: Of the checkpoints.
            mark: What training this is: manifest key and precision.
            config: Settings of the step.
            n_steps: All steps of the training.
            threads: CPU threads of the search, 0 for all.
        """
        self._student, self._dev, self._directory, self._mark = student, dev, directory, dict(mark)
        self._config, self._threads, self._n_steps = config, threads, n_steps
        self._metric, self._patience = config.select_metric, config.select_patience
        self._every = config.select_every or max(1, math.ceil(n_steps / _TIMES))
        self._curve: dict[int, float] = meeting.in_turn(self._kept)
        self._stopped = False

    def callback(self) -> Any:
        """The trainer's callback. It has to come before the one that writes checkpoints' marks."""
        from transformers import TrainerCallback

        look = self._look

        class Select(TrainerCallback):  # type: ignore[misc, unused-ignore]
            """Measures before the first step, every so many steps and after the last one."""

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
                look(int(state.global_step))

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
                if look(int(state.global_step)):
                    control.should_training_stop = True

        return Select()

    def finish(self) -> Selected:
        """Put the best weights into the student, the first process's, which writes it; what was done."""
        from safetensors.torch import load_model

        step = _earliest_best(self._curve)
        score = self._curve[step]
        if ranks.first():
            load_model(self._student, str(self._weights(step)), device=device())
        curve: list[dict[str, float]] = [{"step": at, "score": self._curve[at]} for at in sorted(self._curve)]
        if step == 0:
            logger.warning(
                "no step of training is better on the held-out queries than the student before it (%s %.4f); "
                "that one is kept: look at the learning rate and the counts of generate",
                self._metric,
                score,
            )
        n_queries, n_passages = len(self._dev.queries), len(self._dev.passages)
        return Selected(self._metric, curve, step, score, n_queries, n_passages, self._stopped)

    def _look(self, step: int) -> bool:
        """Measure when it is time to; whether patience is at its end."""
        if step % self._every and step != self._n_steps:
            return False
        if step not in self._curve:
            precision, threads = self._mark["precision"], self._threads
            score = meeting.of_first(
                lambda: measure(self._student, self._dev, self._config, precision, threads=threads)
            )
            logger.info("step %d: %s %.4f of %d held-out queries", step, self._metric, score, len(self._dev.queries))
            self._keep(step, score)
        looks = [at for at in sorted(self._curve) if at <= step]
        best = _earliest_best({at: self._curve[at] for at in looks})
        self._stopped = bool(self._patience) and len(looks) - 1 - looks.index(best) >= self._patience
        return self._stopped

    def _keep(self, step: int, score: float) -> None:
        from safetensors.torch import save_model

        self._curve[step] = score
        if not ranks.first():
            return
        best = _earliest_best(self._curve)
        if best == step:
            with atomic_path(self._weights(step)) as path:
                save_model(self._student, str(path))
        curve = {str(at): value for at, value in sorted(self._curve.items())}
        write_json(self._directory / RECORD, {**self._mark, "curve": curve})
        self._drop_all_but(best)

    def _kept(self) -> dict[int, float]:
        try:
            record = read_json(self._directory / RECORD)
            curve = {int(at): float(value) for at, value in record["curve"].items()}
            usable = self._mark.items() <= record.items()
        except (FileNotFoundError, ArtifactError, KeyError, ValueError, AttributeError, TypeError):
            curve, usable = {}, False
        if usable and curve and self._weights(_earliest_best(curve)).is_file():
            return curve
        (self._directory / RECORD).unlink(missing_ok=True)
        self._drop_all_but(-1)
        return {}

    def _weights(self, step: int) -> Path:
        return self._directory / f"best-{step}.safetensors"

    def _drop_all_but(self, step: int) -> None:
        for path in self._directory.glob("best-*.safetensors"):
            if path != self._weights(step):
                path.unlink()


def _earliest_best(curve: Mapping[int, float]) -> int:
    return max(curve, key=lambda step: (curve[step], -step))
