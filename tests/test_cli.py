from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import tiny
from tiny import run_cli as run

from gplfast import cli
from gplfast.flags import read_settings
from gplfast.pipeline import adapt
from gplfast.store.manifest import Manifest


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    found = tiny.world(tmp_path_factory)
    os.environ["GPLFAST_CACHE"] = str(found.cache)
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--work", "w"], r"gplfast run: error: the following arguments are required: --corpus"),
        (["runn"], r"gplfast: error: argument command: invalid choice: 'runn'"),
        (["run", "--corpus", "c", "--work", "w", "--tops", "1"], r"unrecognized arguments: --tops 1"),
        (["run", "--corpus", "c", "--work", "w", "--train-step", "1"], r"unrecognized arguments: --train-step 1"),
        (["run", "--corpus", "c", "--work", "w", "--train-steps", "x"], r"--train-steps: 'x' is not a whole number"),
        (
            ["run", "--corpus", "c", "--work", "w", "--generate-top-p", "2"],
            r"--generate-top-p is 2.0 but must be at most 1",
        ),
        (
            ["run", "--corpus", "c", "--work", "w", "--students", "mse"],
            r"--students is 'mse' but must be one of gpl, rgpl, genq",
        ),
        (["run", "--corpus", "c", "--work", "w", "--preset", "big"], r"argument --preset: invalid choice: 'big'"),
        (["run", "--corpus", "nowhere", "--work", "w", "--generator", "."], r"gplfast: error: nowhere"),
        (["run", "--corpus", "c", "--work", "w", "--config", "no.toml"], r"gplfast: error: no.toml: cannot be read"),
        (["ask", "q", "--model", "m", "--corpus", "c", "-k", "0"], r"gplfast: error: -k is 0 but must be at least 1"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["run", "generate", "mine", "label", "train", "evaluate", "ask", "demo", "export", "info", "bench"]
)
def test_every_command_has_help_with_an_example(capsys, name):
    status, out, _ = run(capsys, name, "--help")
    assert status == 0
    assert f"gplfast {name}" in out
    assert "example" in out


def test_flags_come_from_the_settings(capsys):
    _, out, _ = run(capsys, "run", "--help")
    for flag in (
        "--generate-top-p",
        "--mine-negatives-per-query",
        "--label-activation",
        "--train-rescale-range",
        "--genq-steps",
    ):
        assert flag in out
    _, out, _ = run(capsys, "generate", "--help")
    assert "--top-p FLOAT, --generate-top-p FLOAT" in out


def test_help_says_what_each_preset_does_without_a_flag(capsys):
    _, out, _ = run(capsys, "mine", "--help")
    text = " ".join(out.split())
    assert "negatives per query and retriever [nano: 30; paper: 50]" in text
    assert "the best, or drawn at random [top]" in text
    assert "same text as the positive [on]" in text
    assert "(negminer: 0.05) --filter-near-negative" in text  # off by default
    assert "passages, n x n [on]" in text  # of labelled queries
    _, out, _ = run(capsys, "ask", "--help")
    assert "[" not in out.partition("CPU threads")[2].partition("--provider")[0]


def config_of(*arguments):
    return read_settings(cli.parser().parse_args(list(arguments)))


def test_flags_go_over_the_file_and_the_preset(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[train]\nsteps = 7\nlearning_rate = 1e-3\n")
    given = ["--corpus", "c", "--work", "w"]
    config = config_of("run", *given, "--config", str(file), "--train-steps", "9", "--retrievers", "a", "bm25")
    assert (config.train.steps, config.train.learning_rate, config.mine.retrievers) == (9, 1e-3, ("a", "bm25"))
    config = config_of(
        "run", *given, "--student", "s", "--no-mine-exclude-duplicates", "--train-rescale-range", "-1", "1"
    )
    assert (config.train.base, config.genq.base, config.mine.exclude_duplicates) == ("s", "s", False)
    assert config.train.rescale_range == (-1.0, 1.0)
    config = config_of("train", *given, "--students", "genq", "--steps", "12", "--batch-size", "6")
    assert (config.genq.steps, config.genq.batch_size) == (12, 6)
    config = config_of("mine", *given, "--negatives-per-query", "3", "--metrics", "dot")
    assert (config.mine.negatives_per_query, config.mine.metrics) == (3, ("dot",))


@pytest.mark.filterwarnings("ignore")
def test_run_plan_evaluate_export_and_ask(capsys, caplog, world, tmp_path):
    pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
    common = ["--corpus", world.corpus, "--work", tmp_path / "w"]
    status, out, _ = run(capsys, "run", *common, *world.flags(), "--dry-run", "--quiet")
    assert (status, out) == (
        0,
        "stale  generate: missing\nstale  mine: missing\nstale  label: missing\nstale  train gpl: missing\n",
    )
    status, out, err = run(capsys, "run", *common, *world.flags(), "--evaluate")
    assert status == 0, err
    model, head, columns, _, *rows = out.splitlines()
    assert model == str((tmp_path / "w" / "train" / "gpl" / "model").resolve())
    assert re.match(r"corpus \(test, 10 queries; p: paired t-test, two-sided\)", head)
    assert columns.split()[:5] == ["system", "nDCG@10", "MRR@10", "Recall@100", "MAP"]
    assert [row.split()[0] for row in rows] == ["bm25", "zero-shot", "gpl", "seconds:", "models:"]
    assert rows[-1].split()[1:5] == ["generator", "cpu-fp32", "student", "cpu-fp32"]
    served = Manifest.read(tmp_path / "w" / "label").served
    assert served["teacher"]["runtime"] == "cpu-fp32"
    assert "train" in err
    assert "100%" in err
    counts = Manifest.read(tmp_path / "w" / "generate").counts
    assert ", ".join(f"{name} {value}" for name, value in counts.items()) in caplog.text
    status, out, _ = run(capsys, "run", *common, *world.flags(), "--dry-run", "--evaluate", "--quiet")
    assert {line.split()[0] for line in out.splitlines()} == {"fresh"}
    status, out, _ = run(capsys, "run", *common, *world.flags(), "--dry-run", "--quiet", "--generate-top-k", "9")
    assert out.splitlines()[0] == "stale  generate: config.top_k is 9 but was 25"

    status, out, _ = run(capsys, "evaluate", *common, "--quiet", "--model", world.student, "--systems", "bm25", "gpl")
    assert [row.split()[0] for row in out.splitlines()[3:-2]] == ["bm25", "gpl", str(world.student)]
    status, out, _ = run(capsys, "export", *common, "--output", tmp_path / "gpl")
    assert len(out.splitlines()) == 5
    status, out, _ = run(
        capsys,
        "ask",
        "the king",
        "--model",
        world.student,
        "--model",
        model,
        "--corpus",
        world.corpus,
        "-k",
        2,
        "--quiet",
    )
    assert status == 0
    assert out.splitlines()[0].count("|") == 1
    assert re.search(r"1\. 0\.\d{4}  d\d+ .*\| 1\. 0\.\d{4}  d\d+", out)
    status, out, err = run(capsys, "run", *common, "--quiet", "--evaluate", "--judgements", tmp_path)
    assert status == 2
    assert err.count("\n") == 1


def test_a_step_says_where_its_artifact_is(capsys, world, tmp_path):
    common = ["--corpus", world.corpus, "--work", tmp_path, "--quiet", "--threads", "1"]
    status, out, _ = run(
        capsys, "generate", *common, "--model", world.generator, "--max-queries", "8", "--queries-per-passage", "2"
    )
    assert status == 0
    assert re.fullmatch(r"\S+/generate: .*\bpassages 4\b.*\n", out), out
    status, _, err = run(capsys, "label", *common, "--model", world.teacher)
    assert status == 2
    assert "mine is missing or not finished; run `gplfast mine` or `gplfast run` first" in err


def test_info_names_versions_and_the_instruction_set(capsys):
    status, out, _ = run(capsys, "info")
    assert status == 0
    for name in (
        "gplfast: 0.",
        "onnxruntime installed: onnxruntime",
        "torch: ",
        "extension isa: ",
        "extension threads: ",
    ):
        assert name in out


def test_info_says_when_both_onnxruntimes_are_installed(capsys, monkeypatch):
    from gplfast.models import session

    found = {"installed": {"onnxruntime": "1", "onnxruntime-gpu": "1"}, "conflict": "both are installed"}
    monkeypatch.setattr(session, "info", lambda: found)
    _, _, err = run(capsys, "info")
    assert err == "warning: both are installed\n"


def test_the_module_is_the_command():
    process = subprocess.run([sys.executable, "-m", "gplfast", "--help"], capture_output=True, text=True, check=True)
    assert process.stdout.startswith("usage: gplfast ")


def test_python_callers_get_errors_not_exits(world, tmp_path):
    with pytest.raises(ValueError, match="stepps is not a setting; did you mean steps"):
        adapt(world.corpus, work=tmp_path, config=json.loads('{"train": {"stepps": 3}}'))
