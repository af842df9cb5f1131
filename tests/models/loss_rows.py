"""Rows and settings that the tests of losses share."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny

from gplfast.config import TrainConfig
from gplfast.models.training_rows import Examples

pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

N = 5


BASE = TrainConfig(similarity="cosine", max_seq_length=16, precision="fp32", batch_size=N, mini_batch_size=2)


def rows_of(world, n_negatives, n=N, **more):
    """n rows over 12 queries and 40 passages; positives and negatives of a row, and of the first rows, differ."""
    draw = np.random.default_rng(4)
    passages, queries = tiny.texts(40, seed=2), tiny.texts(12, seed=1)
    negatives = margins = None
    if n_negatives:
        negatives = (20 + np.arange(n * n_negatives) % 20).reshape((n, n_negatives) if n_negatives > 1 else n)
        margins = draw.standard_normal(negatives.shape).astype(np.float32)
    return Examples(
        queries.__getitem__,
        passages.__getitem__,
        np.arange(n) % 12,
        np.arange(n) % 20,
        negatives,
        margins,
        guide=world.teacher.parent / "student",
        **more,
    )


def with_(**changes):
    return dataclasses.replace(BASE, **changes)
