"""train: a student from rows with negatives (GPL) or from queries and their passages (GenQ), by the chosen loss."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gplfast import ranks
from gplfast.config import OF_SELECTION
from gplfast.errors import ArtifactError, DataError
from gplfast.loss_settings import ADORE, MARGIN_MSE, unread
from gplfast.mining import rescale
from gplfast.mining.held_out import held_out, searched
from gplfast.mining.lists import same_text_groups
from gplfast.models import meeting, training, training_rows
from gplfast.models import student as students
from gplfast.models.checkpoint import DOCUMENTS
from gplfast.models.segments import Segments
from gplfast.models.selection import DevSet
from gplfast.models.training_rows import Examples
from gplfast.settings import output_settings
from gplfast.store.atomic import write_json
from gplfast.store.manifest import Manifest, freshness, retract

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from gplfast.config import TrainConfig
    from gplfast.mining.held_out import HeldOut
    from gplfast.models.student_encoder import StudentEncoder
    from gplfast.store.corpus import Corpus
    from gplfast.store.generated import GeneratedQueries
    from gplfast.store.margins import Margins

logger = logging.getLogger(__name__)

# Rows on which the student's own margins are looked at before training.
_SAMPLE_ROWS = 512
Report = Callable[[str, int, int], None]


class Remining(Protocol):
    """What gives the rows of R-GPL's segments; see `stages.refresh`."""

    @property
    def every(self) -> int:
        """Steps of a segment."""

    @property
    def n_steps(self) -> int:
        """Steps of the training."""

    def rows(self, step: int, student: StudentEncoder, *, now: bool) -> Examples:
        """The rows of the segment that begins at a step; `now`: training stands at that step."""

    def check(self) -> None:
        """Raise what ended the work beside training, if an error did."""

    def log(self, n_trained: int) -> list[dict[str, Any]]:
        """What each refresh did whose rows were trained on, in so many steps."""


def manifest(
    inputs: dict[str, str], base_fingerprint: str, config: TrainConfig, loss: str, seed: int, *, guide: str = ""
) -> Manifest:
    """What the trained model depends on; of the losses' settings those that this loss reads.

    A precision of "auto" stands here as such: what it became on the device is in `training.json` and in checkpoints.
    """
    settings = {**output_settings(config), "loss": loss, "seed": seed}
    for name in (*unread(loss), *(OF_SELECTION if not config.dev_share else ())):
        settings.pop(name, None)
    models = {"base": base_fingerprint, **({"guide": guide} if guide else {})}
    return Manifest("model", inputs=inputs, config=settings, models=models)


def parted(corpus: Corpus, queries: GeneratedQueries, config: TrainConfig, seed: int) -> HeldOut | None:
    """Which queries are trained on and which are held out; None when none are (`dev_share` 0)."""
    return held_out(corpus, queries, config.dev_share, seed) if config.dev_share else None


def dev_set(
    corpus: Corpus, queries: GeneratedQueries, found: HeldOut | None, config: TrainConfig, seed: int
) -> DevSet | None:
    """The held-out queries and the passages that the student has to find theirs among; None when none are held out."""
    if found is None:
        return None
    rows = searched(found, queries, config.select_passages, seed)
    dev = np.flatnonzero(found.dev)
    own = np.searchsorted(rows, found.groups[queries.passages[dev]]).astype(np.int64)
    return DevSet([queries.texts[row] for row in dev], corpus.texts(rows), own)


def from_margins(
    corpus: Corpus,
    queries: GeneratedQueries,
    margins: Margins,
    config: TrainConfig,
    *,
    guide: Path | None = None,
    found: HeldOut | None = None,
) -> Examples:
    """Training rows with negatives, in the order in which they were labelled.

    Where a batch's passages are negatives of each other equal texts are known, to be kept apart.

    Raises:
        ArtifactError: Some have a query or positive that is held out: they were labelled with another `dev_share`.
            Or they have no margins and the loss reads some.
    """
    if found is not None:
        held = np.isin(found.groups[margins.positives], found.groups[queries.passages[~found.train]])
        held |= ~found.train[margins.queries]
        if held.any():
            raise ArtifactError(
                f"cannot hold queries out: {int(held.sum())} of {len(held)} labelled rows are of held-out passages; "
                "label was run with another dev_share or seed, run `gplfast label` again with that of the training"
            )
    if config.reads_scores and np.isnan(margins.margins).any():
        raise ArtifactError(
            f"cannot train with {config.chosen_loss(MARGIN_MSE)}: the labelled rows have no margins, as label was run "
            "for a loss that reads none; run `gplfast label` again with this loss"
        )
    in_batch = config.shares_batch(MARGIN_MSE)
    passage_groups = same_text_groups(corpus.texts()) if in_batch else None
    return Examples(
        query_text=queries.texts.__getitem__,
        passage_text=corpus.text,
        queries=margins.queries,
        positives=margins.positives,
        negatives=margins.negatives,
        margins=margins.margins,
        query_groups=same_text_groups(queries.texts) if in_batch else None,
        passage_groups=passage_groups,
        source_groups=_source_groups(queries, passage_groups),
        guide=guide,
    )


def from_queries(
    corpus: Corpus, queries: GeneratedQueries, *, guide: Path | None = None, found: HeldOut | None = None
) -> Examples:
    """Training rows of GenQ: each query that is not held out with its passage.

    Equal texts are known, to be kept apart in a batch.
    """
    rows = np.arange(len(queries), dtype=np.int64) if found is None else np.flatnonzero(found.train).astype(np.int64)
    passage_groups = same_text_groups(corpus.texts())
    return Examples(
        query_text=queries.texts.__getitem__,
        passage_text=corpus.text,
        queries=rows,
        positives=queries.passages[rows],
        query_groups=same_text_groups(queries.texts),
        passage_groups=passage_groups,
        source_groups=_source_groups(queries, passage_groups),
        guide=guide,
    )


def _source_groups(queries: GeneratedQueries, groups: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64] | None:
    return None if queries.sources is None or groups is None else groups[queries.sources]


def train(
    examples: Callable[[], Examples],
    base: Path,
    directory: Path,
    wanted: Manifest,
    config: TrainConfig,
    *,
    seed: int,
    threads: int = 0,
    dev: Callable[[], DevSet | None] | None = None,
    report: Report | None = None,
    documents: Callable[[Path], npt.NDArray[np.float32]] | None = None,
    remining: Remining | None = None,
) -> Path:
    """Train the student and write `directory/model`, a normal sentence-transformers model, with our manifest beside it.

    A second call after a kill goes on from the newest whole checkpoint: optimizer, schedule, sampler, random state.

    Processes that `torchrun` started share every batch, so that what is computed is what one process would compute, to
    rounding (and but for dropout). The first one writes.

    Args:
        examples: Gives the training rows; called only when there is something to do.
        base: Directory of the student before training; without `modules.json` pooling is put on top.
        directory: The artifact's directory.
        wanted: The manifest to write, see `manifest`.
        config: Settings of the step.
        seed: Seed of dropout and shuffling.
        threads: CPU threads, 0 for all.
        dev: Gives what the best step is chosen by, see `dev_set`; without it the last step's model is written.
        documents: Gives the vectors of all passages from the directory of an encoder; for adore, which trains queries
            alone. Its model has the encoder before training in `model/documents`.
        report: Called with (what, done, all).
        remining: Gives the rows of later segments of the training, `examples` then those of the first one (R-GPL).

    Returns:
        The model's directory.

    Raises:
        DataError: No rows to train on.
        MissingExtraError: sentence-transformers is not installed.
        ModelError: The base cannot be loaded.
    """
    model_path = directory / "model"
    if freshness(directory, wanted).fresh:
        return model_path
    rows = meeting.in_turn(examples)
    if not len(rows.queries):
        raise DataError("cannot train: there are 0 training rows; look at the counts of generate, mine and label")
    if remining is None and ranks.world_size() > 1 and len(rows.queries) < config.batch_size:
        raise DataError(
            f"cannot train: batch_size is {config.batch_size} but there are {len(rows.queries)} training rows, and "
            f"{ranks.world_size()} processes share full batches only; give a smaller batch_size, or use one process"
        )
    students.prepare(seed, threads)
    student = students.open_student(base, config)
    frozen = directory / DOCUMENTS if config.loss == ADORE and documents is not None else None
    if documents is not None and frozen is not None:
        if ranks.first():
            students.save(student, frozen)
        vectors = meeting.in_turn(functools.partial(documents, frozen))
        rows = dataclasses.replace(rows, documents=vectors)
        logger.info("only queries are trained: documents stay encoded by the base, kept in %s", model_path / DOCUMENTS)
    rows, done = prepare_labels(rows, student, config)
    fit = training.fit(
        student,
        rows,
        directory / "checkpoints",
        wanted.key,
        config,
        n_steps=_n_steps(rows, config) if remining is None else remining.n_steps,
        seed=seed,
        progress=None if report is None else lambda step, steps: report("train", step, steps),
        dev=dev() if dev is not None else None,
        threads=threads,
        remining=None if remining is None else _segments(remining, student, config, done),
    )
    if not ranks.first():
        meeting.meet()
        return model_path
    directory.mkdir(parents=True, exist_ok=True)
    retract(directory)
    students.save(student, model_path, documents=frozen)
    counts: dict[str, float] = {"rows": len(rows.queries), "steps": fit.n_steps}
    if remining is not None:
        done["refreshes"] = remining.log(fit.n_steps)
        counts["rows"] = fit.n_steps * config.batch_size
        counts["refreshes"] = sum(item["refreshed"] for item in done["refreshes"])
    _write_training(directory, wanted, fit, counts, done)
    meeting.meet()
    return model_path


def _n_steps(rows: Examples, config: TrainConfig) -> int:
    if rows.negatives is None:
        return config.n_steps(len(rows.queries))
    # They were drawn to fill every step; some are missing only when a teacher's NaN were dropped.
    return max(1, len(rows.queries) // config.batch_size)


def _segments(remining: Remining, student: Any, config: TrainConfig, done: dict[str, Any]) -> Segments:
    """R-GPL's rows, with the labels of all segments on the first one's scale (`done`)."""

    def remine(step: int, encoder: StudentEncoder, now: bool) -> Examples:
        rows = meeting.in_turn(lambda: remining.rows(step, encoder, now=now))
        return prepare_labels(rows, student, config, done)[0]

    return Segments(remining.every, remining.n_steps, remine, remining.check)


def _write_training(
    directory: Path, wanted: Manifest, fit: training.Fit, counts: dict[str, float], done: dict[str, Any]
) -> None:
    """Write `training.json` and the manifest beside the model, and drop what a resumed training would need."""
    if fit.selected is not None:
        counts |= {"best step": fit.selected.best_step, f"dev {fit.selected.metric}": fit.selected.best_score}
        done["selection"] = dataclasses.asdict(fit.selected)
    write_json(directory / "training.json", {**done, "precision": fit.precision, "losses": fit.losses})
    model = (path for path in (directory / "model").rglob("*") if path.is_file())
    files = sorted(path.relative_to(directory).as_posix() for path in model)
    wanted.with_counts(counts).with_files(directory, [*files, "training.json"]).write(directory)
    for temporary in ("checkpoints", DOCUMENTS):
        shutil.rmtree(directory / temporary, ignore_errors=True)


def prepare_labels(
    examples: Examples, student: Any, config: TrainConfig, like: dict[str, Any] | None = None
) -> tuple[Examples, dict[str, Any]]:
    """Bring margins to the student's scale, look at both ranges and warn when they do not fit.

    Args:
        examples: The training rows.
        student: The student before training.
        config: Settings of the step.
        like: What was done to other rows of the same training: the same is done to these, without a look at the
            student, which may be another one by now. A teacher's units must not change in the middle of a training.

    Returns:
        The examples with the labels to train on, and what was done, for `training.json`.
    """
    if examples.margins is None or training_rows.loss_name(config, examples) != MARGIN_MSE:
        return examples, {}
    bounded = config.similarity == "cosine" or students.normalizes(student)
    before = None if like is None else like["rescaling"]["before"]
    own = (
        rescale.spread(students.margins(student, examples, config.similarity, _SAMPLE_ROWS))
        if like is None
        else like["student_margins_before"]
    )
    if config.rescale_range:
        labels, done = rescale.scale_to_range(examples.margins, *config.rescale_range, like=before)
    elif config.rescale == "auto" and bounded:
        mean = config.label_mean or rescale.students_mean(own)
        labels, done = rescale.scale_to_mean(examples.margins, mean, clip=config.label_clip, like=before)
    else:
        labels, done = rescale.keep(examples.margins)
    warning = rescale.misfit(done.after, own, bounded=bounded) if like is None else None
    if warning:
        logger.warning("%s", warning)
    report = {"rescaling": dataclasses.asdict(done), "student_margins_before": own, "warning": warning}
    return dataclasses.replace(examples, margins=labels), report
