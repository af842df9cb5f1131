"""Which student is kept: chosen by generated queries whose passages no training saw."""

from __future__ import annotations

import dataclasses
import json
import logging
import math

import numpy as np
import pytest
import tiny
from stages import test_train_stage as training_tests
from stages.test_label_stage import Teacher, setting
from stages.test_label_stage import run as run_label

from gplfast.config import TrainConfig, load_config
from gplfast.errors import ArtifactError, ConfigError, DataError, ModelError
from gplfast.loss_settings import MARGIN_MSE, MNRL
from gplfast.mining.held_out import held_out, searched
from gplfast.models.checkpoint import fingerprint
from gplfast.pipeline import Pipeline
from gplfast.stages import label, train
from gplfast.store.corpus import load_corpus
from gplfast.store.generated import GeneratedQueries
from gplfast.store.manifest import Manifest, freshness
from gplfast.store.negatives import RankedLists

pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

from gplfast.models import selection, training  # noqa: E402
from gplfast.models import student as students  # noqa: E402

CONFIG = dataclasses.replace(training_tests.CONFIG, dev_share=0.2, select_every=1)
MEASURE = selection.measure
DEV = selection.DevSet(tiny.texts(6, seed=8), tiny.texts(30, seed=9), np.arange(6, dtype=np.int64))


def collection():
    """30 passages of 27 texts, two or three queries each; query texts 0 to 4 are asked of several passages."""
    texts = [*tiny.texts(27, seed=4), *tiny.texts(3, seed=4)]
    passages = np.repeat(np.arange(30, dtype=np.int64), np.resize([2, 3], 30))
    asked = [f"shared {i % 5}" if i % 9 == 0 else f"query {i}" for i in range(len(passages))]
    return load_corpus(texts), GeneratedQueries(asked, passages)


# ---- what is held out


def test_nothing_of_a_held_out_passage_is_trained_on():
    corpus, queries = collection()
    found = held_out(corpus, queries, 0.3, seed=1)
    text_of = [corpus.text(row) for row in queries.passages]
    held = {text for text, trained in zip(text_of, found.train, strict=True) if not trained}
    assert len(held) == 8  # 0.3 of the 27 texts, rounded
    assert held.isdisjoint(text for text, trained in zip(text_of, found.train, strict=True) if trained)
    asked = {text for text, trained in zip(queries.texts, found.train, strict=True) if trained}
    assert asked.isdisjoint(np.array(queries.texts)[found.dev])
    ambiguous = ~found.train & ~found.dev
    assert ambiguous.any()
    assert asked.issuperset(np.array(queries.texts)[ambiguous])


def test_what_is_held_out_follows_from_seed_and_share_alone():
    corpus, queries = collection()
    first, again, other = (held_out(corpus, queries, 0.3, seed=seed).train for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    # A larger share holds out what a smaller one did, and more.
    assert (~held_out(corpus, queries, 0.1, seed=1).train <= ~first).all()
    assert (~held_out(corpus, queries, 1e-6, seed=1).train).any()


@pytest.mark.parametrize(("limit", "size"), [(0, 27), (100, 27), (15, 15), (1, 8)])
def test_held_out_queries_are_searched_among_different_texts_and_their_own(limit, size):
    corpus, queries = collection()
    found = held_out(corpus, queries, 0.3, seed=1)
    rows = searched(found, queries, limit, seed=1)
    texts = corpus.texts(rows)
    assert len(rows) == len(set(texts)) == size
    dev = train.dev_set(corpus, queries, found, TrainConfig(dev_share=0.3, select_passages=limit), 1)
    assert dev.queries == list(np.array(queries.texts)[found.dev])
    assert dev.passages == texts
    assert [dev.passages[i] for i in dev.own] == [corpus.text(row) for row in queries.passages[found.dev]]


def test_what_cannot_be_held_out_is_said():
    one = GeneratedQueries(["a", "b"], np.zeros(2, np.int64))
    with pytest.raises(DataError, match="1 different passages have queries but 2 are needed"):
        held_out(tiny.corpus(3), one, 0.5, 0)
    same = GeneratedQueries(["a", "a"], np.arange(2, dtype=np.int64))
    with pytest.raises(DataError, match="are all queries of other passages too"):
        held_out(tiny.corpus(3), same, 0.5, 0)


def test_held_out_queries_are_not_labelled(tmp_path):
    parts = setting(n_queries=10, without=(3,))
    rows = run_label(tmp_path, parts, Teacher(), steps=30, dev_share=0.3)
    trained = np.flatnonzero(held_out(parts[0], parts[1], 0.3, 0).train)
    assert set(rows.queries) == set(trained) - {3}
    counts = Manifest.read(tmp_path / "label").counts
    assert counts["queries held out"] + counts["queries skipped, no negatives"] + len(set(rows.queries)) == 10
    best = run_label(tmp_path / "b", parts, Teacher(), config=label_config(0.5), steps=30, dev_share=0.3)
    assert set(best.queries) < set(rows.queries)


def test_held_out_passages_are_not_promoted(tmp_path):
    corpus, queries, negatives = setting(n_queries=10, n_passages=30)
    found = held_out(corpus, queries, 0.3, 0)
    trained, out = np.flatnonzero(found.train), queries.passages[~found.train]
    indptr = np.where(np.arange(11) > trained[0], 2, 0)
    promoted = RankedLists(indptr, np.array([int(out[0]), 25]))
    parts = (corpus, queries, dataclasses.replace(negatives, promoted=promoted))
    rows = run_label(tmp_path, parts, Teacher(), steps=60, dev_share=0.3)
    assert set(rows.positives[rows.queries == trained[0]]) == {trained[0], 25}


def label_config(share):
    from gplfast.config import LabelConfig

    return LabelConfig(keep_share=share)


def test_artifacts_made_without_selection_stay_fresh():
    off, on = TrainConfig(), TrainConfig(dev_share=0.1)
    inputs = {"corpus": "c"}
    assert "dev_share" not in label.manifest(inputs, "t", label_config(1.0), off, 0).config
    assert label.manifest(inputs, "t", label_config(1.0), on, 0).config["dev_share"] == 0.1
    for loss in (MARGIN_MSE, MNRL):
        assert not {"dev_share", *train.OF_SELECTION} & set(train.manifest(inputs, "b", off, loss, 0).config)
        patient = dataclasses.replace(on, select_patience=3)
        assert train.manifest(inputs, "b", patient, loss, 0).config["select_patience"] == 3


def test_margins_labelled_with_another_share_are_refused(tmp_path):
    parts = corpus, queries, _ = setting()
    margins = run_label(tmp_path, parts, Teacher())
    found = train.parted(corpus, queries, TrainConfig(dev_share=0.3), 0)
    with pytest.raises(
        ArtifactError, match=r"of 40 labelled rows are of held-out passages; label was run with another"
    ):
        train.from_margins(corpus, queries, margins, TrainConfig(), found=found)
    own = run_label(tmp_path / "b", parts, Teacher(), dev_share=0.3)
    assert len(train.from_margins(corpus, queries, own, TrainConfig(), found=found).queries) == 40
    # A row of a training query whose positive has the text of a held-out passage is one too.
    foreign = dataclasses.replace(own, positives=np.full(40, queries.passages[~found.train][0]))
    with pytest.raises(ArtifactError, match="40 of 40 labelled rows"):
        train.from_margins(corpus, queries, foreign, TrainConfig(), found=found)


def test_genq_is_not_trained_on_held_out_queries():
    corpus, queries = collection()
    found = train.parted(corpus, queries, TrainConfig(dev_share=0.3), 0)
    rows = train.from_queries(corpus, queries, found=found)
    assert np.array_equal(rows.queries, np.flatnonzero(found.train))
    assert np.array_equal(rows.positives, queries.passages[found.train])


# ---- the measure


def test_metrics_of_one_relevant_passage():
    ids = np.array([[4, 1, 2], [5, 6, 7], [8, 9, 3], [-1, -1, -1]], np.int64)
    own = np.array([4, 7, 0, 1], np.int64)  # first, third, not found, nothing found
    assert selection.mean_of("nDCG@10", ids, own) == pytest.approx((1 + 1 / math.log2(4)) / 4)
    assert selection.mean_of("MRR@10", ids, own) == pytest.approx((1 + 1 / 3) / 4)
    assert selection.mean_of("Recall@100", ids, own) == 0.5
    deep = np.arange(100, dtype=np.int64)[None]
    assert selection.mean_of("nDCG@10", deep, np.array([10])) == 0
    assert selection.mean_of("nDCG@10", deep, np.array([9])) == pytest.approx(1 / math.log2(11))
    assert selection.mean_of("Recall@100", deep, np.array([99])) == 1


@pytest.mark.parametrize("cosine", [True, False])
def test_a_measure_is_what_the_trained_model_gives_when_it_is_served(world, cosine):
    import ir_measures

    student = opened(world)
    student.train()
    queries, passages = (student.encode(texts, show_progress_bar=False) for texts in (DEV.queries, DEV.passages))
    if cosine:
        queries, passages = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (queries, passages))
    scores = queries.astype(np.float64) @ passages.T
    run = {str(q): {str(p): float(row[p]) for p in range(30)} for q, row in enumerate(scores)}
    qrels = {str(q): {str(p): 1} for q, p in enumerate(DEV.own)}
    expected = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10]
    student.train()
    found = selection.measure(
        student, DEV, dataclasses.replace(CONFIG, similarity="cosine" if cosine else "dot"), "fp32", threads=1
    )
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0 < found < 1


def test_a_measure_leaves_modes_and_random_state(world):
    import torch

    student = opened(world)
    student.train()
    frozen = student[0].auto_model.embeddings.eval()  # as a user may freeze a part
    before = torch.get_rng_state()
    selection.measure(student, DEV, CONFIG, "fp32", threads=1)
    assert torch.equal(before, torch.get_rng_state())
    modes = {module.training for module in student.modules() if module not in set(frozen.modules())}
    assert modes == {True}
    assert not any(module.training for module in frozen.modules())


def test_a_student_that_gives_nan_is_named(world):
    import torch

    student = opened(world)
    with torch.no_grad():
        next(iter(student.parameters())).fill_(float("nan"))
    with pytest.raises(ModelError, match="its training diverged"):
        selection.measure(student, DEV, CONFIG, "fp32", threads=1)


def opened(world):
    students.prepare(0, 1)
    return students.open_student(world.student, CONFIG)


# ---- the choice


def run(folder, world, config=CONFIG, *, loss=MARGIN_MSE, dev=DEV, n_rows=24):
    rows = training_tests.examples(n_rows) if loss == MARGIN_MSE else training_tests.genq_examples()
    wanted = train.manifest({"margins": "m"}, fingerprint(world.student), config, loss, 0)
    path = train.train(lambda: rows, world.student, folder, wanted, config, seed=0, threads=1, dev=lambda: dev)
    return (path / "model.safetensors").read_bytes(), json.loads((folder / "training.json").read_text())


def scripted(monkeypatch, scores, weights=None, looked=None):
    """The real measure, but what it returns is said here; gathers the weights at each look."""
    given = iter(scores)

    def measure(student, *args, **options):
        MEASURE(student, *args, **options)
        if weights is not None:
            weights.append({name: value.clone() for name, value in student.state_dict().items()})
        if looked is not None:
            looked.append(None)
        return next(given)

    monkeypatch.setattr(selection, "measure", measure)


@pytest.mark.parametrize("loss", [MARGIN_MSE, MNRL])
def test_looking_does_not_change_what_is_trained(tmp_path, world, monkeypatch, loss):
    """Dropout is on: a look that drew random numbers or left the model in evaluation mode would show in the weights."""
    without, _ = run(tmp_path / "a", world, loss=loss, dev=None)
    scripted(monkeypatch, [i / 10 for i in range(7)])
    looked, report = run(tmp_path / "b", world, loss=loss)
    assert report["selection"]["best_step"] == 6
    assert looked == without


def test_the_earliest_best_step_is_kept(tmp_path, world, monkeypatch, caplog):
    from safetensors.torch import load

    weights = []
    scripted(monkeypatch, [0.1, 0.2, 0.5, 0.3, 0.5, 0.4, 0.45], weights)
    with caplog.at_level(logging.INFO, logger="gplfast"):
        saved, report = run(tmp_path, world)
    assert report["selection"]["best_step"] == 2
    assert [look["step"] for look in report["selection"]["curve"]] == list(range(7))
    assert [look["score"] for look in report["selection"]["curve"]] == [0.1, 0.2, 0.5, 0.3, 0.5, 0.4, 0.45]
    counts = Manifest.read(tmp_path).counts
    assert (counts["best step"], counts["dev nDCG@10"], counts["steps"]) == (2, 0.5, 6)
    assert "step 2: nDCG@10 0.5000 of 6 held-out queries" in caplog.text
    kept = load(saved)
    names = {name: next(key for key in weights[0] if key.endswith(name)) for name in kept}
    same = [all((kept[name] == at[key]).all() for name, key in names.items()) for at in weights]
    assert same == [False, False, True, False, False, False, False]


def test_a_student_that_only_gets_worse_stays_as_it_was(tmp_path, world, monkeypatch, caplog):
    scripted(monkeypatch, [0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1])
    saved, report = run(tmp_path, world)
    assert report["selection"]["best_step"] == 0
    assert "no step of training is better" in caplog.text
    untrained = opened(world)
    students.save(untrained, tmp_path / "untrained")
    assert saved == (tmp_path / "untrained" / "model.safetensors").read_bytes()


def test_ten_looks_by_default_and_one_after_the_last_step(tmp_path, world):
    config = dataclasses.replace(CONFIG, steps=12, select_every=0)
    _, report = run(tmp_path / "a", world, config, n_rows=48)
    assert [look["step"] for look in report["selection"]["curve"]] == [0, 2, 4, 6, 8, 10, 12]
    _, report = run(tmp_path / "b", world, dataclasses.replace(CONFIG, select_every=4))
    assert [look["step"] for look in report["selection"]["curve"]] == [0, 4, 6]


def test_patience_ends_a_training(tmp_path, world, monkeypatch):
    config = dataclasses.replace(CONFIG, select_patience=2)
    scripted(monkeypatch, [0.1, 0.2, 0.2, 0.1])
    _, report = run(tmp_path, world, config)
    assert report["selection"]["stopped_early"]
    assert report["selection"]["best_step"] == 1
    assert Manifest.read(tmp_path).counts["steps"] == 3


@pytest.mark.parametrize("patience", [0, 2])
def test_a_killed_training_keeps_its_best(tmp_path, world, monkeypatch, patience):
    """Killed after step 3: it goes on from the checkpoint of step 2, before its best, and looks at nothing twice."""
    config = dataclasses.replace(CONFIG, select_patience=patience)
    scores = [0.1, 0.2, 0.3, 0.6, 0.5, 0.4, 0.3]
    scripted(monkeypatch, scores)
    whole, report = run(tmp_path / "a", world, config)
    scripted(monkeypatch, scores)
    real = training._callback

    def stopping(mark, progress):
        callback = real(mark, progress)
        ending = callback.on_step_end

        def stop(args, state, *rest, **more):
            if state.global_step == 3:
                raise KeyboardInterrupt
            ending(args, state, *rest, **more)

        callback.on_step_end = stop
        return callback

    monkeypatch.setattr(training, "_callback", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", world, config)
    monkeypatch.setattr(training, "_callback", real)
    assert {path.name for path in (tmp_path / "b" / "checkpoints").iterdir()} >= {
        "checkpoint-2",
        "best-3.safetensors",
        "selection.json",
    }
    looked = []
    scripted(monkeypatch, scores[4:], looked=looked)
    resumed, again = run(tmp_path / "b", world, config)
    assert resumed == whole
    assert again["selection"] == report["selection"]
    assert report["selection"]["best_step"] == 3
    assert len(looked) == (2 if patience else 3)
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_what_another_training_kept_is_dropped(tmp_path, world):
    students.prepare(0, 1)
    student = opened(world)
    mark = {"key": "k", "precision": "fp32"}

    def selector(found=mark):
        return selection.Selector(student, DEV, tmp_path, found, CONFIG, n_steps=6, threads=1)

    selector()._look(0)
    kept = tmp_path / "best-0.safetensors"
    assert selector()._curve.keys() == {0}
    record = (tmp_path / "selection.json").read_text()
    for damaged in ("{", "{}", "[]", record.replace('"curve": {', '"curve": {"1": 2.0, ')):
        (tmp_path / "selection.json").write_text(damaged)
        assert selector()._curve == {}
        assert not kept.exists()
        selector()._look(0)
        assert kept.exists()
    assert selector({**mark, "precision": "bf16"})._curve == {}
    assert not kept.exists()


# ---- the settings


def test_settings_of_selection_without_held_out_queries_are_refused():
    with pytest.raises(ConfigError, match=r"\[train\] select_patience has no effect: dev_share is 0"):
        load_config(overrides={"train": {"select_patience": 2}})
    config = load_config(overrides={"train": {"dev_share": 0.2, "select_patience": 2}})
    assert (config.genq.dev_share, config.genq.select_patience) == (0.2, 0)


def test_all_students_of_a_run_are_selected(tmp_path, world, cache):
    overrides = world.settings(
        train={"dev_share": 0.3, "select_every": 2}, students=["gpl", "rgpl", "genq"], refresh={"every": 2}
    )
    pipeline = Pipeline(world.corpus, tmp_path / "work", load_config(overrides=overrides))
    with pipeline.work:
        pipeline.run()
    queries, margins = pipeline.queries(), pipeline.margins()
    found = held_out(pipeline.corpus, queries, 0.3, 0)
    assert found.train[margins.queries].all()
    for student in ("gpl", "rgpl", "genq"):
        folder = tmp_path / "work" / "train" / student
        curve = json.loads((folder / "training.json").read_text())["selection"]
        assert curve["n_queries"] == found.dev.sum()
        best = max(curve["curve"], key=lambda look: (look["score"], -look["step"]))
        counts = Manifest.read(folder).counts
        assert (counts["best step"], counts["dev nDCG@10"]) == (best["step"], best["score"])
        assert f"best step {best['step']}" in pipeline.describe(f"train {student}")
    rows = Manifest.read(tmp_path / "work" / "train" / "genq").counts["rows"]
    assert rows == found.train.sum() < len(queries)
    other = Pipeline(
        world.corpus,
        tmp_path / "work",
        load_config(
            overrides=world.settings(
                train={"dev_share": 0.2, "select_every": 2}, students=["gpl", "rgpl", "genq"], refresh={"every": 2}
            )
        ),
    )
    stale = {planned.step for planned in other.plan() if not planned.fresh}
    assert stale == {"label", "train gpl", "train rgpl", "train genq"}
    assert not freshness(other.directory("label"), other.wanted("label")).fresh
