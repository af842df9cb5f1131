"""One score of several teachers: the mean, each teacher brought to the spread of the first one's margins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gplfast.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

Float32 = npt.NDArray[np.float32]
# Six digits, so that the last bits of a score cannot change every label.
_DIGITS = 6


def teacher_models(fingerprints: Sequence[str]) -> dict[str, str]:
    """Names of the teachers in a manifest ("teacher", "teacher 2", …) to their fingerprints."""
    names = ["teacher", *(f"teacher {place}" for place in range(2, len(fingerprints) + 1))]
    return dict(zip(names, fingerprints, strict=True))


def factors(margins: Sequence[Float32]) -> list[float]:
    """What each teacher's scores are multiplied by: the first one's mean |margin| over its own.

    Logits of two cross-encoders may differ tenfold in spread; averaged as they are the wider one decides alone. Where
    a scale lies does not matter, as a margin is a difference.

    Args:
        margins: Of each teacher the margins of the same rows, float32; NaN where a teacher gives none.

    Returns:
        One factor per teacher, the first 1.

    Raises:
        ModelError: A teacher gives all passages the same score.
    """
    spreads = [float(np.mean(np.abs(part[np.isfinite(part)]), dtype=np.float64)) for part in margins]
    for place, spread in enumerate(spreads):
        if not spread > 0:
            raise ModelError(
                f"cannot average: teacher {place + 1} of {len(spreads)} has a mean |margin| of {spread} on the sample, "
                'so it tells no passages apart; leave it out, or use average = "raw"'
            )
    return [float(f"{spreads[0] / spread:.{_DIGITS}g}") for spread in spreads]


def average(scores: Sequence[Float32], weights: Sequence[float]) -> Float32:
    """The mean of the teachers' scores, each times its factor.

    Args:
        scores: Of each teacher float32 (n_pairs,).
        weights: Of each teacher its factor.

    Returns:
        float32 (n_pairs,), NaN where any teacher gives NaN.
    """
    total = sum(part.astype(np.float64) * weight for part, weight in zip(scores, weights, strict=True))
    return np.asarray(total / len(scores), np.float32)
