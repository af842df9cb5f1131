"""What some settings train and compare: the steps, the systems of the table, and what they need."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gplfast import preflight
from gplfast.artifacts import Artifacts, ModelFile
from gplfast.config import STUDENTS
from gplfast.errors import ArtifactError, HubError, MissingExtraError, ModelError
from gplfast.report import BM25, BM25_TEACHER, System
from gplfast.store.atomic import read_json
from gplfast.store.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
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
        if "generate" in steps:
            preflight.generator(self.model(config.generate.model).path)
        for name in config.mine.retrievers if "mine" in steps else ():
            if name != BM25:
                preflight.bi_encoder(self.model(name).path, "retriever")
        if {"label", "train rgpl"} & set(steps) or BM25_TEACHER in systems:
            preflight.teacher(self.model(config.label.model).path, config.label)
        for name in config.label.more_models if {"label", "train rgpl"} & set(steps) else ():
            preflight.teacher(self.model(name).path, config.label)
        for step in steps:
            if step.startswith("train"):
                student = self.student_config(step.split()[1])
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
        served = {"generate", "label", "train rgpl", *(["mine"] if set(self.config.mine.retrievers) != {BM25} else [])}
        if served & set(stale) or set(systems) - {BM25}:
            kinds.append("serving models")
        if ("mine" in stale and BM25 in self.config.mine.retrievers) or {BM25, BM25_TEACHER} & set(systems):
            kinds.append("bm25")
        preflight.require([*kinds, "evaluation"] if evaluate else kinds)
