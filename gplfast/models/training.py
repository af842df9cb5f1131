"""Training of the student: sentence-transformers' trainer, its arguments, and checkpoints to go on from.

Checkpoints carry optimizer, schedule, sampler and random state; only one that was written whole, for the same manifest,
is gone on from.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gplfast import ranks
from gplfast.errors import ArtifactError
from gplfast.models import meeting, segments, training_rows
from gplfast.models.selection import DevSet, Selected, Selector
from gplfast.models.student import device, resolve_precision
from gplfast.models.student_encoder import StudentEncoder
from gplfast.store.atomic import read_json, write_json

if TYPE_CHECKING:
    from gplfast.config import TrainConfig
    from gplfast.models.segments import Segments
    from gplfast.models.training_rows import Examples


logger = logging.getLogger(__name__)

_MARK = "gplfast.json"
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a training run did."""

    n_steps: int
    precision: str
    losses: list[dict[str, float]]
    selected: Selected | None = None


def fit(
    student: Any,
    examples: Examples,
    checkpoints: Path,
    key: str,
    config: TrainConfig,
    *,
    n_steps: int,
    seed: int,
    progress: Progress | None = None,
    dev: DevSet | None = None,
    threads: int = 0,
    remining: Segments | None = None,
) -> Fit:
    """Train in place, going on from the newest whole checkpoint of the same key and precision.

    With `dev` the student ends up as it was at the step that is best on it, otherwise as it was at the last one.
    With `remining` rows come from there, one segment of steps after the other; `examples` are those of the first one.

    The loss is the configuration's, by default MarginMSE for rows with margins and MultipleNegativesRanking for others.
    Rows with negatives are taken in file order, and where the batch's passages are negatives of each other so that none
    is another row's positive; others are shuffled per epoch, no passage (by text) twice in a batch.

    Raises:
        UnavailableError: bf16 was asked for and the device does not have it.
    """
    precision = resolve_precision(config.precision)
    mark = {"key": key, "precision": precision}
    whole = meeting.in_turn(lambda: _usable_checkpoints(checkpoints, mark))
    selector = None
    if dev is not None:
        selector = Selector(student, dev, checkpoints, mark, config, n_steps=n_steps, threads=threads)
    parts = (
        _whole_rows(student, config, examples)
        if remining is None
        else _segment_rows(student, config, precision, remining)
    )
    trainer = parts.trainer(
        model=student,
        args=_arguments(checkpoints, config, examples, parts.sampler, n_steps=n_steps, seed=seed, precision=precision),
        train_dataset=parts.dataset,
        loss=training_rows.loss(student, config, examples),
        data_collator=parts.collator,
        callbacks=[*([selector.callback()] if selector else []), *parts.callbacks, _callback(mark, progress)],
    )
    for shown in ("ProgressCallback", "PrinterCallback"):
        for callback in [item for item in trainer.callback_handler.callbacks if type(item).__name__ == shown]:
            trainer.remove_callback(callback)
    trainer.train(resume_from_checkpoint=str(whole[-1]) if whole else None)
    losses = [{"step": row["step"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row]
    return Fit(int(trainer.state.global_step), precision, losses, selector.finish() if selector else None)


class _Rows(NamedTuple):
    """How rows come to the trainer."""

    trainer: Any
    dataset: Any
    collator: Any
    sampler: Any
    callbacks: list[Any]


def _whole_rows(student: Any, config: TrainConfig, examples: Examples) -> _Rows:
    collator, sampler = training_rows.collator(student, examples), training_rows.batch_sampler(examples, config)
    return _Rows(_trainer_class(), training_rows.dataset(examples, config), collator, sampler, [])


def _segment_rows(student: Any, config: TrainConfig, precision: str, found: Segments) -> _Rows:
    rows = segments.SegmentRows(found, config, lambda part: training_rows.collator(student, part))
    callback = segments.callback(rows, found, lambda: StudentEncoder(student, config, precision))
    data = segments.dataset(found.n_steps * config.batch_size)
    trainer, collator = segments.trainer_class(_trainer_class(), rows), segments.RowNumbers()
    return _Rows(trainer, data, collator, training_rows.file_order, [callback])


def _arguments(
    directory: Path, config: TrainConfig, examples: Examples, sampler: Any, *, n_steps: int, seed: int, precision: str
) -> Any:
    from sentence_transformers import SentenceTransformerTrainingArguments

    class Arguments(SentenceTransformerTrainingArguments):  # type: ignore[misc, unused-ignore]
        @property
        def n_gpu(self) -> int:
            """One: of several that it sees a process would otherwise train on all, with as many times the batch."""
            return 1

    on_gpu = device() == "cuda"
    if not on_gpu:
        ranks.check_alone()
    return Arguments(
        output_dir=str(directory),
        max_steps=n_steps,
        per_device_train_batch_size=ranks.share(config.batch_size),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.n_warmup(n_steps),
        lr_scheduler_type="linear",
        optim="adamw_torch",
        max_grad_norm=config.max_grad_norm,
        batch_sampler=sampler,
        # A last batch that is not full would have fewer negatives in GenQ; with less than one batch it is all there is.
        dataloader_drop_last=len(examples.queries) >= config.batch_size,
        dataloader_pin_memory=on_gpu,
        seed=seed % 2**32,
        bf16=precision == "bf16",
        use_cpu=not on_gpu,
        save_strategy="steps",
        save_steps=min(config.checkpoint_steps, n_steps),
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=max(1, n_steps // 50),
        report_to="none",
        disable_tqdm=True,
    )


def _callback(mark: dict[str, str], progress: Progress | None) -> Any:
    from transformers import TrainerCallback

    class Marker(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Marks a checkpoint as whole, after everything else of it was written, and reports progress."""

        def on_epoch_begin(self, args: Any, state: Any, *_: Any, train_dataloader: Any = None, **__: Any) -> None:  # noqa: ARG002
            """Tell the sampler of several processes its epoch: going on within one, the trainer does not reach it."""
            if ranks.world_size() > 1:
                sampler = train_dataloader.batch_sampler.batch_sampler
                sampler.set_epoch(int(state.global_step) // len(train_dataloader))

        def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            meeting.meet()  # each process has a file of its own in it
            if ranks.first():
                write_json(path / _MARK, {**mark, "step": int(state.global_step)})

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002
            if progress is not None:
                progress(int(state.global_step), int(state.max_steps))

    return Marker()


def _trainer_class() -> Any:
    from sentence_transformers import SentenceTransformerTrainer

    class Trainer(SentenceTransformerTrainer):  # type: ignore[misc, unused-ignore]
        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """None: a model card would record dates and sample the row numbers as if they were texts."""

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
            self.model.save_pretrained(str(output_dir or self.args.output_dir), create_model_card=False)

    return Trainer


def _usable_checkpoints(directory: Path, mark: dict[str, str]) -> list[Path]:
    """Whole checkpoints with this mark, oldest first; others are deleted."""
    usable = []
    for path in sorted(directory.glob("checkpoint-*"), key=lambda item: int(item.name.rpartition("-")[2])):
        try:
            whole = mark.items() <= read_json(path / _MARK).items()
        except (FileNotFoundError, ArtifactError):
            whole = False
        if whole:
            usable.append(path)
        else:
            logger.info("%s: dropped, not whole or made with other settings", path)
            shutil.rmtree(path)
    return usable
