"""R-GPL on tiny random models: rows that change while training goes on, and kills inside and between refreshes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny

from gplfast.config import load_config
from gplfast.pipeline import Pipeline

pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("cache")]

TRAIN = {"steps": 12, "batch_size": 4, "checkpoint_steps": 5, "max_seq_length": 16, "learning_rate": 1e-3}


def settings(world, refresh=None, **train):
    return world.settings(
        students=["rgpl"],
        train={**TRAIN, **train},
        refresh={"every": 4, "negatives_per_query": 6, **(refresh or {})},
    )


def pipeline(world, work, **options):
    return Pipeline(world.corpus, work, load_config(overrides=settings(world, **options)))


def run(world, work, **options):
    made = pipeline(world, work, **options)
    with made.work:
        made.run()
    return work / "train" / "rgpl"


def files(root, *names):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for name in names
        for path in sorted((root / name).rglob("*"))
        if path.is_file() and path.suffix in (".parquet", ".safetensors")
    }


def test_a_run(world, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="gplfast"):
        root = run(world, tmp_path)
    print(caplog.text)
    print((root / "refreshes.json").read_text())
    print(sorted(str(p.relative_to(root)) for p in root.rglob("*")))
    assert 0
