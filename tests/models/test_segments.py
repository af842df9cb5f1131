"""Rows that become known while training goes on, and the student's embeddings in the middle of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny

from gplfast.config import TrainConfig, load_config
from gplfast.models import training
from gplfast.models.segments import SegmentRows, Segments
from gplfast.models.training_rows import Examples

pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

from gplfast.models import BiEncoder  # noqa: E402
from gplfast.models import student as students  # noqa: E402
from gplfast.models.served_student import ServedStudent  # noqa: E402
from gplfast.models.student_encoder import StudentEncoder  # noqa: E402
from gplfast.serving import Serving  # noqa: E402

CONFIG = TrainConfig(
    similarity="cosine", steps=8, batch_size=4, checkpoint_steps=100, warmup_steps=2, max_seq_length=16,
    learning_rate=1e-3, precision="fp32",
)  # fmt: skip


def examples(n=32, seed=0):
    draw = np.random.default_rng(seed)
    queries, passages = tiny.texts(12, seed=1), tiny.texts(20, seed=2)
    rows = [draw.integers(*limits, n) for limits in ((0, 12), (0, 10), (10, 20))]
    return Examples(queries.__getitem__, passages.__getitem__, *rows, draw.standard_normal(n).astype(np.float32) / 4)


def part(rows, start, stop):
    arrays = {name: getattr(rows, name)[start:stop] for name in ("queries", "positives", "negatives", "margins")}
    return dataclasses.replace(rows, **arrays)


def fit(folder, world, rows, remine=None, config=CONFIG):
    """The weights after 8 steps; with `remine` in segments of 3, 3 and 2 steps."""
    students.prepare(0, 1)
    student = students.open_student(world.student, config)
    segments = None if remine is None else Segments(3, 8, remine)
    training.fit(student, rows, folder, "key", config, n_steps=8, seed=0, remining=segments)
    return {name: tensor.detach().numpy().copy() for name, tensor in student.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_refreshes_that_change_nothing_give_the_weights_of_a_training_without(tmp_path, world, monkeypatch, precision):
    """Optimizer, schedule, sampler and dropout do not notice that the student embedded texts in between."""
    monkeypatch.setattr(students, "_cpu_flags", lambda: {"avx512_bf16"})
    config = dataclasses.replace(CONFIG, precision=precision)
    rows, asked = examples(), []

    def remine(step, encoder, now):
        asked.append((step, now))
        encoder.encode(tiny.texts(30, seed=9), kind="document", batch_size=4)
        return part(rows, step * 4, (step + 3) * 4)

    whole = fit(tmp_path / "a", world, rows, config=config)
    assert_same(whole, fit(tmp_path / "b", world, part(rows, 0, 12), remine, config))
    assert asked == [(0, True), (3, True), (6, True)]
    other = part(examples(seed=5), 0, 12)
    changed = fit(tmp_path / "c", world, other, lambda step, *_: part(rows, step * 4, step * 4 + 12), config)
    assert_same(whole, changed)  # the first rows come from remine too


def test_the_first_batch_of_a_segment_has_its_new_rows(tmp_path, world, monkeypatch):
    """accelerate's loader fetches one batch ahead: made there, it would hold rows of the list before."""
    lists = {0: examples(12, seed=1), 3: examples(12, seed=2), 6: examples(8, seed=3)}
    seen, steps = [], []
    real = SegmentRows.batch

    def batch(self, rows):
        made = real(self, rows)
        steps.append(len(made["label"]))
        seen.append(made["label"].tolist())
        return made

    monkeypatch.setattr(SegmentRows, "batch", batch)
    fit(tmp_path, world, lists[0], lambda step, *_: lists[step])
    wanted = np.concatenate([lists[step].margins for step in (0, 3, 6)])
    assert steps == [4] * 8
    np.testing.assert_array_equal(np.concatenate(seen).astype(np.float32), wanted)


def test_a_segment_with_fewer_rows_than_its_steps_begins_again(world):
    students.prepare(0, 1)
    student = students.open_student(world.student, CONFIG)
    rows = SegmentRows(Segments(2, 4, lambda *_: examples(3)), TrainConfig(batch_size=4), _Labels)
    rows.begin(3, lambda: StudentEncoder(student, CONFIG, "fp32"))
    labels = examples(3).margins
    assert rows.batch([8, 9, 10, 11]) == pytest.approx(labels[[0, 1, 2, 0]].tolist())
    assert rows.batch([12, 13, 14, 15]) == pytest.approx(labels[[1, 2, 0, 1]].tolist())


def test_what_ended_the_work_beside_training_ends_training_at_the_next_step(tmp_path, world):
    seen, rows = [], examples()

    def check():
        seen.append(len(seen))
        if len(seen) == 3:
            raise OSError("the disk is full")

    students.prepare(0, 1)
    found = Segments(3, 8, lambda *_: rows, check)
    student = students.open_student(world.student, CONFIG)
    with pytest.raises(OSError, match="the disk is full"):
        training.fit(student, rows, tmp_path, "key", CONFIG, n_steps=8, seed=0, remining=found)
    assert seen == [0, 1, 2]


class _Labels:
    """A collator that shows the labels."""

    def __init__(self, examples):
        self.examples = examples

    def __call__(self, features):
        return [row["label"] for row in features]


# ---- the student as an encoder


@pytest.fixture
def student(world):
    students.prepare(0, 1)
    return students.open_student(world.student, CONFIG)


def test_embeddings_are_the_students_and_leave_it_as_it_is(student):
    import torch

    texts = [*tiny.texts(7), "", tiny.texts(1)[0] * 5]
    student.train()
    student[0].eval()
    modes = [module.training for module in student.modules()]
    state = torch.random.get_rng_state()
    done = []
    encoder = StudentEncoder(student, CONFIG, "fp32")
    found = encoder.encode(texts, batch_size=1, progress=lambda *what: done.append(what))
    assert torch.equal(state, torch.random.get_rng_state())
    assert [module.training for module in student.modules()] == modes
    assert done == [(8, 9), (9, 9)]
    assert encoder.seconds > 0
    assert found.shape == (9, encoder.dim)
    np.testing.assert_allclose(found, student.eval().encode(texts), atol=1e-5)
    np.testing.assert_array_equal(found, encoder.encode(texts, batch_size=1))


def test_prompts_go_before_texts(student):
    student.prompts = {"query": "ask: ", "document": "read: "}
    encoder = StudentEncoder(student, CONFIG, "fp32")
    for kind, prompt in student.prompts.items():
        plain = student.encode([prompt + "some text"], prompt="")
        np.testing.assert_allclose(encoder.encode(["some text"], kind=kind), plain, atol=1e-6)


def test_the_fingerprint_is_of_weights_precision_and_prompts(student):
    import torch

    first = StudentEncoder(student, CONFIG, "fp32").fingerprint
    assert StudentEncoder(student, CONFIG, "fp32").fingerprint == first
    found = {first, StudentEncoder(student, CONFIG, "bf16").fingerprint}
    student.prompts = {"query": "ask: "}
    found.add(StudentEncoder(student, CONFIG, "fp32").fingerprint)
    encoder = StudentEncoder(student, CONFIG, "fp32")
    before = encoder.fingerprint
    with torch.no_grad():
        next(student.parameters()).view(-1)[0] += 1e-3
    assert encoder.fingerprint == before  # of when it was first asked for
    assert StudentEncoder(student, CONFIG, "fp32").fingerprint not in found
    assert len(found) == 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_student_stays_what_it_was(tmp_path, student, precision):
    import torch

    texts = tiny.texts(9)
    encoder = StudentEncoder(student, CONFIG, precision)
    before = encoder.encode(texts)
    encoder.save(tmp_path / "student")
    state = torch.random.get_rng_state()
    frozen = encoder.frozen(tmp_path / "student")
    assert torch.equal(state, torch.random.get_rng_state())
    assert frozen.fingerprint == encoder.fingerprint
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.1)
    np.testing.assert_array_equal(frozen.encode(texts), before)
    assert not torch.is_autocast_enabled("cpu")
    assert not np.array_equal(encoder.encode(texts), before)
    if precision == "bf16":
        assert not np.array_equal(StudentEncoder(frozen._student, CONFIG, "fp32").encode(texts), before)


def test_a_served_student_gives_the_students_embeddings_and_leaves_it_as_it_is(tmp_path, student):
    import torch

    pytest.importorskip("onnxruntime", reason="the extra [cpu] is not installed")
    texts = [*tiny.texts(7), "a longer text " * 20]
    student.train()
    state = torch.random.get_rng_state()
    encoder = StudentEncoder(student, CONFIG, "fp32")

    def open_encoder(path, graphs):
        return BiEncoder.open(path, cache_dir=graphs, provider="cpu", precision="fp32")

    served = ServedStudent(encoder, tmp_path / "served", open_encoder)
    found = served.encode(texts, kind="document")
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in student.modules())
    assert encoder.seconds > 0
    assert {path.name for path in (tmp_path / "served").iterdir()} == {"model", "graphs"}
    assert found.shape == (8, served.dim)
    np.testing.assert_allclose(found, encoder.encode(texts), atol=1e-5)
    again = ServedStudent(encoder, tmp_path / "again", open_encoder)
    assert again.fingerprint == served.fingerprint
    np.testing.assert_array_equal(again.encode(texts), found)


def test_what_a_student_was_trained_from_is_opened_for_the_first_refresh_only(tmp_path, student, world, monkeypatch):
    pytest.importorskip("onnxruntime", reason="the extra [cpu] is not installed")
    monkeypatch.setenv("GPLFAST_CACHE", str(world.cache))
    opened, real = [], BiEncoder.open
    monkeypatch.setattr(BiEncoder, "open", lambda path, **options: opened.append(Path(path)) or real(path, **options))
    serving = Serving(load_config(overrides={"threads": 1}))
    encoder = StudentEncoder(student, CONFIG, "fp32")
    for place in ("one", "two"):
        serving.choices.clear()
        ServedStudent(
            encoder, tmp_path / place, lambda path, graphs: serving.trained(path, graphs, world.student)
        ).encode(tiny.texts(2))
        assert serving.choices["student"]["runtime"] == "cpu-fp32"
    assert opened == [world.student, tmp_path / "one" / "model", tmp_path / "two" / "model"]
