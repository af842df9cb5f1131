"""What some settings train and compare: the steps, the systems of the table, and what they need."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from gplfast import preflight, ranks
from gplfast.artifacts import Artifacts, ModelFile
from gplfast.config import STUDENTS
from gplfast.errors import ArtifactError, ConfigError, HubError, MissingExtraError, ModelError
from gplfast.filter_settings import FilterConfig
from gplfast.mining.user_filter import UserFilter
from gplfast.positive_settings import T5, uses_bm25
from gplfast.report import BM25, BM25_TEACHER, System
from gplfast.store.atomic import read_json
from gplfast.store.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from gplfast.config import TrainConfig

logger = logging.getLogger(__name__)

# Beside a trained model: the name of what it was trained from. The manifest has its fingerprint only.
BASE_FILE = "base.json"


class Systems(Artifacts):
    """The steps and systems of one corpus in one work directory."""

    def steps(self) -> list[str]:
        """The training steps of these settings, in order."""
        students = [name for name in STUDENTS if name in self.config.students]
        # R-GPL labels the rows of one segment after the other while it trains.
        before = {"gpl": ("mine", "label"), "rgpl": ("mine",), "genq": ()}
        needed = dict.fromkeys(step for name in students for step in before[name])
        return ["generate", *needed, *(f"train {name}" for name in students)]

    def students(self) -> list[str]:
        """Which of `STUDENTS` are trained, in their order."""
        return [step.split()[1] for step in self.steps() if step.startswith("train")]

    def trained(self) -> list[str]:
        """The students whose training was finished in this work directory, with whatever settings."""
        found = {name: self.directory(f"train {name}") for name in STUDENTS}
        return [
            name for name, path in found.items() if (path / "manifest.json").is_file() and (path / "model").is_dir()
        ]

    def system_names(self) -> list[str]:
        """The systems of the table that these settings have: of the students those that are trained."""
        trained = self.trained() if self.alone else self.students()
        return [name for name in self.config.evaluate.systems if name not in STUDENTS or name in trained]

    def system(self, name: str) -> System:
        """How a system of the table is measured.

        Raises:
            ArtifactError: It is a student that is not trained, or what it was trained from cannot be found.
        """
        directory = self.work.path(f"evaluate/{name}")
        if name == BM25:
            return System(name, directory)
        if name == BM25_TEACHER:
            model = self.model(self.config.label.model)
        elif name in STUDENTS:
            path = self.directory(f"train {name}") / "model"
            if not path.is_dir():
                raise ArtifactError(f"{path} is missing; run `gplfast train` or `gplfast run` first")
            model = ModelFile(str(path))
        else:
            return self._zero_shot(directory)
        return System(name, directory, model.path, model.fingerprint)

    def _zero_shot(self, directory: Path) -> System:
        """The student before training, with the pooling and the similarity that it is trained with."""
        made = self.origin()
        config = self.student_config("genq" if self.students() == ["genq"] else "gpl")
        model, pooling, similarity = self.model(config.base), config.pooling, config.similarity
        if made is not None:
            model = self._base(made.models["base"])
            pooling, similarity = made.config["pooling"], made.config["similarity"]
        if (model.path / "modules.json").is_file():
            pooling = similarity = ""  # it says both itself
        return System("zero-shot", directory, model.path, model.fingerprint, pooling, similarity)

    def origin(self) -> Manifest | None:
        """Of a step alone: the manifest of the trained student, whose base is the table's zero-shot."""
        trained = self.trained() if self.alone else []
        return Manifest.read(self.directory(f"train {trained[0]}")) if trained else None

    def _base(self, fingerprint: str) -> ModelFile:
        student = self.trained()[0]
        directory, given = self.directory(f"train {student}"), self.student_config(student).base
        record = directory / BASE_FILE
        for name in [*([str(read_json(record)["name"])] if record.is_file() else []), given]:
            try:
                if self.model(name).fingerprint == fingerprint:
                    return self.model(name)
            except (ModelError, HubError, MissingExtraError) as error:
                logger.debug("%s was the base and is gone: %s", name, error)
        raise ArtifactError(
            f"zero-shot cannot be measured: {directory} was trained from another model than {given}, and that one is "
            "not found; give its directory with --train-base, or leave zero-shot out of the systems"
        )

    def student_config(self, student: str) -> TrainConfig:
        """The settings of one of `STUDENTS`: R-GPL's are GPL's."""
        return self.config.genq if student == "genq" else self.config.train

    def check_models(self, steps: Iterable[str], systems: Iterable[str], extra: Iterable[str]) -> None:
        """Check the kind of every model that some steps and systems use.

        Raises:
            ModelError: One is of another kind than its role needs.
        """
        config = self.config
        if "generate" in steps and (name := config.generate.needed_model):
            path = self.model(name).path
            if config.generate.method == T5:
                preflight.generator(path)
            else:
                preflight.bi_encoder(path, "salient_model")
        for name in self.retrievers().values() if "mine" in steps else ():
            if name != BM25:
                preflight.bi_encoder(self.model(name).path, "retriever")
        filters = config.filter if "mine" in steps else FilterConfig()
        if filters.by_vector and set(self.retrievers()) <= {BM25}:
            raise ConfigError(
                "[filter] near_positive and near_negative compare embeddings but no source of negatives is a "
                "bi-encoder; add one"
            )
        if filters.function:
            UserFilter.load(filters.function).check()
        labelled = config.label.asks_teacher(config.train) and bool({"label", "train rgpl"} & set(steps))
        if labelled or BM25_TEACHER in systems or filters.by_teacher or filters.audit:
            preflight.teacher(self.model(config.label.model).path, config.label)
        for name in config.label.more_models if labelled else ():
            preflight.teacher(self.model(name).path, config.label)
        for step in steps:
            if step.startswith("train"):
                student = self.student_config(step.split()[1])
                ranks.share(student.batch_size, "[genq]" if step == "train genq" else "[train]")
                preflight.bi_encoder(self.model(student.base).path, "student")
                if (guide := self.guide(student)) is not None:
                    preflight.bi_encoder(guide.path, "guide")
        if "zero-shot" in systems and (model := self.system("zero-shot").model) is not None:
            preflight.bi_encoder(model, "student")
        for name in extra:
            preflight.bi_encoder(self.model(name).path, "model")

    def check_packages(self, stale: Sequence[str], systems: Sequence[str], *, evaluate: bool) -> None:
        """Check that what some steps and systems import is installed.

        Raises:
            MissingExtraError: The message names the extra that brings it.
        """
        kinds = ["training"] if any(step.startswith("train") for step in stale) else []
        retrievers = set(self.retrievers().values())
        generated = ["generate"] if self.config.generate.needed_model else []
        served = {*generated, "label", "train rgpl", *(["mine"] if retrievers - {BM25} else [])}
        filters = self.config.filter
        teacher = "mine" in stale and (filters.by_teacher or bool(filters.audit))
        if served & set(stale) or set(systems) - {BM25} or teacher:
            kinds.append("serving models")
        if "generate" in stale and uses_bm25(self.config.generate):
            kinds.append("bm25")
        if ("mine" in stale and BM25 in retrievers) or {BM25, BM25_TEACHER} & set(systems):
            kinds.append("bm25")
        if "mine" in stale and self.config.mine.search != "exact":
            kinds.append("approximate search")
        preflight.require([*kinds, "evaluation"] if evaluate else kinds)

    # ---- models that are opened when they are needed

    def open_generation_model(self) -> Any:
        """The generator, or the encoder that a method without one needs."""
        path = self.model(self.config.generate.needed_model).path
        if self.config.generate.method == T5:
            return self.serving.generator(path)
        return self.serving.encoder(path, "encoder")

    def frozen_documents(self, path: Path) -> Any:
        """The vectors of the passages by the encoder of a directory."""
        from gplfast.mining import dense

        return dense.embed(
            self.serving.encoder(path, "documents"),
            self.corpus.texts,
            len(self.corpus),
            self.work.path("embeddings"),
            texts_fingerprint=self.corpus.fingerprint,
            kind="document",
            batch_size=self.config.evaluate.batch_size,
            progress=None if (report := self.report) is None else functools.partial(report, "embed passages"),
        )

    def opener(self, short: str, name: str) -> Callable[[], Any] | None:
        """What opens a retriever; None for BM25."""
        return None if name == BM25 else lambda: self.serving.encoder(self.model(name).path, short)
