"""The order of the steps, what is fresh, and going on after a kill: the only file that knows every stage."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gplfast import ranks
from gplfast.config import RunConfig, load_config
from gplfast.config import check as check_settings
from gplfast.errors import ConfigError
from gplfast.preset_settings import DEMO
from gplfast.remining import Remining, SegmentExamples
from gplfast.report import Bench, System, summary
from gplfast.store.atomic import read_json, write_json
from gplfast.store.manifest import Manifest, freshness
from gplfast.systems import BASE_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pyarrow as pa

    from gplfast.artifacts import Report
    from gplfast.store.corpus import Corpus
    from gplfast.store.generated import GeneratedQueries
    from gplfast.store.margins import Margins
    from gplfast.store.negatives import Negatives

logger = logging.getLogger(__name__)

ORDER = ("generate", "mine", "label", "train", "evaluate")


@dataclasses.dataclass(frozen=True)
class Planned:
    """What a run would do about one step.

    Attributes:
        step: "generate", "mine", "label", "train gpl", "evaluate bm25", …
        fresh: Whether it would be skipped.
        reason: "fresh", or what differs, or which step it waits for.
    """

    step: str
    fresh: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class Adapted:
    """What a run made.

    Attributes:
        model: The adapted retriever, a sentence-transformers directory: the first of `models`.
        models: "gpl", "rgpl", "genq" to their directories, those that were trained.
        report: What report.json holds, or None when nothing was evaluated by this process.
        work: The work directory.
    """

    model: Path
    models: dict[str, Path]
    report: dict[str, Any] | None
    work: Path


class Pipeline(Remining):
    """The steps over one corpus in one work directory; see `Artifacts` for what it is made with."""

    # ---- the steps

    def generate(self) -> GeneratedQueries:
        """Queries of the corpus."""
        from gplfast.stages import generate

        return generate.generate(
            self.corpus,
            self.directory("generate"),
            self.wanted("generate"),
            self.config.generate,
            self.open_generation_model,
            seed=self.config.seed,
            given=self.given_queries,
            report=self.report,
        )

    def mine(self) -> Negatives:
        """Hard negatives of the queries."""
        from gplfast.stages import mine

        return mine.mine(
            self.corpus,
            self.queries(),
            self.directory("mine"),
            self.wanted("mine"),
            self.config.mine,
            encoders={short: self.opener(short, name) for short, name in self.retrievers().items()},
            embeddings=self.work.path("embeddings"),
            seed=self.config.seed,
            threads=self.config.threads,
            filters=self._filters(),
            report=self.report,
        )

    def label(self) -> Margins:
        """Margins of the teacher."""
        from gplfast.mining.scoring import stores_of
        from gplfast.stages import label

        return label.label(
            self.corpus,
            self.queries(),
            self.negatives(),
            self.directory("label"),
            self.wanted("label"),
            config=self.config.label,
            train=self.config.train,
            open_teacher=self.opener_of_teacher(0),
            open_store=stores_of(self.work.path("scores")),
            seed=self.config.seed,
            more_teachers=[self.opener_of_teacher(place) for place in range(1, len(self.teachers()))],
            report=self.report,
        )

    def train(self, student: str) -> Path:
        """Train "gpl", "rgpl" or "genq"; returns the model's directory."""
        from gplfast.stages import train

        config, directory = self.student_config(student), self.directory(f"train {student}")

        seed, found_guide = self.config.seed, self.guide(config)
        guide = None if found_guide is None else found_guide.path
        parted = functools.cache(lambda: train.parted(self.corpus, self.queries(), config, seed))

        def rows(margins: Margins) -> Any:
            return train.from_margins(self.corpus, self.queries(), margins, config, guide=guide, found=parted())

        def examples() -> Any:
            if student == "genq":
                return train.from_queries(self.corpus, self.queries(), guide=guide, found=parted())
            return remining.first() if remining is not None else rows(self.margins())

        base, wanted = self.model(config.base), self.wanted(f"train {student}")
        fresh = freshness(directory, wanted).fresh
        refreshes = self.refreshes() if student == "rgpl" and not fresh else None
        remining = SegmentExamples(refreshes, rows) if refreshes is not None else None
        try:
            model = train.train(
                examples,
                base.path,
                directory,
                wanted,
                config,
                seed=seed,
                threads=self.config.threads,
                dev=lambda: train.dev_set(self.corpus, self.queries(), parted(), config, seed),
                report=self.report,
                documents=self.frozen_documents,
                remining=remining,
            )
        finally:
            if refreshes is not None:
                refreshes.close()
        # The manifest has the base's fingerprint only; the table's zero-shot needs the base itself.
        found = config.base if config.base.startswith("nano:") else str(base.path.resolve())
        if ranks.first():
            write_json(directory / BASE_FILE, {"name": found})
        return model

    # ---- the whole

    def plan(self, *, evaluate: bool = False) -> list[Planned]:
        """What `run` would do, in order.

        Reads the corpus, the models' files (their fingerprints) and the manifests in the work directory, of the
        artifacts not more than their sizes; writes nothing into the work directory. A bundled model is unpacked into
        the cache when it is not there yet.
        """
        planned = []
        stale: set[str] = set()
        for step in self.steps():
            fresh, reason = freshness(self.directory(step), self.wanted(step))
            planned.append(Planned(step, fresh, reason))
            if not fresh:
                stale.add(step)
        for name in self.system_names() if evaluate else []:
            if f"train {name}" in stale:
                planned.append(Planned(f"evaluate {name}", False, f"waits for train {name}"))
            else:
                planned.append(Planned(f"evaluate {name}", *self.system(name).freshness(self.judged, self.config)))
        return planned

    def check(self, steps: Sequence[str] | None = None, *, evaluate: bool = False, extra: Iterable[str] = ()) -> None:
        """Find what is missing or of the wrong kind: it should show before hours of work, and nothing is written.

        Reads the corpus, the judgements, the models' configurations and what installed packages there are.

        Args:
            steps: Some of `steps()`; by default all of them.
            evaluate: Whether the systems of the table are measured too.
            extra: Other bi-encoders for the table.

        Raises:
            GplfastError: One of its children; the message says what is missing.
        """
        check_settings(self.config)
        _ = self.corpus
        names = self.system_names() if evaluate else []
        if evaluate:
            _ = self.judged
        if evaluate and not names and not extra:
            raise ConfigError(
                f"nothing to evaluate: of {', '.join(self.config.evaluate.systems)} none is trained in "
                f"{self.work.root}; run `gplfast train` first, or name other systems"
            )
        wanted = self.steps() if steps is None else list(steps)
        self.check_models(wanted, names, extra)
        stale = [step for step in wanted if not freshness(self.directory(step), self.wanted(step)).fresh]
        self.check_packages(stale, names, evaluate=evaluate)

    def run(self, *, evaluate: bool = False) -> Adapted:
        """Every step that is not fresh, in order."""
        self.check(evaluate=evaluate)
        models: dict[str, Path] = {}
        for step in self.steps():
            path = self.step(step)
            if ranks.first():
                logger.info("%s", self.describe(step))
            if step.startswith("train"):
                models[step.split()[1]] = path
        report = self.evaluate() if evaluate and ranks.first() else None
        return Adapted(next(iter(models.values())), models, report, self.work.root)

    def step(self, step: str) -> Any:
        """Do one step: "generate", "mine", "label", "train gpl", …; returns what it made.

        Of several processes (torchrun) all train, and the first one does everything else: None for the others.
        """
        name, _, student = step.partition(" ")
        if name == "train":
            from gplfast.models import meeting

            meeting.meet()  # what is trained on is made now
            work: Callable[[], Any] = functools.partial(self.train, student)
        elif ranks.first():
            work = getattr(self, name)
        else:
            return None
        return self.timed(step, work, fresh=freshness(self.directory(step), self.wanted(step)).fresh)

    def describe(self, step: str) -> str:
        """Where the artifact of a finished step is and what it counts, in one line."""
        made = Manifest.read(self.directory(step))
        words = [f"{name} {value}" for name, value in made.counts.items()]
        words += [f"{name} on {choice['runtime']}" for name, choice in made.served.items()]
        return f"{self.directory(step)}: {', '.join(words)}"

    def timed(self, step: str, work: Callable[[], Any], *, fresh: bool) -> Any:
        """Do a step and keep how long it took; what was fresh already keeps the time of when it was made."""
        logger.info("%s: %s", step, "fresh" if fresh else "running")
        start = time.perf_counter()
        self.serving.choices.clear()
        outcome = work()
        if not fresh and ranks.first():
            self._keep_choices(step)
            seconds = self.seconds()
            seconds[step] = round(time.perf_counter() - start, 3)
            write_json(self.work.root / "seconds.json", seconds)
        return outcome

    def _keep_choices(self, step: str) -> None:
        """What the step's models ran on goes into its manifest."""
        if self.serving.choices:
            directory = self.directory(step)
            if (directory / "manifest.json").is_file():  # another model that was measured beside has one of its own
                Manifest.read(directory).with_served(self.serving.choices).write(directory)

    def _runtimes(self) -> dict[str, str]:
        """Of each model that made what is on disk: the runtimes, from the manifests."""
        found: dict[str, list[str]] = {}
        for step in [*self.steps(), *(f"evaluate {name}" for name in self.system_names())]:
            if (self.directory(step) / "manifest.json").is_file():
                for name, choice in Manifest.read(self.directory(step)).served.items():
                    found.setdefault(name, []).append(choice["runtime"])
        return {name: ", ".join(dict.fromkeys(runtimes)) for name, runtimes in found.items()}

    def seconds(self) -> dict[str, float]:
        """How long each step took when it was last done, in the order of the steps."""
        try:
            found = dict(read_json(self.work.root / "seconds.json"))
        except FileNotFoundError:
            return {}
        return {step: found[step] for step in sorted(found, key=lambda step: (ORDER.index(step.split()[0]), step))}

    # ---- evaluation

    def evaluate(self, extra: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Measure the systems of the table, and `extra` ones (name to model), and write report.json."""
        bench = Bench(
            self.judged, self.config, self.work.path("embeddings"), self.work.path("scores"), self.serving, self.report
        )
        systems = [self.system(name) for name in self.system_names()]
        for name, given in (extra or {}).items():
            model = self.model(given)
            directory = self.work.path(f"evaluate/{model.fingerprint[:24]}")
            systems.append(System(name, directory, model.path, model.fingerprint))
        results = {}
        for system in systems:
            fresh = system.freshness(self.judged, self.config).fresh
            results[system.name] = self.timed(
                f"evaluate {system.name}", functools.partial(bench.measure, system), fresh=fresh
            )
        report = summary(self.collection, results, self.config, self.seconds(), self._runtimes())
        write_json(self.work.root / "report.json", report)
        return report


def adapt(
    corpus: str | Path | Corpus | pa.Table | Sequence[str],
    *,
    work: str | Path,
    preset: str | None = None,
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    evaluate: bool = False,
    judgements: str | Path | None = None,
    report: Report | None = None,
) -> Adapted:
    """Adapt a retriever to documents without labels: generate, mine, label and train, and evaluate when asked to.

    A second call goes on where the first was interrupted, and does only what other settings make necessary.

    Args:
        corpus: A BEIR folder, a folder of text files, a table file, an Arrow table or a list of texts.
        work: Directory of everything that is made; one process at a time.
        preset: "nano" (bundled models, no network) or "paper"; by default what `config` names, else "nano".
        config: Settings over the preset: a nested mapping, or a TOML or YAML file; or all of them, a `RunConfig`.
        evaluate: Measure the systems on judged queries at the end.
        judgements: BEIR folder with queries.jsonl and qrels/; by default the corpus' own.
        report: Called with (what, done, all) as work goes on.

    Returns:
        The adapted model's directory, and the report.

    Raises:
        GplfastError: One of its children; the message says what to do.
    """
    settings = as_config(config, preset)
    pipeline = Pipeline(corpus, work, settings, judgements=judgements, report=report)
    pipeline.check(evaluate=evaluate)  # before the work directory is made
    with pipeline.work.together():
        return pipeline.run(evaluate=evaluate)


def as_config(config: RunConfig | Mapping[str, Any] | str | Path | None, preset: str | None = None) -> RunConfig:
    """The settings that a caller means: a `RunConfig` as it is, a mapping or a file over the preset.

    Raises:
        ConfigError: A setting that is unknown, of the wrong type or out of range.
    """
    if isinstance(config, RunConfig):
        if preset is not None:
            raise ConfigError(
                f"preset is {preset!r} but config is a RunConfig, which has every setting already; "
                "give one of them, or the changes to the preset as a mapping"
            )
        return config
    if isinstance(config, (str, Path)):
        return load_config(config, preset=preset)
    return load_config(preset=preset, overrides=config)


def demo(work: str | Path, *, threads: int = 0, report: Report | None = None) -> Adapted:
    """Adapt the bundled student to the bundled collection, with GPL and with GenQ, and measure both.

    The collection is a part of MedQuAD (CC BY 4.0, see presets/demo/README.md); no bundled model saw it.
    """
    corpus = Path(__file__).resolve().parent / "presets" / "demo"
    config = load_config(preset="nano", overrides={**DEMO, "students": ("gpl", "genq"), "threads": threads})
    return adapt(corpus, work=work, config=config, evaluate=True, report=report)
