"""refresh: R-GPL's negatives, mined again by the student in training, and the rows that are drawn from them.

Training is cut into segments of some steps. The rows of a segment are the visits that GPL has at the same steps, their
negatives drawn from the list of that time. All of a segment is in a folder of its own, `refresh/<segment>/`:

    mine/         the list, as the step mine writes one; absent where none was mined
    label/        the rows and their margins, as the step label writes them
    begun.json    how many pairs the teacher had scored before
    record.json   what was done, when all of it is done
    embeddings/   the student's, while it mines
    student/      asynchronous only: the student of that time, while it mines
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gplfast import ranks
from gplfast.mining import dense, refreshes
from gplfast.mining.averaging import teacher_models
from gplfast.mining.background import Job
from gplfast.mining.lists import Lists, from_sequences
from gplfast.settings import output_settings
from gplfast.store.atomic import write_json
from gplfast.store.manifest import Manifest
from gplfast.store.negatives import Negatives, RankedLists
from gplfast.store.segments import SegmentFolders
from gplfast.store.shards import ShardSet

if TYPE_CHECKING:
    from pathlib import Path

    from gplfast.config import LabelConfig, RefreshConfig, TrainConfig
    from gplfast.store.corpus import Corpus
    from gplfast.store.generated import GeneratedQueries
    from gplfast.store.margins import Margins

logger = logging.getLogger(__name__)

# Neighbours that the adaptive mode compares.
_TOP = 10
Report = Callable[[str, int, int], None]
RowsOf = Callable[[int], tuple[int, int]]


class Student(dense.Encoder, Protocol):
    """The student in training (`gplfast.models.student_encoder.StudentEncoder` is one)."""

    seconds: float

    @property
    def device(self) -> str:
        """Type of the device that it computes on."""

    def save(self, path: Path) -> None:
        """Write it as it is now."""

    def frozen(self, path: Path) -> Student:
        """A copy of what was saved, for another thread."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps that a refresh is made of, done in folders of its own.

    Attributes:
        initial: What was mined before training.
        mine: Mines with the student: (folder, manifest, student, folder of embeddings, report).
        label: Labels rows of the visits over pools: (folder, manifest, pools, which rows, report).
        load: Reads labelled rows: (folder, manifest).
        negative_score: Mean score of the negatives of labelled rows: (folder, manifest).
        pairs_stored: How many pairs the first teacher has scored so far; 0 where none is asked.
        filtered: Whether mining asks the teacher too, so that what it scored are not the rows' pairs alone.
        mine_manifest: What a list depends on, without the student and the list before.
        label_manifest: What rows depend on, without the list and the segment.
    """

    initial: Callable[[], Negatives]
    mine: Callable[[Path, Manifest, Student, Path, Report | None], Negatives]
    label: Callable[[Path, Manifest, Negatives, RowsOf, Report | None], Margins]
    load: Callable[[Path, Manifest], Margins]
    negative_score: Callable[[Path, Manifest], float]
    pairs_stored: Callable[[], int]
    mine_manifest: Manifest
    label_manifest: Manifest
    filtered: bool = False


def manifest(
    made: Manifest, teachers: list[str], label: LabelConfig, config: RefreshConfig, mine: dict[str, Any]
) -> Manifest:
    """What R-GPL's student depends on.

    Args:
        made: What GPL's would, from the negatives instead of the margins.
        teachers: Fingerprints of the teachers.
        label: Settings of their scores.
        config: Settings of the refreshes.
        mine: The settings of mining that refreshes follow.
    """
    settings = output_settings(config)
    if config.mode != "adaptive":
        for name in ("below", "sample_queries", "sample_passages"):
            settings.pop(name)
    labels = output_settings(label)
    if len(teachers) == 1:
        labels.pop("average", None)
    settings = {**made.config, "label": labels, "refresh": {**settings, **mine}}
    return dataclasses.replace(made, config=settings, models={**made.models, **teacher_models(teachers)})


class Refreshes:
    """The rows of a training, segment by segment."""

    def __init__(
        self,
        directory: Path,
        key: str,
        steps: Steps,
        corpus: Corpus,
        queries: GeneratedQueries,
        *,
        config: RefreshConfig,
        train: TrainConfig,
        seed: int,
        threads: int = 0,
        report: Report | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            directory: Of the student; the folders of the segments are below it.
            key: Of the student's manifest; what was made for another one is dropped.
            steps: Mining and labelling.
            corpus: The passages.
            queries: The generated queries.
            config: Settings of the refreshes.
            train: Settings of the training.
            seed: The run's seed.
            threads: CPU threads of the adaptive mode's search, 0 for all.
            report: Called with (what, done, all).
        """
        self._folders = SegmentFolders(directory / "refresh")
        self.every = self.n_steps = 0
        self._log_file, self._key, self._steps = directory / refreshes.LOG, key, steps
        self._corpus, self._queries, self._config, self._train = corpus, queries, config, train
        self._seed, self._threads, self._report = seed, threads, report
        self._job: Job[dict[str, Any]] | None = None

    # ---- what the training asks for

    def first(self) -> Margins:
        """The rows of the first segment, from the negatives that were mined before; then steps are known.

        Raises:
            DataError: No query has a negative.
        """
        self._folders.keep_only(self._key)
        folder, made = self._folders.path(0, "label"), self._label_manifest(0, [0])
        margins = self._steps.label(folder, made, self._pool(self._list(0)), self._rows_of(0), self._report)
        n_queries = int(Manifest.read(folder).counts["queries"])
        self.n_steps = self._train.n_steps(n_queries)
        self.every = self._config.steps_between(self.n_steps)
        if self.every >= self.n_steps:
            logger.warning(
                "no refresh: [refresh] every is %d but training has %d steps; this student is GPL's",
                *(self.every, self.n_steps),
            )
        return margins

    def rows(self, step: int, student: Student, *, now: bool) -> Margins:
        """The rows of the segment that begins at a step.

        Args:
            step: Its first step.
            student: The student in training.
            now: Whether training stands at that step; otherwise, and for all processes but the first, rows are there.

        Raises:
            ArtifactError: They should be there and are not.
        """
        number = step // self.every
        if ranks.first() and self._config.mode == "async":
            record = self._asynchronous(number, student, now=now)
        elif ranks.first() and now:
            record = self._make(number, number, student, self._report)
        else:
            record = self._folders.finished(number)
        return self._steps.load(self._folders.path(number, "label"), self._label_manifest(number, record["lists"]))

    def log(self, n_trained: int) -> list[dict[str, Any]]:
        """What each refresh before step `n_trained` did and changed, see docs/rgpl.md; ends what is mined beside."""
        self.close()
        found = self._log(n_trained)
        write_json(self._log_file, found)
        return found

    def check(self) -> None:
        """Raise what ended the work beside training, if an error did."""
        if self._job is not None:
            self._job.check()

    def close(self) -> None:
        """End what is mined beside training."""
        if self._job is not None:
            self._job.cancel()

    def _log(self, n_steps: int) -> list[dict[str, Any]]:
        return [record["log"] for record in self._folders.records(1, -(-n_steps // max(self.every, 1)))]

    # ---- a segment

    def _make(self, number: int, mined_by: int, student: Student | None, report: Report | None) -> dict[str, Any]:
        """Make the rows of a segment, with the list that the student of segment `mined_by` finds.

        Does what is missing; all of it, when the student is another one than that of the segment's record.
        """
        weights = "" if student is None else student.fingerprint
        found = self._folders.record(number)
        if found is not None and found["weights"] == weights:
            return found
        if number == 0:
            return self._folders.write(0, {"weights": weights, "lists": [0], "neighbours": self._neighbours(student)})
        stored = self._folders.begun(number, weights, self._steps.pairs_stored())
        lists, pool = self._folders.finished(number - 1)["lists"], None
        log: dict[str, Any] = {"step": number * self.every, "refreshed": False}
        neighbours = self._neighbours(student)
        if student is not None and mined_by > 0 and self._is_due(lists[-1], neighbours, log):
            pool = self._mine(mined_by, lists, student, log, report)
            lists = [*lists, mined_by]
        self._label(number, lists, pool or self._pool(self._fold(lists)), log, report)
        log["pairs_scored"] = self._steps.pairs_stored() - stored
        pairs = log.pop("pairs")
        if self._train.reads_scores and not self._steps.filtered:
            log["pairs_saved"] = pairs - log["pairs_scored"]
        record = {"weights": weights, "lists": lists, "neighbours": neighbours, "log": log}
        self._folders.write(number, record)
        write_json(self._log_file, self._log(self.n_steps))
        logger.info("%s", refreshes.line(log))
        return record

    def _mine(
        self, number: int, lists: list[int], student: Student, log: dict[str, Any], report: Report | None
    ) -> Negatives:
        start, student.seconds = time.perf_counter(), 0.0
        before = self._fold(lists)
        embeddings = self._folders.path(number, "embeddings")
        made = self._mine_manifest(lists, student.fingerprint)
        found = self._steps.mine(self._folders.path(number, "mine"), made, student, embeddings, report)
        shutil.rmtree(embeddings, ignore_errors=True)
        new = _ranked(found)
        k = self._config.negatives_per_query
        log["refreshed"], log["mined_at"] = True, number * self.every
        log[f"overlap@{k}"] = round(refreshes.overlap(before, new, k), 4)
        seen = before
        for earlier in () if self._config.keep == "join" else lists[:-1]:  # joined lists hold the earlier ones
            seen = refreshes.joined(seen, self._list(earlier))
        log["new_documents"] = round(refreshes.unseen(seen, new), 4)
        log["seconds"] = {"embed": round(student.seconds, 3)}
        log["seconds"]["search"] = round(time.perf_counter() - start - student.seconds, 3)
        return self._pool(self._added(before, new))

    def _label(
        self, number: int, lists: list[int], pool: Negatives, log: dict[str, Any], report: Report | None
    ) -> None:
        start = time.perf_counter()
        folder, made = self._folders.path(number, "label"), self._label_manifest(number, lists)
        margins = self._steps.label(folder, made, pool, self._rows_of(number), report)
        log.setdefault("seconds", {})["label"] = round(time.perf_counter() - start, 3)
        if self._train.reads_scores:
            before = self._label_manifest(number - 1, self._folders.finished(number - 1)["lists"])
            score = self._steps.negative_score(self._folders.path(number - 1, "label"), before)
            log["teacher_score_before"] = round(score, 4)
            log["teacher_score"] = round(self._steps.negative_score(folder, made), 4)
        log["pairs"] = refreshes.n_pairs(margins.queries, margins.positives, margins.negatives)

    def _rows_of(self, number: int) -> RowsOf:
        def rows(n_queries: int) -> tuple[int, int]:
            n_steps = self._train.n_steps(n_queries)
            every = self._config.steps_between(n_steps)
            size = self._train.batch_size
            return number * every * size, min((number + 1) * every, n_steps) * size

        return rows

    # ---- lists

    def _list(self, number: int) -> Lists:
        """What was mined at a segment, best first; 0: before training, ascending."""
        if number == 0:
            return self._initial[0]
        folder = self._folders.path(number, "mine")
        return _ranked(Negatives.from_table(ShardSet(folder, Manifest.read(folder)).table(), str(folder)))

    @functools.cached_property
    def _initial(self) -> tuple[Lists, RankedLists | None]:
        """What was mined before training, 8 bytes a passage of a query, and what is promoted; read once."""
        found = self._steps.initial()
        return Lists(*found.union()), found.promoted

    def _fold(self, lists: list[int]) -> Lists:
        """The pool of each query after some lists."""
        pool = self._list(lists[0])
        for number in lists[1:]:
            pool = self._added(pool, self._list(number))
        return pool

    def _added(self, pool: Lists, new: Lists) -> Lists:
        return (refreshes.joined if self._config.keep == "join" else refreshes.replaced)(pool, new)

    def _pool(self, pool: Lists) -> Negatives:
        lists_of_now = {"pool": RankedLists(pool.indptr, pool.rows)}
        return Negatives(np.arange(len(pool.lengths)), lists_of_now, promoted=self._initial[1])

    def _mine_manifest(self, lists: list[int], weights: str) -> Manifest:
        template = self._steps.mine_manifest
        models = dict.fromkeys(template.models, weights)
        return dataclasses.replace(template, inputs={**template.inputs, "before": self._list_key(lists)}, models=models)

    def _list_key(self, lists: list[int]) -> str:
        """Of the newest list; each one names the one before."""
        if lists[-1] == 0:
            return self._steps.label_manifest.inputs["negatives"]
        return Manifest.read(self._folders.path(lists[-1], "mine")).key

    def _label_manifest(self, number: int, lists: list[int]) -> Manifest:
        template = self._steps.label_manifest
        own = {"segment": number, "every": self._config.every, "keep": self._config.keep}
        inputs = {**template.inputs, "negatives": self._list_key(lists)}
        return dataclasses.replace(template, inputs=inputs, config={**template.config, **own})

    # ---- adaptive

    def _neighbours(self, student: Student | None) -> list[list[int]] | None:
        """The passages nearest to some queries, both of them samples, in the student's eyes; adaptive only."""
        if self._config.mode != "adaptive" or student is None:
            return None
        config = self._config
        queries = refreshes.sample(self._seed, "refreshq", len(self._queries), config.sample_queries)
        passages = refreshes.sample(self._seed, "refreshp", len(self._corpus), config.sample_passages)
        texts = [self._queries.texts[row] for row in queries]
        size = config.batch_size
        found = dense.search(
            student.encode(texts, kind="query", batch_size=size, progress=None),
            student.encode(self._corpus.texts(passages), kind="document", batch_size=size, progress=None),
            min(_TOP, len(passages)),
            metric=self._train.similarity,
            threads=self._threads,
        )
        neighbours: list[list[int]] = found.ids.tolist()
        return neighbours

    def _is_due(self, newest: int, neighbours: list[list[int]] | None, log: dict[str, Any]) -> bool:
        """Whether to mine: always, or when the student's neighbours changed enough since the newest list."""
        if neighbours is None:
            return True
        before = from_sequences(self._folders.finished(newest)["neighbours"])
        log["sample_overlap"] = round(refreshes.overlap(before, from_sequences(neighbours), _TOP), 4)
        return bool(log["sample_overlap"] < self._config.below)

    # ---- asynchronous

    def _asynchronous(self, number: int, student: Student, *, now: bool) -> dict[str, Any]:
        """The record of a segment whose list was mined beside the one before; then the next one's is begun."""
        if self._job is not None:
            record = self._job.wait()
            self._job = None
        elif number == 0:
            record = self._make(0, 0, None, None)
        elif now and (number == 1 or self._snapshot(number - 1).is_dir()):
            record = self._make(number, number - 1, self._frozen(number - 1, student), self._report)
        else:
            record = self._folders.finished(number)
        if (number + 1) * self.every < self.n_steps:
            if now and number:
                student.save(self._snapshot(number))
            copy = self._frozen(number, student)
            self._job = Job(lambda report: self._make(number + 1, number, copy, report))
        if number > 1:
            self._folders.drop(number - 1, "student")
        return record

    def _snapshot(self, number: int) -> Path:
        return self._folders.path(number, "student")

    def _frozen(self, number: int, student: Student) -> Student | None:
        return student.frozen(self._snapshot(number)) if number else None


def _ranked(found: Negatives) -> Lists:
    """The student's list of each query, best first."""
    ranked = next(iter(found.lists.values()))
    return Lists(ranked.indptr, ranked.docs)
