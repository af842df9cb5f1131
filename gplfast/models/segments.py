"""Training on rows that become known segment by segment: what R-GPL's trainer needs besides GPL's.

The trainer's data are the numbers of all rows. Texts are looked up when a step begins to compute and not by the data
loader, which fetches a batch ahead: the first batch of a segment would have been made before its rows were known.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast import ranks
from gplfast.models import training_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from gplfast.config import TrainConfig
    from gplfast.models.student_encoder import StudentEncoder
    from gplfast.models.training_rows import Examples

ROW = "row"


@dataclasses.dataclass(frozen=True)
class Segments:
    """How a training gets its rows.

    Attributes:
        every: Steps of a segment; the last one may have fewer.
        n_steps: Of the whole training.
        remine: Gives the rows of the segment that begins at a step: at least one. Called with that step, the student,
            and whether training stands at that step; otherwise (going on after a kill) the student is a later one, and
            the rows were made before.
        check: Called before every step: raises what ended the work beside training, if an error did.
    """

    every: int
    n_steps: int
    remine: Callable[[int, StudentEncoder, bool], Examples]
    check: Callable[[], None] = lambda: None


class SegmentRows:
    """The rows of the segment that is trained on."""

    def __init__(self, segments: Segments, config: TrainConfig, collators: Callable[[Examples], Any]) -> None:
        """No rows yet.

        Args:
            segments: How to get them.
            config: Rows of a step, and the loss.
            collators: Gives what makes batches of rows of some examples, see `training_rows.collator`.
        """
        self._segments, self._config, self._collators = segments, config, collators
        self._first_step = -1
        self._data: Any = None
        self._batches: list[list[int]] = []
        self._collator: Any = None

    def begin(self, step: int, encoder: Callable[[], StudentEncoder]) -> None:
        """Get the rows of the segment of this step, unless they are here."""
        first = step // self._segments.every * self._segments.every
        if first == self._first_step:
            return
        examples = self._segments.remine(first, encoder(), step == first)
        self._data, self._collator = training_rows.dataset(examples, self._config), self._collators(examples)
        self._batches = training_rows.batches(examples, self._config)
        self._first_step = first

    def batch(self, rows: list[int]) -> dict[str, Any]:
        """The tokens of some rows, by their numbers in the whole training.

        A segment with fewer rows than its steps take (rows without a teacher's score were dropped) begins again.
        """
        first = self._first_step * self._config.batch_size
        taken = [(row - first) % len(self._data) for row in rows]
        if self._batches:
            taken = self._batches[(rows[0] - first) // ranks.share(self._config.batch_size) % len(self._batches)]
        made: dict[str, Any] = self._collator([self._data[row] for row in taken])
        return made


def dataset(n_rows: int) -> Any:
    """The numbers of all rows, as the trainer's data."""
    from datasets import Dataset

    return Dataset.from_dict({ROW: np.arange(n_rows)})


class RowNumbers:
    """A collator that keeps the numbers of rows as they are."""

    valid_label_columns = ("label",)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """A tensor of row numbers."""
        import torch

        return {ROW: torch.tensor([int(item[ROW]) for item in features])}


def callback(rows: SegmentRows, segments: Segments, encoder: Callable[[], StudentEncoder]) -> Any:
    """What gets the rows of a segment when its first step begins.

    At a segment's end a checkpoint is saved first, so that a kill in the middle of a refresh goes on from there.
    """
    from transformers import TrainerCallback

    class Remining(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002
            segments.check()
            rows.begin(int(state.global_step), encoder)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if state.global_step % segments.every == 0 and state.global_step < segments.n_steps:
                control.should_save = True

    return Remining()


def trainer_class(base: Any, rows: SegmentRows) -> Any:
    """The trainer with the texts of a batch looked up when its step computes."""

    class SegmentTrainer(base):  # type: ignore[misc, unused-ignore]
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
            return super().training_step(model, rows.batch(inputs[ROW].tolist()), *rest, **more)

    return SegmentTrainer
