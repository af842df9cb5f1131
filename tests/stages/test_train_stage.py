"""Training runs on sentence-transformers; these tests use its real trainer on tiny random models."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest
import tiny

from gplfast.config import TrainConfig
from gplfast.errors import DataError, ModelError
from gplfast.loss_settings import MARGIN_MSE, MNRL
from gplfast.models import training, training_rows
from gplfast.models.checkpoint import fingerprint
from gplfast.models.training_rows import Examples
from gplfast.stages import train
from gplfast.store.generated import GeneratedQueries
from gplfast.store.manifest import freshness

pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

from gplfast.models import student as students  # noqa: E402

CONFIG = TrainConfig(
    similarity="cosine", steps=6, batch_size=4, checkpoint_steps=2, warmup_steps=2, max_seq_length=16, precision="fp32"
)


def examples(n=24, scale=5.0):
    draw = np.random.default_rng(0)
    queries, passages = tiny.texts(12, seed=1), tiny.texts(20, seed=2)
    return Examples(
        queries.__getitem__,
        passages.__getitem__,
        draw.integers(0, 12, n),
        draw.integers(0, 10, n),
        draw.integers(10, 20, n),
        (draw.standard_normal(n) * scale).astype(np.float32),
    )


def run(folder, world, rows, config=CONFIG, loss=MARGIN_MSE):
    wanted = train.manifest({"margins": "m"}, fingerprint(world.student), config, loss, 0)
    path = train.train(lambda: rows, world.student, folder, wanted, config, seed=0, threads=1)
    return path, json.loads((folder / "training.json").read_text())


def loss_by_hand(student, rows, similarity, labels):
    margins = students.margins(student, rows, similarity, len(labels))
    return float(((margins - labels) ** 2).mean())


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_margin_mse_is_what_it_says_for_dot_and_for_cosine(world, similarity):
    """GPL compared with "cosine" but accepted "cos_sim" only, so its cosine never normalised."""
    import torch

    rows = examples(4, scale=0.1)
    students.prepare(0, 1)
    student = students.open_student(world.student, dataclasses.replace(CONFIG, similarity=similarity)).eval()
    loss = training_rows.loss(student, dataclasses.replace(CONFIG, similarity=similarity), rows)
    columns = [
        [rows.query_text(i) for i in rows.queries],
        *([rows.passage_text(i) for i in r] for r in (rows.positives, rows.negatives)),
    ]
    with torch.no_grad():
        value = float(loss([student.preprocess(texts) for texts in columns], torch.tensor(rows.margins)))
    assert value == pytest.approx(loss_by_hand(student, rows, similarity, rows.margins), rel=1e-4)
    other = "dot" if similarity == "cosine" else "cosine"
    assert value != pytest.approx(loss_by_hand(student, rows, other, rows.margins), rel=1e-2)


def test_a_trained_model_is_a_normal_one_and_the_same_every_time(tmp_path, world):
    from sentence_transformers import SentenceTransformer

    from gplfast.models import BiEncoder

    first, report = run(tmp_path / "a", world, examples())
    second, _ = run(tmp_path / "b", world, examples())
    weights = [(path / "model.safetensors").read_bytes() for path in (first, second)]
    assert weights[0] == weights[1]
    assert not list(first.rglob("*.bin"))
    assert not (tmp_path / "a" / "checkpoints").exists()
    model = SentenceTransformer(str(first), device="cpu")
    assert (model.similarity_fn_name, model.max_seq_length) == ("cosine", 16)
    texts = tiny.texts(3)
    served = BiEncoder.open(first, cache_dir=world.cache, threads=1)
    assert served.similarity == "cosine"
    assert np.allclose(model.encode(texts), served.encode(texts), atol=1e-4)
    assert report["losses"][-1]["step"] == 6
    assert report["precision"] == "fp32"


def genq_examples():
    corpus = tiny.corpus(12)
    return train.from_queries(corpus, GeneratedQueries(tiny.texts(16, seed=3), np.arange(16, dtype=np.int64) % 12))


@pytest.mark.parametrize("kind", ["margins", "genq", "genq, cut from others"])
def test_a_run_that_stopped_goes_on_from_its_checkpoint_to_the_same_bytes(tmp_path, world, monkeypatch, kind):
    """GPL's checkpoints had no optimizer state: its training could not go on. GenQ's is killed in its second epoch."""
    loss = MARGIN_MSE if kind == "margins" else MNRL
    rows = examples() if kind == "margins" else genq_examples()
    if kind == "genq, cut from others":
        rows = dataclasses.replace(rows, source_groups=(np.arange(16) + 3) % 12)
        assert callable(training_rows.batch_sampler(rows, CONFIG))
    whole, _ = run(tmp_path / "a", world, rows, loss=loss)
    real = training._callback

    def stopping(mark, progress):
        callback = real(mark, progress)
        ending = callback.on_step_end

        def stop(args, state, *rest, **more):
            if state.global_step == 5:
                raise KeyboardInterrupt
            ending(args, state, *rest, **more)

        callback.on_step_end = stop
        return callback

    monkeypatch.setattr(training, "_callback", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", world, rows, loss=loss)
    monkeypatch.setattr(training, "_callback", real)
    checkpoints = tmp_path / "b" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    half_written = checkpoints / "checkpoint-6"
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"half")
    steps = []
    wanted = train.manifest({"margins": "m"}, fingerprint(world.student), CONFIG, loss, 0)
    resumed = train.train(
        lambda: rows,
        world.student,
        tmp_path / "b",
        wanted,
        CONFIG,
        seed=0,
        threads=1,
        report=lambda _, n, __: steps.append(n),
    )
    assert steps == [5, 6]
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


@pytest.mark.parametrize("steps", [6, 5])
def test_a_run_killed_after_the_last_step_does_not_train_further(tmp_path, world, monkeypatch, steps):
    config = dataclasses.replace(CONFIG, steps=steps)
    rows = examples(4 * steps)
    whole, _ = run(tmp_path / "a", world, rows, config)

    def full(*_, **__):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(students, "save", full)
        with pytest.raises(OSError, match="no space left"):
            run(tmp_path / "b", world, rows, config)
    assert (tmp_path / "b" / "checkpoints" / f"checkpoint-{steps}").is_dir()
    resumed, _ = run(tmp_path / "b", world, rows, config)
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def test_a_kill_while_the_model_is_replaced_leaves_nothing_that_looks_finished(tmp_path, world, monkeypatch):
    """Another model of the same shape has files of the same sizes, so beside the old manifest it would pass for it."""
    other = dataclasses.replace(CONFIG, learning_rate=1e-3)
    run(tmp_path, world, examples())
    old = train.manifest({"margins": "m"}, fingerprint(world.student), CONFIG, MARGIN_MSE, 0)
    assert freshness(tmp_path, old).fresh
    before = (tmp_path / "model" / "model.safetensors").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "write_json", killed)  # the new model is there, training.json and the manifest are not
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, world, examples(), other)
    after = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert len(before) == len(after)
    assert before != after
    assert freshness(tmp_path, old) == (False, "missing")
    run(tmp_path, world, examples())
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_checkpoints_of_other_settings_are_not_gone_on_from(tmp_path, world):
    """Neither those of another precision, which "auto" may become on another machine."""
    mark = {"key": "k", "precision": "bf16"}
    marks = {2: mark, 4: {**mark, "key": "other"}, 6: {**mark, "precision": "fp32"}, 8: {"key": "k"}, 10: None}
    for step, found in marks.items():
        (tmp_path / f"checkpoint-{step}").mkdir()
        if found:
            (tmp_path / f"checkpoint-{step}" / "gplfast.json").write_text(json.dumps(found))
    assert [path.name for path in training._usable_checkpoints(tmp_path, mark)] == ["checkpoint-2"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_labels_come_to_a_cosine_students_scale_by_default(world):
    students.prepare(0, 1)
    student = students.open_student(world.student, CONFIG)
    fixed = dataclasses.replace(CONFIG, label_mean=0.2)
    rows, report = train.prepare_labels(examples(), student, fixed)
    assert np.abs(rows.margins).max() <= np.float32(0.6)
    assert 0.15 < np.abs(rows.margins).mean() <= 0.2
    assert np.array_equal(np.sign(rows.margins), np.sign(examples().margins))
    assert report["warning"] is None or "apart" in report["warning"]
    kept, _ = train.prepare_labels(examples(), student, dataclasses.replace(CONFIG, similarity="dot"))
    assert np.array_equal(kept.margins, examples().margins)


def test_labels_get_the_mean_of_the_students_own_margins(world, monkeypatch):
    students.prepare(0, 1)
    student = students.open_student(world.student, CONFIG)
    for own, wanted in ((0.3449, 0.34), (0.001, 0.1)):
        signs = np.resize(np.array([1, -1], np.float32), 64)
        monkeypatch.setattr(students, "margins", lambda *_args, own=own, signs=signs: signs * np.float32(own))
        rows, report = train.prepare_labels(examples(), student, dataclasses.replace(CONFIG, label_clip=1e6))
        assert np.abs(rows.margins).mean() == pytest.approx(wanted)
        assert report["student_margins_before"]["mean_abs"] == pytest.approx(own)


def test_labels_off_the_students_scale_are_warned_about(world, caplog):
    students.prepare(0, 1)
    student = students.open_student(world.student, CONFIG)
    with caplog.at_level(logging.WARNING, logger="gplfast"):
        train.prepare_labels(examples(), student, dataclasses.replace(CONFIG, rescale="none"))
    assert "the margin of two cosines is at most 2" in caplog.text


def test_rescaled_labels_are_not_reused_with_another_range(tmp_path, world):
    """GPL reused gpl-training-data.rescaled.tsv whatever range had made it; here each range is another model."""
    keys = set()
    for low, high in ((-1.0, 1.0), (-0.5, 0.5)):
        config = dataclasses.replace(CONFIG, rescale_range=(low, high))
        keys.add(train.manifest({}, "base", config, MARGIN_MSE, 0).key)
        students.prepare(0, 1)
        rows, _ = train.prepare_labels(examples(), students.open_student(world.student, config), config)
        assert (rows.margins.min(), rows.margins.max()) == pytest.approx((low, high))
    assert len(keys) == 2


def test_genq_keeps_equal_passages_out_of_a_batch(world):
    """In-batch negatives must not hold the positive: neither the same row nor another row of the same text."""
    from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

    texts = [*tiny.texts(5), *tiny.texts(5)]  # each text twice
    from gplfast.store.corpus import load_corpus

    corpus = load_corpus(texts)
    queries = GeneratedQueries([f"query {i % 18}" for i in range(20)], np.arange(20, dtype=np.int64) % 10)
    rows = train.from_queries(corpus, queries)
    dataset = training_rows.dataset(rows, CONFIG)
    sampler = NoDuplicatesBatchSampler(dataset, batch_size=4, drop_last=False, valid_label_columns=["label"])
    seen = []
    for batch in sampler:
        passages = [corpus.text(dataset[i]["positive"]) for i in batch]
        asked = [queries.texts[-dataset[i]["query"] - 1] for i in batch]
        assert len(set(passages)) == len(passages)
        assert len(set(asked)) == len(asked)
        seen += batch
    assert sorted(seen) == list(range(20))
    assert training_rows.batch_sampler(rows, CONFIG) == "no_duplicates"


def cut_from_others():
    """Each query's source is the passage before its positive; passages 0 and 6 say the same."""
    from gplfast.store.corpus import load_corpus

    texts = tiny.texts(12)
    passages = np.arange(24, dtype=np.int64) % 12
    queries = GeneratedQueries(tiny.texts(24, seed=3), passages, (passages - 1) % 12)
    return load_corpus([*texts[:6], texts[0], *texts[7:]]), queries


def holds_a_source(batch, positives, sources, texts):
    return any(texts[sources[row]] == texts[positives[other]] for row in batch for other in batch if other != row)


def test_genq_keeps_the_passage_of_a_query_out_of_its_batch():
    corpus, queries = cut_from_others()
    texts = corpus.texts()
    rows = train.from_queries(corpus, queries)
    dataset = training_rows.dataset(rows, CONFIG)
    sampler = training_rows.batch_sampler(rows, CONFIG)(dataset, 4, True, seed=5)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert epochs[-1] == list(sampler)
        assert len(epochs[-1]) == len(sampler) == 6
        used = [row for batch in epochs[-1] for row in batch]
        assert len(set(used)) == len(used) >= 18
        for batch in epochs[-1]:
            assert len({texts[queries.passages[row]] for row in batch}) == len(batch) <= 4
            assert not holds_a_source(batch, queries.passages, queries.sources, texts)
    assert epochs[0] != epochs[1] != epochs[2]
    adore = dataclasses.replace(CONFIG, loss="adore")  # its negatives are not the batch's
    assert training_rows.batch_sampler(rows, adore) == "no_duplicates"


def test_rows_with_negatives_keep_the_passage_of_a_query_out_of_its_batch():
    from gplfast.store.margins import Margins

    corpus, queries = cut_from_others()
    numbers = np.arange(24, dtype=np.int64)
    negatives = (queries.passages + 3) % 12
    margins = Margins(numbers, queries.passages, negatives, np.zeros(24, np.float32))
    config = dataclasses.replace(CONFIG, loss="mnrl", batch_size=4)
    found = training_rows.batches(train.from_margins(corpus, queries, margins, config), config)
    texts = corpus.texts()
    assert sorted(row for batch in found for row in batch) == numbers.tolist()
    for batch in found:
        assert not holds_a_source(batch, queries.passages, queries.sources, texts)
        assert not holds_a_source(batch, negatives, queries.sources, texts)
    assert max(map(len, found)) > 1


@pytest.mark.parametrize("of_others", [False, True])
def test_genq_trains(tmp_path, world, of_others):
    corpus = tiny.corpus(12)
    queries = GeneratedQueries(tiny.texts(24, seed=3), np.arange(24, dtype=np.int64) % 12)
    if of_others:
        corpus, queries = cut_from_others()
    config = dataclasses.replace(CONFIG, steps=0, visits_per_query=1.0, batch_size=8)
    path, report = run(tmp_path, world, train.from_queries(corpus, queries), config, MNRL)
    assert (path / "modules.json").is_file()
    assert len(report["losses"]) == 3


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_plain_language_model_gets_the_pooling_that_was_chosen(world, pooling):
    students.prepare(0, 1)
    student = students.open_student(world.student, dataclasses.replace(CONFIG, pooling=pooling))
    assert student[1].get_config_dict()["pooling_mode"] == pooling


def test_nothing_to_train_on_and_a_base_that_is_none(tmp_path, world):
    with pytest.raises(DataError, match="there are 0 training rows"):
        run(tmp_path, world, examples(0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot load the student"):
        students.open_student(tmp_path / "empty", CONFIG)
