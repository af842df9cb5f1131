"""Bringing a teacher's margins to the scale of a student's similarity.

Raw logits of a cross-encoder differ by about 10, a cosine by less than one. MarginMSE against labels on the wrong scale
ruins a student: on scifact .424 fell to .210 nDCG@10 with raw labels and rose to .489 with scaled ones. The right scale
is the student's own: on CACM, titles as queries, .367 rose to .380 with labels of half of its mean margin, to .400
with labels of its mean and to .383 with labels of 1.5 times that.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

# Labels this many times wider or narrower than the student's margins are worth a warning. A trained student on MS MARCO
# logits is within a factor of 5; raw logits against a cosine are 50 to 100 times wider.
MISFIT_RATIO = 12.0
# In cosine units; a student that cannot tell positives from negatives has margins near 0.
SMALLEST_MEAN = 0.1


@dataclasses.dataclass(frozen=True)
class Rescaling:
    """What was done to the margins, and their range before and after."""

    method: str
    n_clipped: int
    before: dict[str, float]
    after: dict[str, float]


def spread(margins: Float32) -> dict[str, float]:
    """Minimum, maximum and mean |margin|; all 0 when there are none."""
    if not len(margins):
        return {"min": 0.0, "max": 0.0, "mean_abs": 0.0}
    mean_abs = float(np.abs(margins).mean(dtype=np.float64))
    return {"min": float(margins.min()), "max": float(margins.max()), "mean_abs": mean_abs}


def scale_to_mean(
    margins: Float32, mean: float, *, clip: float, like: dict[str, float] | None = None
) -> tuple[Float32, Rescaling]:
    """Scale margins so that their mean absolute value is `mean`, then clip at `clip` times that; signs are kept.

    With `like`, the `spread` of other margins, by the factor that brings those to the mean.
    """
    before = spread(margins)
    like = before if like is None else like
    factor = mean / like["mean_abs"] if like["mean_abs"] > 0 else 1.0
    scaled = (margins.astype(np.float64) * factor).astype(np.float32)
    limit = np.float32(clip * mean)
    clipped = np.clip(scaled, -limit, limit)
    n_clipped = int(np.count_nonzero(clipped != scaled))
    return clipped, Rescaling(f"x {factor:.6g}, clipped at {limit:.4g}", n_clipped, before, spread(clipped))


def students_mean(own: dict[str, float]) -> float:
    """The mean |margin| to scale labels to, from `spread` of the student's own margins.

    Two digits, so that the last bits of an encoder cannot change the labels; never so small that nothing is taught.
    """
    return max(SMALLEST_MEAN, round(own["mean_abs"], 2))


def scale_to_range(
    margins: Float32, low: float, high: float, *, like: dict[str, float] | None = None
) -> tuple[Float32, Rescaling]:
    """GPL's `rescale_range`: [0, max] onto [0, high] and [min, 0] onto [low, 0], each linearly, signs kept.

    With `like`, the `spread` of other margins, as those would be.
    """
    before = spread(margins)
    like = before if like is None else like
    up = high / like["max"] if like["max"] > 0 else 0.0
    down = low / like["min"] if like["min"] < 0 else 0.0
    wide = margins.astype(np.float64)
    scaled = np.where(wide > 0, wide * up, wide * down).astype(np.float32)
    return scaled, Rescaling(f"onto [{low:g}, {high:g}]", 0, before, spread(scaled))


def keep(margins: Float32) -> tuple[Float32, Rescaling]:
    """The margins as they are."""
    return margins, Rescaling("none", 0, spread(margins), spread(margins))


def misfit(labels: dict[str, float], student: dict[str, float], *, bounded: bool) -> str | None:
    """Say in words that labels and the student's own margins are on different scales, or None when they fit.

    Args:
        labels: `spread` of the labels to train on.
        student: `spread` of the student's margins on the same rows before training.
        bounded: Whether the student's similarity lies in [-1, 1].
    """
    largest = max(abs(labels["min"]), abs(labels["max"]))
    if bounded and largest > 2.0:
        return (
            f"labels reach {largest:.3g} but the margin of two cosines is at most 2 (the student's mean is "
            f'{student["mean_abs"]:.3g}); use rescale = "auto" or give rescale_range'
        )
    if student["mean_abs"] <= 0 or labels["mean_abs"] <= 0:
        return None
    ratio = labels["mean_abs"] / student["mean_abs"]
    if 1 / MISFIT_RATIO <= ratio <= MISFIT_RATIO:
        return None
    return (
        f"labels have a mean |margin| of {labels['mean_abs']:.3g} but the student's is {student['mean_abs']:.3g}, "
        f"{ratio:.3g} times apart; training may do harm; give rescale_range near the student's "
        f"[{student['min']:.3g}, {student['max']:.3g}]"
    )
