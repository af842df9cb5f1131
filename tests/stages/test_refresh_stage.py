"""R-GPL on tiny random models: rows that change while training goes on, and kills inside and between refreshes."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from models.conftest import build_encoder

from gplfast import errors
from gplfast.config import load_config
from gplfast.models.selection import Selector
from gplfast.pipeline import Pipeline
from gplfast.steps import scored_margins, train
from gplfast.store.atomic import read_parquet
from gplfast.store.manifest import Manifest
from gplfast.store.negatives import Negatives
from gplfast.store.shards import ShardSet

pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("cache")]

TRAIN = {"steps": 12, "batch_size": 4, "checkpoint_steps": 5, "max_seq_length": 16, "learning_rate": 1e-3}
TRAIN |= {"similarity": "dot"}  # labels are taken as they are, in GPL's training and in R-GPL's


def settings(world, students=("rgpl",), refresh=None, **sections):
    refresh = {"every": 4, "negatives_per_query": 6, **(refresh or {})}
    return world.settings(students=list(students), train=TRAIN, refresh=refresh, **sections)


def run(world, work, **options):
    made = Pipeline(world.corpus, work, load_config(overrides=settings(world, **options)))
    with made.work:
        made.run()
    return work / "train" / "rgpl"


def weights(student):
    return (student / "model" / "model.safetensors").read_bytes()


def table(folder):
    return ShardSet(folder, Manifest.read(folder)).table()


def n_stored(work):
    """Pairs in the stores of all teachers."""
    return sum(read_parquet(path).num_rows for path in (work / "scores").glob("*/scores-*.parquet"))


def rows_of(folder, number):
    found = table(folder / "refresh" / str(number) / "label").to_pydict()
    return list(zip(found["query"], found["positive"], found["negative"], strict=True))


def mined(folder, number):
    found = Negatives.from_table(table(folder / "refresh" / str(number) / "mine"))
    ((name, lists),) = found.lists.items()
    assert name == "student"
    return [lists[query].tolist() for query in range(len(found))]


@pytest.fixture(scope="module")
def prepared(world, tmp_path_factory):
    """A work directory with queries, negatives and GPL's student; tests copy it."""
    import os

    os.environ["GPLFAST_CACHE"] = str(world.cache)
    work = tmp_path_factory.mktemp("prepared")
    run(world, work, students=["gpl"])
    return work


@pytest.fixture
def work(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "work", ignore=shutil.ignore_patterns(".lock*"))


@pytest.fixture(scope="module")
def beside(world, prepared, tmp_path_factory):
    """The same with lists that are mined beside training."""
    work = tmp_path_factory.mktemp("beside") / "work"
    shutil.copytree(prepared, work, ignore=shutil.ignore_patterns(".lock*"))
    return run(world, work, refresh={"mode": "async"})


@pytest.fixture(scope="module")
def whole(world, prepared, tmp_path_factory):
    """R-GPL's student, trained without a kill."""
    work = tmp_path_factory.mktemp("whole") / "work"
    shutil.copytree(prepared, work, ignore=shutil.ignore_patterns(".lock*"))
    return run(world, work)


def test_each_segment_draws_from_the_list_of_its_time(whole, work):
    """Queries and positives are GPL's at the same steps; only negatives are others."""
    gpl = table(work / "label").to_pydict()
    gpl = list(zip(gpl["query"], gpl["positive"], gpl["negative"], strict=True))
    assert rows_of(whole, 0) == gpl[:16]
    for number in (1, 2):
        rows, lists = rows_of(whole, number), mined(whole, number)
        assert [row[:2] for row in rows] == [row[:2] for row in gpl[16 * number : 16 * number + 16]]
        assert all(negative in lists[query] for query, _, negative in rows)
        assert all(positive not in lists[query] for query, positive, _ in rows)
        assert {len(found) for found in lists} == {6}
    assert rows_of(whole, 1) != gpl[16:32]
    assert weights(whole) != weights(work / "train" / "gpl")
    assert not (whole / "refresh" / "3").exists()
    assert not list(whole.rglob("embeddings"))
    assert not (whole / "checkpoints").exists()


def test_the_log_says_what_changed(whole):
    log = json.loads((whole / "refreshes.json").read_text())
    assert log == json.loads((whole / "training.json").read_text())["refreshes"]
    assert [entry["step"] for entry in log] == [4, 8]
    old, new = mined(whole, 1), mined(whole, 2)
    shares = [len(set(a) & set(b)) / 6 for a, b in zip(old, new, strict=True)]
    assert log[1]["overlap@6"] == pytest.approx(np.mean(shares), abs=1e-4)
    first = Negatives.from_table(table(whole.parent.parent / "mine"))
    indptr, docs = first.union()
    unseen = [
        passage not in {*docs[indptr[query] : indptr[query + 1]].tolist(), *old[query]}
        for query, passages in enumerate(new)
        for passage in passages
    ]
    assert log[1]["new_documents"] == pytest.approx(np.mean(unseen), abs=1e-4)
    for entry, number in zip(log, (1, 2), strict=True):
        rows = rows_of(whole, number)
        n_pairs = len({(query, passage) for query, *passages in rows for passage in passages})
        assert entry["pairs_scored"] + entry["pairs_saved"] == n_pairs
        assert entry["pairs_saved"] >= len({row[:2] for row in rows})  # every query's own passage was scored before
        assert set(entry["seconds"]) == {"embed", "search", "label"}
    assert log[0]["teacher_score"] == log[1]["teacher_score_before"] != log[1]["teacher_score"]
    assert Manifest.read(whole).counts == {"refreshes": 2, "rows": 48, "steps": 12}


def test_the_teachers_scores_in_the_log_are_those_of_the_rows(whole, world):
    from gplfast.models import CrossEncoder
    from gplfast.store.corpus import load_corpus

    log = json.loads((whole / "refreshes.json").read_text())
    corpus, teacher = load_corpus(world.corpus), CrossEncoder.open(world.teacher, threads=1)
    queries = table(whole.parent.parent / "generate")["text"].to_pylist()
    pairs = [(queries[query], corpus.text(negative)) for query, _, negative in rows_of(whole, 1)]
    cut = [teacher.cut(list(texts), 32) for texts in zip(*pairs, strict=True)]
    scores = teacher.score(*cut, activation="identity")
    assert log[0]["teacher_score"] == pytest.approx(float(scores.mean()), abs=1e-3)


def test_kept_lists_give_gpls_student(world, work):
    """Never mined again, R-GPL is GPL to the bit: optimizer, schedule and random state do not notice the checks."""
    student = run(world, work, refresh={"mode": "adaptive", "below": 0.0})
    log = json.loads((student / "refreshes.json").read_text())
    assert [entry["refreshed"] for entry in log] == [False, False]
    assert all(0 <= entry["sample_overlap"] <= 1 for entry in log)
    assert weights(student) == weights(work / "train" / "gpl")


def test_adaptive_mines_when_the_neighbours_changed(world, work):
    student = run(world, work, refresh={"mode": "adaptive", "below": 1.0, "sample_queries": 20, "sample_passages": 30})
    log = json.loads((student / "refreshes.json").read_text())
    assert [entry["refreshed"] for entry in log] == [entry["sample_overlap"] < 1.0 for entry in log]
    assert log[0]["refreshed"]
    assert (student / "refresh" / "1" / "mine" / "manifest.json").is_file()


def test_a_student_without_refreshes_is_gpls(world, work, caplog):
    student = run(world, work, refresh={"every": 12})
    assert "no refresh: [refresh] every is 12 but training has 12 steps" in caplog.text
    assert weights(student) == weights(work / "train" / "gpl")
    assert not (student / "refresh" / "1").exists()


def test_joined_lists_keep_the_old_ones(world, work, whole):
    student = run(world, work, refresh={"keep": "join"})
    assert weights(student) != weights(whole)
    assert mined(student, 1) == mined(whole, 1)  # the students are the same up to there
    indptr, docs = Negatives.from_table(table(work / "mine")).union()
    old = [set(docs[first:end].tolist()) for first, end in itertools.pairwise(indptr)]
    drawn = [(query, negative) for query, _, negative in rows_of(student, 1)]
    assert all(negative in old[query] | set(mined(student, 1)[query]) for query, negative in drawn)
    assert any(negative not in mined(student, 1)[query] for query, negative in drawn)


def test_filters_hold_for_refreshes_too(world, work, whole, monkeypatch):
    """What the teacher takes for an answer is in no refreshed list; filters and labels ask it once for each pair."""
    from gplfast.models import CrossEncoder
    from gplfast.store.corpus import load_corpus

    corpus, teacher = load_corpus(world.corpus), CrossEncoder.open(world.teacher, threads=1)
    queries = table(whole.parent.parent / "generate")["text"].to_pylist()

    def probabilities(student):
        pairs = [(queries[query], corpus.text(row)) for query, rows in enumerate(mined(student, 1)) for row in rows]
        cut = [teacher.cut(list(texts), 32) for texts in zip(*pairs, strict=True)]
        return teacher.score(*cut, activation="sigmoid")

    limit = float(np.median(probabilities(whole)))
    shutil.rmtree(work / "scores")  # so that labels ask too, for the positives of each segment
    asked, score = [], CrossEncoder.score

    def scored(self, texts, passages, **more):
        asked.extend(zip(texts, passages, strict=True))
        return score(self, texts, passages, **more)

    with monkeypatch.context() as patched:
        patched.setattr(CrossEncoder, "score", scored)
        student = run(world, work, filter={"denoise": limit}, label={"keep_share": 1.0})
    assert n_stored(work) == len(set(asked)) == len(asked) > 0
    assert probabilities(student).max() <= limit + 1e-4
    assert {len(rows) for rows in mined(student, 1)} == {6}
    counts = Manifest.read(student / "refresh" / "1" / "mine").counts
    assert counts["dropped, denoise"] > 0
    log = json.loads((student / "refreshes.json").read_text())
    assert all(entry["pairs_scored"] > 0 and "pairs_saved" not in entry for entry in log)


def test_a_loss_without_scores_asks_no_teacher(world, work):
    """ANCE: negatives mined by the student in training, and a contrastive loss."""
    config = settings(world, students=["gpl", "rgpl"])
    config["train"] = {**TRAIN, "loss": "mnrl"}
    config["label"] = {**config["label"], "keep_share": 1.0}
    made = Pipeline(world.corpus, work, load_config(overrides=config))
    stored = n_stored(work)
    with made.work:
        made.run()
    assert n_stored(work) == stored > 0
    assert not Manifest.read(work / "label").models
    assert not (work / "label" / "teachers.json").exists()
    log = made.refreshes_log()
    assert [entry["pairs_scored"] for entry in log] == [0, 0]
    assert not {"teacher_score", "teacher_score_before", "pairs_saved"} & set(log[0])
    assert weights(work / "train" / "gpl") != weights(work / "train" / "rgpl")
    with pytest.raises(errors.ConfigError, match="rows without the teacher's margins"):
        scored_margins(made)
    changed = load_config(overrides={**config, "train": TRAIN})
    with pytest.raises(errors.ArtifactError, match=r"cannot train with margin-mse.*run `gplfast label` again"):
        train(world.corpus, work=work, config=changed)


def test_asynchronous_lists_are_used_one_refresh_later(world, work, whole, beside):
    gpl = table(work / "label").to_pydict()["negative"]
    student = run(world, work, refresh={"mode": "async"})
    assert [negative for *_, negative in rows_of(student, 1)] == gpl[16:32]
    found = mined(student, 1)  # by the student of step 4, for the steps from 8 on
    assert all(negative in found[query] for query, _, negative in rows_of(student, 2))
    assert found == mined(whole, 1)
    assert not (student / "refresh" / "2" / "mine").exists()
    log = json.loads((student / "refreshes.json").read_text())
    assert [(entry["step"], entry.get("mined_at")) for entry in log] == [(4, None), (8, 4)]
    assert not list(student.rglob("student"))
    again = run(world, shutil.copytree(work, work.parent / "again", ignore=shutil.ignore_patterns("rgpl", ".lock*")))
    assert weights(again) == weights(whole)
    assert weights(student) == weights(beside)
    assert [rows_of(student, number) for number in range(3)] == [rows_of(beside, number) for number in range(3)]


def test_refreshes_that_training_did_not_reach_are_not_told(world, work, monkeypatch):
    """Patience ends training while the next segment's list is mined."""
    monkeypatch.setattr(Selector, "_look", lambda self, step: self._keep(step, -step) or step == 6)
    train = {**TRAIN, "dev_share": 0.2, "select_patience": 1}
    config = {**settings(world, refresh={"mode": "async"}), "train": train}
    made = Pipeline(world.corpus, work, load_config(overrides=config))
    with made.work:
        made.run()
    student = work / "train" / "rgpl"
    log = json.loads((student / "training.json").read_text())["refreshes"]
    assert [entry["step"] for entry in log] == [4]
    assert log == json.loads((student / "refreshes.json").read_text()) == made.refreshes_log()
    counts = Manifest.read(student).counts
    assert (counts["steps"], counts["rows"], counts["refreshes"]) == (6, 24, 0)


def test_pairs_of_several_teachers_count_once(world, work, tmp_path):
    second = tmp_path / "second"
    second.mkdir()
    build_encoder(second, "minilm", n_labels=1, seed=7)
    student = run(world, work, label={"more_models": [str(second)]})
    for entry, number in zip(json.loads((student / "refreshes.json").read_text()), (1, 2), strict=True):
        n_pairs = len({(query, passage) for query, *passages in rows_of(student, number) for passage in passages})
        assert entry["pairs_scored"] + entry["pairs_saved"] == n_pairs
        assert entry["pairs_saved"] > 0


def test_other_refreshes_make_only_this_student_stale(world, whole):
    root = whole.parent.parent
    config = load_config(overrides=settings(world, ["gpl", "rgpl"], {"every": 3}))
    plan = Pipeline(world.corpus, root, config).plan()
    assert [(item.step, item.fresh) for item in plan] == [
        ("generate", True),
        ("mine", True),
        ("label", True),
        ("train gpl", True),
        ("train rgpl", False),
    ]
    assert "config.refresh.every is 3 but was 4" in plan[-1].reason
    assert Pipeline(world.corpus, root, config).system_names() == ["bm25", "zero-shot", "gpl", "rgpl"]
    config = load_config(overrides=settings(world, label={"max_seq_length": 9}))
    reasons = {item.step: item.reason for item in Pipeline(world.corpus, root, config).plan()}
    assert list(reasons) == ["generate", "mine", "train rgpl"]
    assert "config.label.max_seq_length is 9 but was 32" in reasons["train rgpl"]


def test_the_step_alone_trains_rgpl(world, work, whole):
    assert weights(train(world.corpus, work=work, student="rgpl", config=settings(world)).parent) == weights(whole)
    with pytest.raises(errors.ArtifactError, match="generate is missing or not finished"):
        train(world.corpus, work=work.parent / "none", student="rgpl", config=settings(world))


# ---- kill -9

# Kills its process at a point that a file or a call names.
KILLER = """
import json, os, shutil, signal, sys, time
from gplfast.config import load_config
from gplfast.mining import background
from gplfast.models import served_student, training
from gplfast.models.selection import Selector
from gplfast.pipeline import Pipeline
from gplfast.store import segments

point, corpus, work, settings = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, when):
    real = getattr(owner, name)
    def wrapped(*args, **more):
        if when(*args, **more):
            die()
        return real(*args, **more)
    setattr(owner, name, wrapped)

if point == "embed":  # after passages were embedded, before queries are
    before(served_student.ServedStudent, "encode", lambda *_, kind, **__: kind == "query")
elif point == "label":  # the new list is there, its pairs were scored, the rows are not written
    from gplfast.stages import label
    before(label, "_rows", lambda *_: "mine" in os.listdir(work + "/train/rgpl/refresh/1"))
elif point == "record":
    before(segments.SegmentFolders, "write", lambda self, number, record: number == 1)
elif point.startswith("stuck"):  # the list that is mined beside training is not finished
    before(served_student.ServedStudent, "encode", lambda *_, **__: time.sleep(1e6))
elif point == "drop":  # the student that mined was deleted in part
    rmtree = shutil.rmtree
    def dropping(path, *rest, **more):
        if "/refresh/1/student" in str(path) and os.path.isdir(path):
            os.unlink(os.path.join(path, "model.safetensors"))
            die()
        return rmtree(path, *rest, **more)
    shutil.rmtree = dropping
if point == "stuck at its end":
    before(background.Job, "wait", lambda *_: os.path.isdir(work + "/train/rgpl/refresh/1/student"))
elif point.startswith(("step", "stuck")):
    real = training._callback
    def stopping(mark, progress):
        callback = real(mark, progress)
        def stop(args, state, *rest, **more):
            if state.global_step == int(point[-2:]):
                die()
        callback.on_step_end = stop
        return callback
    training._callback = stopping
made = Pipeline(corpus, work, load_config(overrides=json.loads(settings)))
with made.work:
    made.run()
"""


def killed_at(point, world, work, options):
    command = [sys.executable, "-c", KILLER, point, world.corpus, work, json.dumps(settings(world, **options))]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    expected = 0 if point == "none" else -signal.SIGKILL
    assert done.returncode == expected, done.stderr
    return done


@pytest.mark.parametrize(
    ("mode", "points"),
    [
        ("sync", ["embed", "label", "record", "step 6", "step 9"]),
        ("async", ["step 2", "stuck at step 6", "stuck at its end", "drop", "step 10"]),
    ],
)
def test_kill_9_gives_the_weights_and_rows_of_one_run(world, work, request, mode, points):
    """In the middle of a refresh it goes on from the checkpoint before it, between two from the newest one."""
    options = {"refresh": {"mode": mode}}
    other = shutil.copytree(work, work.parent / "killed", ignore=shutil.ignore_patterns(".lock*"))
    once = request.getfixturevalue("beside" if mode == "async" else "whole")
    for point in points:
        killed_at(point, world, other, options)
    killed_at("none", world, other, options)
    again = other / "train" / "rgpl"
    assert weights(again) == weights(once)
    for number in (0, 1, 2):
        assert rows_of(again, number) == rows_of(once, number)
    logs = [json.loads((folder / "refreshes.json").read_text()) for folder in (once, again)]
    for entry in (entry for log in logs for entry in log):
        entry.pop("seconds")
    assert logs[0] == logs[1]
    assert not list(again.rglob("student*"))
