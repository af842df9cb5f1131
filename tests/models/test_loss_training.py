"""Every loss in the real trainer: a few steps lower it, a stopped run goes on, batches hold no false negatives."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from models.loss_rows import BASE, rows_of, with_

from gplfast.errors import UnavailableError
from gplfast.stages import train

pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")
from gplfast.models import student as students  # noqa: E402
from gplfast.models import training_rows  # noqa: E402
from gplfast.models.checkpoint import fingerprint  # noqa: E402

# Every loss, on rows with negatives and, where it works without, on rows of GenQ.
TRAINED = [
    ("margin-mse", 1, {}),
    ("margin-mse", 3, {}),
    ("kl", 3, {}),
    ("mnrl", 2, {}),
    ("mnrl", 0, {"in_batch_hard": 2}),
    ("cached-mnrl", 1, {}),
    ("triplet", 2, {}),
    ("triplet", 0, {"in_batch_hard": 2}),
    ("gist", 1, {}),
    ("cached-gist", 2, {}),
]


def training(world, folder, loss, n_negatives, more, **changes):
    config = with_(
        loss=loss, steps=24, batch_size=8, learning_rate=1e-3, warmup_steps=1, checkpoint_steps=10, **more, **changes
    )
    rows = rows_of(world, n_negatives, n=8)
    if n_negatives:  # every step sees the same eight rows; those of GenQ come again in each epoch
        taken = {name: getattr(rows, name) for name in ("queries", "positives", "negatives", "margins")}
        rows = dataclasses.replace(rows, **{name: np.concatenate([part] * 24) for name, part in taken.items()})
    wanted = train.manifest({}, fingerprint(world.student), config, loss, 0)
    path = train.train(lambda: rows, world.student, folder, wanted, config, seed=0, threads=1)
    return path, json.loads((folder / "training.json").read_text())


def first_and_last(report):
    """Mean loss of the first and of the last six steps, which all see the same eight rows, with dropout."""
    values = [step["loss"] for step in report["losses"]]
    assert len(values) == 24
    return np.mean(values[:6]), np.mean(values[-6:])


@pytest.mark.parametrize(("loss", "n_negatives", "more"), TRAINED)
def test_training_lowers_the_loss(tmp_path, world, loss, n_negatives, more):
    _, report = training(world, tmp_path, loss, n_negatives, more)
    first, last = first_and_last(report)
    assert last < 0.8 * first, report


@pytest.mark.parametrize(("loss", "n_negatives"), [("kl", 2), ("cached-mnrl", 2), ("cached-gist", 2)])
def test_training_in_bf16_works(tmp_path, world, loss, n_negatives):
    try:
        students.resolve_precision("bf16")
    except UnavailableError as error:
        pytest.skip(str(error))
    _, report = training(world, tmp_path, loss, n_negatives, {}, precision="bf16")
    assert report["precision"] == "bf16"
    first, last = first_and_last(report)
    assert last < 0.8 * first, report


@pytest.mark.parametrize(("loss", "n_negatives"), [("cached-mnrl", 2), ("gist", 1)])
def test_a_stopped_run_of_in_batch_negatives_ends_with_the_same_bytes(tmp_path, world, monkeypatch, loss, n_negatives):
    from gplfast.models import training as module

    whole, _ = training(world, tmp_path / "a", loss, n_negatives, {})
    real = module._callback

    def stopping(mark, progress):
        callback = real(mark, progress)

        def stop(args, state, *rest, **more):
            if state.global_step == 13:
                raise KeyboardInterrupt

        callback.on_step_end = stop
        return callback

    with monkeypatch.context() as patch:
        patch.setattr(module, "_callback", stopping)
        with pytest.raises(KeyboardInterrupt):
            training(world, tmp_path / "b", loss, n_negatives, {})
    assert [path.name for path in (tmp_path / "b" / "checkpoints").iterdir()] == ["checkpoint-10"]
    resumed, _ = training(world, tmp_path / "b", loss, n_negatives, {})
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def test_batches_whose_passages_are_negatives_hold_no_rows_positive_twice():
    draw = np.random.default_rng(0)
    n, size = 400, 16
    queries, positives, negatives = draw.integers(0, 60, n), draw.integers(0, 40, n), draw.integers(0, 40, (n, 2))
    batches = list(training_rows.apart(queries, positives, negatives, size))
    assert sorted(row for batch in batches for row in batch) == list(range(n))
    assert max(map(len, batches)) <= size
    for batch in batches:
        assert len(set(queries[batch])) == len(batch)
        assert len(set(positives[batch])) == len(batch)
        for row in batch:
            others = [other for other in batch if other != row]
            assert positives[row] not in negatives[others]
    unique = list(training_rows.apart(np.arange(40), np.arange(40), np.full((40, 1), 99), 16))
    assert unique == [list(range(16)), list(range(16, 32)), list(range(32, 40))]


def test_no_batch_holds_the_passage_that_a_query_was_cut_from():
    draw = np.random.default_rng(0)
    n, size = 400, 16
    queries, positives, negatives = np.arange(n), draw.integers(0, 60, n), draw.integers(0, 60, (n, 2))
    sources = draw.integers(0, 60, n)
    batches = list(training_rows.apart(queries, positives, negatives, size, sources))
    assert sorted(row for batch in batches for row in batch) == list(range(n))
    for batch in batches:
        for row in batch:
            others = [other for other in batch if other != row]
            assert not {positives[row], sources[row]} & {*positives[others], *negatives[others].ravel()}


def test_a_segment_of_rgpl_is_batched_in_the_same_way(world):
    """Its rows are taken by their numbers in the whole training, steps of a batch each."""
    from gplfast.models.segments import SegmentRows, Segments

    config, n = with_(loss="mnrl", batch_size=4), 12
    rows = dataclasses.replace(rows_of(world, 1, n=n), positives=np.arange(n) // 3)
    taken = []

    def collators(_):
        return lambda features: taken.append([row["query"] for row in features])

    part = SegmentRows(Segments(3, 6, lambda *_: rows), config, collators)
    part.begin(3, lambda: None)
    for first in (12, 16, 20):
        part.batch(list(range(first, first + 4)))
    assert taken == training_rows.batches(rows, config)[:3] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_equal_texts_count_as_one_passage(world):
    rows = dataclasses.replace(
        rows_of(world, 1),
        passage_groups=np.where(np.arange(40) == 1, 0, np.arange(40)),  # passages 0 and 1 say the same
    )
    config = with_(loss="mnrl", batch_size=4)
    sampler = training_rows.batch_sampler(rows, config)(training_rows.dataset(rows, config), 4, False)
    assert list(sampler) == [[0, 2, 3, 4], [1]]
    assert len(sampler) == 2
    assert training_rows.batch_sampler(rows, BASE) is training_rows.file_order
