"""The student in training as it will be served: its embeddings by the runtime that retrievers run on.

On a processor that is faster than torch, and a refresh of R-GPL is mostly embedding (docs/rgpl.md has the figures).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from gplfast.models.bi_encoder import BiEncoder


class Saved(Protocol):
    """The student in training (`gplfast.models.student_encoder.StudentEncoder` is one)."""

    seconds: float

    @property
    def fingerprint(self) -> str:
        """Of its weights and what else its embeddings depend on."""

    def save(self, path: Path) -> None:
        """Write it as it is now."""


class ServedStudent:
    """A student's embeddings as they are when it is saved."""

    def __init__(self, student: Saved, folder: Path, open_encoder: Callable[[Path, Path], BiEncoder]) -> None:
        """Save the student and open what serves it.

        Args:
            student: The student in training; the time of `encode`, and of this, is counted as its own.
            folder: Where it is saved, and its graphs; the caller removes it.
            open_encoder: Opens a checkpoint: (its directory, a directory for its graphs).
        """
        start = time.perf_counter()
        student.save(folder / "model")
        self._student, self._encoder = student, open_encoder(folder / "model", folder / "graphs")
        # Not of the saved files: the tokenizer's hold what it was last called with.
        self.fingerprint = f"{student.fingerprint} {self._encoder.choice.runtime}"
        self.dim = self._encoder.dim
        student.seconds += time.perf_counter() - start

    def encode(
        self,
        texts: Sequence[str],
        *,
        kind: Literal["query", "document"] = "document",
        batch_size: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embed texts, float32 (n, dim), see `BiEncoder.encode`."""
        start = time.perf_counter()
        values = self._encoder.encode(texts, kind=kind, batch_size=batch_size, progress=progress)
        self._student.seconds += time.perf_counter() - start
        return values
