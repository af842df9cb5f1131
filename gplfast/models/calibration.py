"""Which runtime serves a model: each that could is timed on a sample, and its results are held against float32's.

A runtime of lower precision is taken only when it passes the gate of its kind of model, unless it was asked for by
name. The choice is kept beside the model's exported graphs, for this machine and these versions.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from gplfast.errors import ArtifactError, GplfastError, ModelError
from gplfast.models.out_of_memory import is_of_runtime
from gplfast.models.session import default_threads
from gplfast.store.atomic import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

# So long the reference may take for the sample; every other runtime sees the same items.
SAMPLE_SECONDS = 0.5
# The fastest of so many counts: once, on a busy machine, one run of integers took 7.9 s that takes .5 s otherwise, and
# float32 was chosen for good.
ROUNDS = 3
FEWEST_ITEMS, MOST_ITEMS = 32, 256
# Of how models are run: a choice made when they were run otherwise counts no longer.
_VERSION = 3
_LIBRARIES = ("gplfast", "onnxruntime", "onnxruntime-gpu", "openvino")
# Of a bi-encoder: the share of the 10 best passages that both find.
MIN_OVERLAP = 0.98
# Of a teacher: rank correlation of the scores of pairs.
MIN_SPEARMAN = 0.999
# Of a generator: how far the teacher's mean score of its queries may be from that of float32's.
MAX_SCORE_CHANGE = 0.01

Result = TypeVar("Result")
Gate = dict[str, float]


class Item(NamedTuple):
    """A passage and a question that it answers."""

    query: str
    passage: str


class Tried(Protocol):
    """A model that says what it runs on."""

    choice: Choice


class Named(Protocol):
    """A runtime, or several for the parts of a model."""

    def __str__(self) -> str:
        """Its name in the record."""


Found = TypeVar("Found", bound=Named)
Model = TypeVar("Model", bound=Tried)


@dataclass(frozen=True)
class Choice:
    """Why a model runs on what it runs on.

    Attributes:
        runtime: name of the runtime.
        why: "the only one", "calibrated" or "asked for".
        trials: of each runtime that was tried: "seconds" for the sample, or "error"; and the gate's figures and
            "passed" of those that were fast enough to be asked for them.
        n_items: how many items the sample had.
    """

    runtime: str
    why: str
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)
    n_items: int = 0

    def as_json(self) -> dict[str, Any]:
        """What a manifest keeps."""
        return asdict(self)


@dataclass(frozen=True)
class Calibration(Generic[Found, Model, Result]):
    """How a kind of model is tried.

    Attributes:
        kind: "bi-encoder", "cross-encoder" or "query-generator".
        start: opens the model on a runtime.
        run: what is timed: the model's work on some items.
        gate: of (reference's result, another's result): figures, and whether they are good enough.
    """

    kind: str
    start: Callable[[Found], Model]
    run: Callable[[Model, Sequence[Item]], Result]
    gate: Callable[[Result, Result], tuple[Gate, bool]]

    def open(
        self, found: Sequence[Found], reference: Found, folder: Path, threads: int | None, *, gated: bool
    ) -> Model:
        """The model on what `choose` chooses, which it keeps as `choice`; threads None: as many as there are."""
        model, choice = self.choose(found, reference, folder, threads or default_threads(), gated=gated)
        model.choice = choice
        return model

    def choose(
        self, found: Sequence[Found], reference: Found, folder: Path, threads: int, *, gated: bool
    ) -> tuple[Model, Choice]:
        """Open the model on the fastest runtime that passes, as recorded in `folder` or after trying them.

        Args:
            found: runtimes to choose from.
            reference: computes in float32; what the others are compared with, whether it is among `found` or not.
            folder: where the record is kept.
            threads: the record is for this number.
            gated: False takes the fastest whatever its results: a precision was asked for by name.
        """
        if len(found) == 1:
            return self.start(found[0]), Choice(str(found[0]), "the only one" if gated else "asked for")
        path = folder / f"calibration-{self.kind}-{_key(found, threads, gated=gated)}.json"
        choice = _recorded(path, found)
        if choice is None:
            logger.info("%s: trying %s on a sample, once", self.kind, ", ".join(map(str, found)))
            choice = self._tried(found, reference, gated=gated)
            logger.info("%s: %s, %s", self.kind, choice.runtime, choice.trials[choice.runtime])
            _record(path, choice)
        runtime = next(one for one in found if str(one) == choice.runtime)
        return self.start(runtime), choice

    def _tried(self, found: Sequence[Found], reference: Found, *, gated: bool) -> Choice:
        """The gate is asked from the fastest on, until one passes: it may take longer than the trial."""
        model = self.start(reference)
        items = self._sample(model)
        expected, seconds = self._timed(model, items)
        del model
        trials: dict[str, dict[str, Any]] = {str(reference): {"seconds": seconds, "passed": True}}
        results: dict[str, Result] = {}
        for runtime in found:
            if runtime != reference:
                trials[str(runtime)], made = self._trial(runtime, items)
                results.update({} if made is None else {str(runtime): made})
        names = [str(one) for one in found]
        for name in sorted((name for name in names if "seconds" in trials[name]), key=lambda n: trials[n]["seconds"]):
            if name in results:
                figures, passed = self.gate(expected, results[name])
                trials[name] |= {**figures, "passed": passed}
            if trials[name]["passed"] or not gated:
                return Choice(name, "calibrated" if gated else "asked for", trials, len(items))
        raise ModelError(f"{self.kind}: none of {', '.join(names)} serves it: {trials}")

    def _trial(self, runtime: Found, items: Sequence[Item]) -> tuple[dict[str, Any], Result | None]:
        try:
            result, seconds = self._timed(self.start(runtime), items)
        except Exception as error:
            # a node this provider does not know, or a type this device does not compute in: the others still serve
            if not (isinstance(error, GplfastError) or is_of_runtime(error)):
                raise
            return {"error": str(error), "passed": False}, None
        return {"seconds": seconds}, result

    def _sample(self, model: Model) -> list[Item]:
        """As many items as the model does in SAMPLE_SECONDS."""
        items = sample()
        self.run(model, items[:4])
        started = time.perf_counter()
        self.run(model, items[:16])
        n_items = int(16 * SAMPLE_SECONDS / (time.perf_counter() - started))
        return items[: min(max(n_items, FEWEST_ITEMS), MOST_ITEMS)]

    def _timed(self, model: Model, items: Sequence[Item]) -> tuple[Result, float]:
        result = self.run(model, items)  # compiles for the shapes
        seconds = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            self.run(model, items)
            seconds.append(time.perf_counter() - started)
        return result, round(min(seconds), 4)


def sample() -> list[Item]:
    """Passages of the bundled collection and a question to each, as many as are ever used."""
    folder = Path(__file__).resolve().parents[1] / "presets" / "demo"
    rows = [_lines(folder / name) for name in ("queries.jsonl", "corpus.jsonl")]
    return [Item(query["text"], passage["text"]) for query, passage in zip(*rows, strict=False)]


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(MOST_ITEMS), strict=False)]


def overlap_gate(expected: tuple[Any, Any], found: tuple[Any, Any]) -> tuple[Gate, bool]:
    """Bi-encoders: (queries, passages) embeddings, each (n, dim); the 10 best by cosine of each query."""
    best = [np.argsort(-_cosines(*result), axis=1, kind="stable")[:, :10] for result in (expected, found)]
    shared = [len(np.intersect1d(a, b)) / len(a) for a, b in zip(*best, strict=True)]
    figures = {"top10_overlap": round(float(np.mean(shared)), 5)}
    return figures, figures["top10_overlap"] >= MIN_OVERLAP


def _cosines(queries: Any, passages: Any) -> Any:  # noqa: ANN401
    unit = [rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True) for rows in (queries, passages)]
    return unit[0] @ unit[1].T


def rank_gate(expected: Any, found: Any) -> tuple[Gate, bool]:  # noqa: ANN401
    """Teachers: scores of the same pairs."""
    ranks = [np.argsort(np.argsort(scores, kind="stable"), kind="stable") for scores in (expected, found)]
    figures = {"spearman": round(float(np.corrcoef(ranks[0], ranks[1])[0, 1]), 6)}
    return figures, figures["spearman"] >= MIN_SPEARMAN


def _key(found: Sequence[Named], threads: int, *, gated: bool) -> str:
    versions = []
    for name in _LIBRARIES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            logger.debug("%s is not installed", name)
    identity = [_VERSION, _processor(), threads, gated, [str(one) for one in found], versions]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _processor() -> str:
    """The model of the processor, as well as the system says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    named = [line for line in lines if line.startswith(("model name", "flags", "model\t", "cpu family"))]
    return "\n".join(sorted(set(named))) or f"{platform.machine()} {platform.processor()}"


def _recorded(path: Path, found: Sequence[Named]) -> Choice | None:
    try:
        choice = Choice(**read_json(path))
    except FileNotFoundError:
        return None
    except (ArtifactError, OSError, TypeError) as error:
        logger.warning("%s cannot be read and is made again: %s", path, error)
        return None
    return choice if choice.runtime in {str(one) for one in found} else None


def _record(path: Path, choice: Choice) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, choice.as_json())
    except OSError as error:  # a cache that cannot be written costs the next start a calibration, nothing else
        logger.warning("%s cannot be written: %s", path, error)
