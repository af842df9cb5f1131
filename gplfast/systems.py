"""What some settings train and compare: the steps, the systems of the table, and what they need."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gplfast import preflight
from gplfast.artifacts import Artifacts, ModelFile
from gplfast.errors import ArtifactError, ConfigError, HubError, MissingExtraError, ModelError
from gplfast.filter_settings import FilterConfig
from gplfast.mining.user_filter import UserFilter
from gplfast.positive_settings import T5, uses_bm25
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
        loss = self.config.loss
        gpl = [] if loss == "mnrl" else ["mine", "label", "train gpl"]
        return ["generate", *gpl, *([] if loss == "margin-mse" else ["train genq"])]

    def students(self) -> list[str]:
        """Which students are trained: "gpl", "genq" or both."""
        return [step.split()[1] for step in self.steps() if step.startswith("train")]

    def trained(self) -> list[str]:
        """The students whose training was finished in this work directory, with whatever settings."""
        found = {name: self.directory(f"train {name}") for name in ("gpl", "genq")}
        return [
            name for name, path in found.items() if (path / "manifest.json").is_file() and (path / "model").is_dir()
        ]

    def system_names(self) -> list[str]:
        """The systems of the table that these settings have: of the students those that are trained."""
        trained = self.trained() if self.alone else self.students()
        return [name for name in self.config.evaluate.systems if name not in ("gpl", "genq") or name in trained]

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
        elif name in ("gpl", "genq"):
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
        """The settings of "gpl" or "genq"."""
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
        if "label" in steps or BM25_TEACHER in systems or filters.by_teacher or filters.audit:
            preflight.teacher(self.model(config.label.model).path, config.label)
        for step in steps:
            if step.startswith("train"):
                preflight.bi_encoder(self.model(self.student_config(step.split()[1]).base).path, "student")
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
        generated = ["generate"] if self.config.generate.needed_model else []
        retrievers = set(self.retrievers().values())
        served = {*generated, "label", *(["mine"] if retrievers - {BM25} else [])}
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
