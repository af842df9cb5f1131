"""The student in training as an encoder: its embeddings in the middle of a training that they leave as it is."""

from __future__ import annotations

import contextlib
import hashlib
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gplfast.models import student as students

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gplfast.config import TrainConfig

# Batches per call of sentence-transformers: between calls progress is seen, and a run in a thread can be stopped.
_CALL_BATCHES = 8


class StudentEncoder:
    """A student's embeddings as they are now, by torch in evaluation mode, in the precision that it is trained in.

    No random number is drawn and every module gets its mode back, so a training goes on to the same bits as without.

    Attributes:
        seconds: How long `encode` took so far.
    """

    def __init__(self, student: Any, config: TrainConfig, precision: str) -> None:
        """Nothing is computed yet.

        Args:
            student: The model; its weights may change between two objects of this class, not while one is used.
            config: Its settings.
            precision: "fp32" or "bf16", see `resolve_precision`.
        """
        self._student, self._config, self._precision = student, config, precision
        self._frozen = False
        self._fingerprint = ""
        self.seconds = 0.0

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of weights, precision, longest text and prompts, as they were when first asked for."""
        if not self._fingerprint:
            prompts = [students.prompt(self._student, kind) for kind in ("query", "document")]
            digest = hashlib.sha256(repr((self._precision, self._student.max_seq_length, prompts)).encode())
            for name, tensor in sorted(self._student.state_dict().items()):
                digest.update(name.encode() + b"\0")
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    @property
    def device(self) -> str:
        """Type of the device that it computes on, "cpu" or another of torch's."""
        return str(self._student.device.type)

    @property
    def dim(self) -> int:
        """Columns of the embeddings."""
        return int(self._student.get_embedding_dimension())

    def encode(
        self,
        texts: Sequence[str],
        *,
        kind: Literal["query", "document"] = "document",
        batch_size: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embed texts, long ones first, each batch of about equal lengths.

        Args:
            texts: n texts, cut to the student's longest.
            kind: Whose prompt goes before each text.
            batch_size: Texts at a time.
            progress: Called with (done, n).

        Returns:
            float32 (n, dim), in input order; a function of the weights, the texts and the batch size.
        """
        start = time.perf_counter()
        order = np.argsort([-len(text) for text in texts], kind="stable")
        values = np.empty((len(texts), self.dim), np.float32)
        prompt = students.prompt(self._student, kind)
        with _modes_kept(self._student), self._computing():
            for first in range(0, len(texts), _CALL_BATCHES * batch_size):
                rows = order[first : first + _CALL_BATCHES * batch_size]
                values[rows] = self._student.encode(
                    [texts[row] for row in rows], prompt=prompt, batch_size=batch_size, show_progress_bar=False
                )
                if progress is not None:
                    progress(first + len(rows), len(texts))
        self.seconds += time.perf_counter() - start
        return values

    def save(self, path: Path) -> None:
        """Write the student as it is now, a sentence-transformers directory."""
        path.parent.mkdir(parents=True, exist_ok=True)
        students.save(self._student, path)

    def frozen(self, path: Path) -> StudentEncoder:
        """The student that was saved: a copy of its own, to be used beside training in another thread.

        The trainer wraps the student's forward, so a copy in memory would compute with the weights in training.
        """
        import torch

        # Opening a model may draw random numbers for weights that are then read from the file.
        with torch.random.fork_rng():
            copy = students.open_student(path, self._config).eval().requires_grad_(requires_grad=False)
        copy.max_seq_length = self._student.max_seq_length
        encoder = StudentEncoder(copy, self._config, self._precision)
        encoder._frozen = True
        return encoder

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        import torch

        device = self._student.device.type
        if self._precision != "bf16":
            yield
        elif not self._frozen:
            with torch.autocast(device, torch.bfloat16):
                yield
        else:
            # Leaving torch.autocast drops the casted weights of every thread: the training's would be cast twice, and
            # their gradients summed in another order. A frozen copy has no weights to keep casted.
            before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
            torch.set_autocast_dtype(device, torch.bfloat16)
            torch.set_autocast_enabled(device, True)
            try:
                yield
            finally:
                torch.set_autocast_enabled(device, before[0])
                torch.set_autocast_dtype(device, before[1])


@contextlib.contextmanager
def _modes_kept(student: Any) -> Iterator[None]:
    """`encode` puts the model into evaluation mode; every module gets its own mode back."""
    before = [(module, module.training) for module in student.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
