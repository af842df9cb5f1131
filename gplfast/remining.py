"""R-GPL's refreshes made of the pipeline's own steps: mining and labelling, given to the training as callables."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import TYPE_CHECKING, Any

from gplfast.config import MineConfig
from gplfast.errors import ModelError
from gplfast.mining.sources import STUDENT
from gplfast.systems import Systems

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gplfast.artifacts import Report
    from gplfast.mining.dense import Encoder
    from gplfast.mining.filtering import Asked
    from gplfast.mining.scoring import OpenStore
    from gplfast.models.student_encoder import StudentEncoder
    from gplfast.models.training_rows import Examples
    from gplfast.stages.refresh import Refreshes, RowsOf, Steps, Student
    from gplfast.store.manifest import Manifest
    from gplfast.store.margins import Margins
    from gplfast.store.negatives import Negatives

logger = logging.getLogger(__name__)


class Remining(Systems):
    """What trains R-GPL, besides what trains GPL."""

    def refreshes(self) -> Refreshes:
        """The rows of R-GPL's training, segment by segment."""
        from gplfast.stages import refresh

        config, directory = self.config, self.directory("train rgpl")
        return refresh.Refreshes(
            directory,
            self.wanted("train rgpl").key,
            self._refresh_steps(),
            self.corpus,
            self.queries(),
            config=config.refresh,
            train=config.train,
            seed=config.seed,
            threads=config.threads,
            report=self.report,
        )

    def refreshes_log(self) -> list[dict[str, Any]]:
        """What each refresh of the training that is on disk did; empty when there was none."""
        from gplfast.mining.refreshes import read_log

        return read_log(self.directory("train rgpl"))

    def _refresh_steps(self) -> Steps:
        from gplfast.mining.scoring import stores_of
        from gplfast.stages import label, mine, refresh

        config = self.config
        inputs = {"corpus": self.corpus.fingerprint, "queries": self._input("generate").key}
        teacher, *more = (self._served(name) for name in self.teachers())
        negatives = {**inputs, "negatives": self._input("mine").key}
        # Opened once for all refreshes, by filters and labels.
        openers = [functools.cache(self.opener_of_teacher(place)) for place in range(len(self.teachers()))]
        open_store = stores_of(self.work.path("scores"))
        filters = self._filters(openers[0], open_store)
        if filters.config.audit:  # of the negatives before training; each refresh would pay for it again
            filters = filters._replace(config=dataclasses.replace(filters.config, audit=0))
        return refresh.Steps(
            initial=self.negatives,
            mine=functools.partial(self._mine_segment, filters=filters),
            label=functools.partial(self._label_segment, openers=openers, open_store=open_store),
            load=functools.partial(label.load, n_queries=len(self.queries()), n_passages=len(self.corpus)),
            negative_score=label.mean_negative_score,
            pairs_stored=functools.partial(self._pairs_stored, openers[0], open_store),
            mine_manifest=mine.manifest(
                inputs, {STUDENT: ""}, self._mining_of_refreshes(), filters=self._filter_identity()
            ),
            label_manifest=label.manifest(
                negatives, teacher, config.label, config.train, config.seed, more_teachers=more
            ),
            filtered=config.filter.by_teacher,
        )

    def _mine_segment(
        self,
        folder: Path,
        made: Manifest,
        student: Student,
        embeddings: Path,
        report: Report | None,
        *,
        filters: Asked,
    ) -> Negatives:
        from gplfast.stages import mine

        return mine.mine(
            *(self.corpus, self.queries(), folder, made, self._mining_of_refreshes()),
            encoders={STUDENT: functools.partial(self._encoder_of, student, embeddings / "served")},
            embeddings=embeddings,
            threads=self.config.threads,
            filters=filters,
            report=report,
        )

    def _label_segment(
        self,
        folder: Path,
        made: Manifest,
        pool: Negatives,
        rows: RowsOf,
        report: Report | None,
        *,
        openers: Sequence[Callable[[], Any]],
        open_store: OpenStore,
    ) -> Margins:
        from gplfast.stages import label

        config = self.config
        return label.label(
            *(self.corpus, self.queries(), pool, folder, made),
            config=config.label,
            train=config.train,
            open_teacher=openers[0],
            more_teachers=openers[1:],
            compared_on=self.negatives() if len(openers) > 1 else None,
            open_store=open_store,
            seed=config.seed,
            report=report,
            rows=rows,
        )

    def _pairs_stored(self, open_teacher: Callable[[], Any], open_store: OpenStore) -> int:
        from gplfast.mining.scoring import teacher_identity

        config, label = self.config, self.config.label
        if not (label.asks_teacher(config.train) or config.filter.by_teacher):
            return 0
        fingerprint = open_teacher().fingerprint
        return len(open_store(teacher_identity(fingerprint, label.activation, label.relevance_label)))

    def _encoder_of(self, student: Student, folder: Path) -> Encoder:
        """What embeds with the student in training: on a processor the runtime that serves models, else torch."""
        from gplfast.models.served_student import ServedStudent

        config = self.config.train
        if student.device != "cpu":
            return student
        try:
            return ServedStudent(
                student,
                folder,
                lambda path, graphs: self.serving.trained(
                    path, graphs, self.model(config.base).path, pooling=config.pooling
                ),
            )
        except ModelError as error:
            logger.warning("the student embeds by torch, which is slower: %s", error)
            return student

    def _mining_of_refreshes(self) -> MineConfig:
        """How a refresh mines: its own number, the student's similarity, exclusions as before training."""
        config = self.config
        return MineConfig(
            retrievers=(STUDENT,),
            metrics=(config.train.similarity,),
            negatives_per_query=config.refresh.negatives_per_query,
            exclude_duplicates=config.mine.exclude_duplicates,
            batch_size=config.refresh.batch_size,
        )

    def _filters(self, open_teacher: Callable[[], Any] | None = None, open_store: OpenStore | None = None) -> Asked:
        """The filters of every search for negatives; what opens the teacher and its scores where they are open."""
        from gplfast.mining.filtering import Asked, reader
        from gplfast.mining.scoring import scorer_of, stores_of

        config, label = self.config.filter, self.config.label
        if not (config.by_teacher or config.audit):
            return Asked(config)
        open_store = open_store or stores_of(self.work.path("scores"))
        scorer = scorer_of(label, open_teacher or self.opener_of_teacher(0), open_store)
        logits = label.activation in {"identity", "default"}
        return Asked(config, scorer, logits, reader(label, self._served(label.model)))

    def opener_of_teacher(self, place: int) -> Callable[[], Any]:
        """What opens one of `teachers()`."""
        model, name = self.model(self.teachers()[place]), "teacher" if not place else f"teacher {place + 1}"
        return lambda: self.serving.teacher(model.path, name)


class SegmentExamples:
    """The refreshes' rows as the training takes them."""

    def __init__(self, found: Refreshes, examples: Callable[[Margins], Examples]) -> None:
        """Nothing is made yet.

        Args:
            found: The refreshes.
            examples: Gives training rows of margins.
        """
        self._found, self._examples = found, examples

    @property
    def every(self) -> int:
        """Steps of a segment."""
        return self._found.every

    @property
    def n_steps(self) -> int:
        """Steps of the training."""
        return self._found.n_steps

    def first(self) -> Examples:
        """The rows of the first segment."""
        return self._examples(self._found.first())

    def rows(self, step: int, student: StudentEncoder, *, now: bool) -> Examples:
        """The rows of the segment that begins at a step."""
        return self._examples(self._found.rows(step, student, now=now))

    def check(self) -> None:
        """Raise what ended the work beside training, if an error did."""
        self._found.check()

    def log(self, n_trained: int) -> list[dict[str, Any]]:
        """What each refresh did whose rows were trained on."""
        return self._found.log(n_trained)
