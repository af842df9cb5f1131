"""Processes that torchrun starts train together what one process would; here two on the processor, over gloo."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from stages import trainings

from gplfast import cli, ranks
from gplfast.errors import ConfigError, DataError, LockedError
from gplfast.models import meeting, training_rows
from gplfast.store.workdir import WorkDir

pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")


def torchrun(n, *arguments, **environment):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    found = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(
        [*command, *map(str, arguments)], env=found, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture(scope="module")
def student(tmp_path_factory, world):
    """Without dropout, whose random numbers are another share's in each process."""
    folder = tmp_path_factory.mktemp("ranks") / "student"
    shutil.copytree(world.student, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory, student):
    folder = tmp_path_factory.mktemp("together")
    done = torchrun(2, Path(trainings.__file__), student, folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture
def two_processes(monkeypatch):
    """The environment of the first of them."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)


def embedded(model):
    from sentence_transformers import SentenceTransformer

    found = SentenceTransformer(str(model), device="cpu").encode(tiny.texts(30, seed=5), show_progress_bar=False)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def assert_same(one, two, before):
    """Both embed alike, and far from where they began.

    Not their weights: a gradient that is zero but for rounding, as of a key's bias, moves Adam like any other.
    """
    one, two, before = embedded(one), embedded(two), embedded(before)
    assert np.abs(one - before).max() > 1e-2
    assert np.abs(one - two).max() < 0.01 * np.abs(one - before).max()


# Those in which two processes do what one does.
SAME = [name for name in trainings.CASES if "gist" not in name and name not in {"adore", "mnrl, some epochs"}]


@pytest.mark.parametrize("case", SAME)
def test_two_processes_train_what_one_does(tmp_path, student, together, case):
    model = trainings.run(case, student, tmp_path)
    assert_same(model, together / case / "model", student)
    alone, shared = (json.loads((folder / case / "training.json").read_text()) for folder in (tmp_path, together))
    assert [row["step"] for row in shared["losses"]] == [row["step"] for row in alone["losses"]]
    if "selection" in alone:
        assert shared["selection"]["best_step"] == alone["selection"]["best_step"]
        curves = [[look["step"] for look in found["selection"]["curve"]] for found in (alone, shared)]
        assert curves[0] == curves[1]


def test_gist_gathers_passages_and_compares_its_own_queries_only(student, together):
    """So sentence-transformers has it: both of its losses do the same, which is not what one process does."""
    assert_same(together / "gist" / "model", together / "cached-gist" / "model", student)


def test_a_training_of_two_that_died_is_ended_by_one(tmp_path, student):
    died = torchrun(2, Path(trainings.__file__), student, tmp_path / "died", "mnrl", 5)
    assert died.returncode != 0
    assert "stopped after step 5" in died.stderr
    checkpoints = tmp_path / "died" / "mnrl" / "checkpoints"
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-4"]
    assert len(list(checkpoints.glob("checkpoint-4/rng_state_*"))) == 2
    model = trainings.run("mnrl", student, tmp_path / "died", stop=3)  # from the beginning it would end there
    whole = trainings.run("mnrl", student, tmp_path / "whole")
    assert_same(model, whole, student)


def losses(folder):
    return [(row["step"], row["loss"]) for row in json.loads((folder / "training.json").read_text())["losses"]]


def test_batches_that_are_left_out_cost_no_steps(together):
    assert [step for step, _ in losses(together / "mnrl, some epochs")] == list(range(1, 9))


def test_two_processes_go_on_within_a_later_epoch_as_if_they_had_not_stopped(tmp_path, student, together):
    case = "mnrl, some epochs"
    assert torchrun(2, Path(trainings.__file__), student, tmp_path, case, 5).returncode != 0
    assert [path.name for path in (tmp_path / case / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]
    done = torchrun(2, Path(trainings.__file__), student, tmp_path, case, 0)
    assert done.returncode == 0, done.stderr[-4000:]
    np.testing.assert_allclose(losses(tmp_path / case), losses(together / case), rtol=1e-4)


@pytest.mark.parametrize("case", ["mnrl", "mnrl, without negatives"])
def test_no_batch_that_two_processes_can_share_is_an_error(two_processes, student, case):
    found = trainings.rows(case, student)
    few = np.arange(40) % 6  # different ones, fewer than a batch
    found = dataclasses.replace(found, queries=few, positives=few)
    if found.negatives is not None:
        found = dataclasses.replace(found, negatives=few + 10, margins=np.ones(40, np.float32))
    config = dataclasses.replace(trainings.CONFIG, loss="mnrl")
    with pytest.raises(DataError, match="batch_size is 8 but at most 6 rows found"):
        list(training_rows.batch_sampler(found, config)(range(40), 4, drop_last=True))


@pytest.mark.parametrize("case", ["margin-mse", "mnrl, without negatives"])
def test_fewer_rows_than_two_processes_can_share_are_an_error(two_processes, tmp_path, monkeypatch, student, case):
    found = trainings.rows(case, student)
    names = [name for name in ("queries", "positives", "negatives", "margins") if getattr(found, name) is not None]
    found = dataclasses.replace(found, **{name: getattr(found, name)[:6] for name in names})
    monkeypatch.setattr(trainings, "rows", lambda *_: found)
    monkeypatch.setattr(meeting, "meet", lambda: None)
    with pytest.raises(DataError, match="batch_size is 8 but there are 6 training rows, and 2 processes"):
        trainings.run(case, student, tmp_path)


def test_adore_of_two_processes_keeps_the_encoder_of_the_documents(student, together):
    model = together / "adore" / "model"
    assert np.abs(embedded(model) - embedded(student)).max() > 1e-2
    assert np.allclose(embedded(model / "documents"), embedded(student), atol=1e-6)


def test_the_steps_of_a_script_under_torchrun(tmp_path, world, student):
    """The others wait for what the first process makes before they look for it."""
    settings = world.settings(train={"base": str(student)})
    script = tmp_path / "run.py"
    script.write_text(
        "import json, sys\nimport gplfast\n"
        f"here = {{'work': sys.argv[1], 'config': json.loads(sys.argv[2])}}\ncorpus = {str(world.corpus)!r}\n"
        "made = [step(corpus, **here) for step in (gplfast.generate, gplfast.mine, gplfast.label)]\n"
        "model = gplfast.train(corpus, **here)\n"
        "table = gplfast.evaluate(corpus, **here)\n"
        "print('made', sum(item is not None for item in made), model.name, len(table) > 0, flush=True)\n"
    )
    done = torchrun(2, script, tmp_path / "work", json.dumps(settings), GPLFAST_CACHE=str(world.cache))
    assert done.returncode == 0, done.stderr[-4000:]
    assert sorted(re.findall("made .*", done.stdout)) == ["made 0 model False", "made 3 model True"]
    assert (tmp_path / "work" / "report.json").is_file()


def test_only_training_leaves_the_lock_to_the_first_process(tmp_path, two_processes, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    work = WorkDir(tmp_path)
    with work.together():
        assert not work.locked
    with work:
        assert work.locked
        with pytest.raises(LockedError), WorkDir(tmp_path):
            pass


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_whole_pipeline_under_torchrun(tmp_path, world, student, mode):
    """The first process generates, mines, labels and mines again; both train. R-GPL's rows are those of one process."""
    from gplfast.pipeline import adapt
    from gplfast.store.atomic import read_parquet

    settings = world.settings(
        students=["gpl", "rgpl"], train={"base": str(student), "steps": 6}, refresh={"every": 2, "mode": mode}
    )
    script = tmp_path / "run.py"
    script.write_text(
        "import json, sys\nfrom gplfast import adapt\n"
        f"print(adapt({str(world.corpus)!r}, work=sys.argv[1], config=json.loads(sys.argv[2])).model)\n"
    )
    done = torchrun(2, script, tmp_path / "two", json.dumps(settings), GPLFAST_CACHE=str(world.cache))
    assert done.returncode == 0, done.stderr[-4000:]
    adapt(str(world.corpus), work=tmp_path / "one", config=settings)
    for name in ("gpl", "rgpl"):
        assert_same(*(tmp_path / run / "train" / name / "model" for run in ("one", "two")), student)
    for segment in (1, 2):
        rows = [tmp_path / run / "train" / "rgpl" / "refresh" / str(segment) / "label" for run in ("one", "two")]
        one, two = (read_parquet(next(folder.glob("*.parquet"))) for folder in rows)
        assert one["query"].equals(two["query"])
    log = json.loads((tmp_path / "two" / "train" / "rgpl" / "refreshes.json").read_text())
    assert [entry["step"] for entry in log] == [2, 4]


def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path, world, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"\[train\] batch_size is 32 but 3 processes share it"):
        ranks.share(32, "[train]")
    status = cli.main(["run", "--corpus", str(world.corpus), "--work", str(tmp_path / "work"), *world.flags()])
    assert status == 2
    assert "batch_size is 4 but 3 processes share it; give a multiple of that" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_other_processes_do_nothing_in_commands_without_training(tmp_path, world, two_processes, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["generate", "--corpus", str(world.corpus), "--work", str(tmp_path / "work")]) == 0
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "work").exists()


def test_one_process_is_the_first_and_waits_for_nobody(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert (ranks.rank(), ranks.world_size(), ranks.first()) == (0, 1, True)
    meeting.meet()
    assert meeting.in_turn(lambda: 3) == 3
    assert meeting.of_first(lambda: 4) == 4
    monkeypatch.setenv("RANK", "5")  # left over from something else: no size, no address
    assert (ranks.rank(), ranks.first()) == (0, True)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("MASTER_ADDR", "localhost")  # as of a Kubernetes job: accelerate would not share its work
    assert (ranks.rank(), ranks.world_size()) == (0, 1)


def test_a_size_of_something_else_is_refused_before_training_waits_for_it(tmp_path, student, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2 but LOCAL_RANK, MASTER_ADDR, RANK not set"):
        trainings.run("margin-mse", student, tmp_path)


def test_a_process_that_sees_several_gpus_trains_on_one(tmp_path):
    """sentence-transformers' trainer would multiply the batch by their number and train on all."""
    from gplfast.models import training

    rows = trainings.rows("margin-mse", tmp_path)
    made = training._arguments(
        tmp_path, trainings.CONFIG, rows, training.training_rows.file_order, n_steps=2, seed=0, precision="fp32"
    )
    made._n_gpu = 4
    assert made.n_gpu == 1
    assert made.train_batch_size == trainings.CONFIG.batch_size
