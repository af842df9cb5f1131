"""Small trainings by every loss, in one process or in those that torchrun starts; `test_ranks.py` compares them.

python tests/stages/trainings.py STUDENT FOLDER          all of them
python tests/stages/trainings.py STUDENT FOLDER mnrl 5   one, which ends with an error after step 5
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tiny

from gplfast.config import TrainConfig
from gplfast.models.checkpoint import fingerprint
from gplfast.models.selection import DevSet
from gplfast.models.training_rows import Examples
from gplfast.stages import train

CONFIG = TrainConfig(
    similarity="cosine",
    steps=6,
    batch_size=8,
    checkpoint_steps=4,
    warmup_steps=2,
    max_seq_length=16,
    precision="fp32",
    learning_rate=1e-3,
)
CASES = {
    "margin-mse": {},
    "kl": {"loss": "kl", "negatives_per_row": 2},
    "mnrl": {"loss": "mnrl"},
    "mnrl, without negatives": {"loss": "mnrl"},
    "mnrl, some epochs": {"loss": "mnrl", "steps": 8},
    "mnrl, in-batch hard": {"loss": "mnrl", "in_batch_hard": 2},
    "cached-mnrl": {"loss": "cached-mnrl", "mini_batch_size": 2},
    "triplet, in-batch hard": {"loss": "triplet", "in_batch_hard": 3},
    "gist": {"loss": "gist"},
    "cached-gist": {"loss": "cached-gist", "mini_batch_size": 2},
    "adore": {"loss": "adore", "search_top": 10},
    "the best step": {"dev_share": 0.2, "select_every": 2},
}


def rows(name: str, student: Path) -> Examples:
    """Rows whose passages repeat, so that some cannot be in one batch."""
    draw, n = np.random.default_rng(0), 120
    queries, passages = tiny.texts(30, seed=1), tiny.texts(50, seed=2)
    asked = draw.integers(0, 30, n)
    shape = (n, 2) if CASES[name].get("negatives_per_row") == 2 else n
    found = Examples(
        queries.__getitem__,
        passages.__getitem__,
        asked,
        asked,
        draw.integers(30, 50, shape),
        draw.standard_normal(shape).astype(np.float32),
        query_groups=np.arange(30),
        passage_groups=np.arange(50),
        guide=student,
    )
    if name == "mnrl, some epochs":  # of three steps; rarely are all three batches full
        few = np.arange(24) % 12
        found = dataclasses.replace(found, queries=few, positives=few)
    elif name not in {"mnrl, without negatives", "adore"}:
        return found
    sources = np.arange(30) + 20  # known, so that one process too shuffles by `_shuffled_apart`
    return dataclasses.replace(found, negatives=None, margins=None, source_groups=sources)


def run(name: str, student: Path, folder: Path, stop: int = 0) -> Path:
    """Train one student; its directory."""

    def report(what: str, done: int, total: int) -> None:
        if done == stop:
            raise RuntimeError(f"stopped after step {done}")

    config = dataclasses.replace(CONFIG, **CASES[name])
    found = rows(name, student)
    dev = DevSet(tiny.texts(8, seed=1), tiny.texts(50, seed=2), np.arange(8)) if config.dev_share else None
    wanted = train.manifest({"rows": name}, fingerprint(student), config, config.chosen_loss("margin-mse"), 0)
    vectors = np.random.default_rng(1).standard_normal((50, 48)).astype(np.float32)
    options = {"seed": 0, "threads": 1, "dev": lambda: dev, "report": report, "documents": lambda _: vectors}
    return train.train(lambda: found, student, folder / name, wanted, config, **options)


if __name__ == "__main__":
    model, where, *one = sys.argv[1:]
    if one:
        run(one[0], Path(model), Path(where), stop=int(one[1]))
    else:
        for case in CASES:
            run(case, Path(model), Path(where))
