"""What is said before any work: wrong models, missing packages, flags without effect, what cannot be read."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny import run_cli as run

import gplfast
from gplfast import cli, config, preflight
from gplfast.errors import ArtifactError, ConfigError, DataError, MissingExtraError, ModelError
from gplfast.flags import read_settings
from gplfast.models import BiEncoder
from gplfast.models.checkpoint import fingerprint
from gplfast.pipeline import Pipeline, adapt
from gplfast.store.corpus import load_corpus
from gplfast.store.manifest import Manifest

pytestmark = pytest.mark.usefixtures("cache")

ROOT = Path(__file__).resolve().parent.parent


def pretend_trained(world, work, *, base, similarity="dot", record=True):
    """A work directory as training leaves it, without the training."""
    directory = work / "train" / "gpl"
    (directory / "model").mkdir(parents=True)
    for file in world.student.iterdir():
        (directory / "model" / file.name).write_bytes(file.read_bytes())
    made = {"pooling": "cls", "similarity": similarity}
    inputs = {"corpus": load_corpus(world.corpus).fingerprint}
    Manifest("model", inputs, made, {"base": fingerprint(base)}).write(directory)
    if record:
        (directory / "base.json").write_text(json.dumps({"name": str(base)}))


# ---- zero-shot


def test_zero_shot_is_what_was_trained_whatever_the_preset_says(world, tmp_path):
    pretend_trained(world, tmp_path, base=world.student)
    other = config.load_config(overrides={"train": {"base": str(world.teacher)}})
    pipeline = Pipeline(world.corpus, tmp_path, other, alone=True)
    system = pipeline.system("zero-shot")
    assert (system.model, system.pooling, system.similarity) == (world.student, "cls", "dot")
    wanted = system.wanted(pipeline.judged, other)
    assert (wanted.config["pooling"], wanted.config["similarity"]) == ("cls", "dot")
    assert wanted.models == {"student": fingerprint(world.student)}


def test_a_base_that_is_not_found_is_said(world, tmp_path):
    pretend_trained(world, tmp_path, base=world.student, record=False)
    other = config.load_config(overrides={"train": {"base": str(world.teacher)}})
    with pytest.raises(
        ArtifactError, match=r"was trained from another model than .*; give its directory with --train-"
    ):
        Pipeline(world.corpus, tmp_path, other, alone=True).system("zero-shot")
    same = config.load_config(overrides={"train": {"base": str(world.student)}})
    assert Pipeline(world.corpus, tmp_path, same, alone=True).system("zero-shot").model == world.student


def test_flags_of_another_student_are_refused(capsys, world, tmp_path):
    pretend_trained(world, tmp_path, base=world.student)
    common = ["evaluate", "--corpus", world.corpus, "--work", tmp_path, "--quiet"]
    status, _, err = run(capsys, *common, "--train-base", world.teacher)
    assert (status, err.count("\n")) == (2, 1)
    assert "--train-base is" in err
    assert "was trained with another" in err
    assert run(capsys, *common, "--train-similarity", "cosine")[0] == 2


def test_a_run_measures_the_plain_student_as_it_is_trained(world, tmp_path):
    settings = world.settings(train={"pooling": "max", "similarity": "dot"})
    pipeline = Pipeline(world.corpus, tmp_path, config.load_config(overrides=settings))
    system = pipeline.system("zero-shot")
    assert (system.pooling, system.similarity) == ("max", "dot")


def test_pooling_of_a_plain_model_changes_vectors_and_fingerprint(world):
    encoders = [BiEncoder.open(world.student, pooling=pooling, threads=1) for pooling in ("mean", "cls", "max")]
    assert len({encoder.fingerprint for encoder in encoders}) == 3
    assert encoders[0].fingerprint == BiEncoder.open(world.student, threads=1).fingerprint
    mean, cls, largest = (encoder.encode(["the king of france"]) for encoder in encoders)
    assert not np.allclose(mean, cls)
    assert (largest >= mean).all()


# ---- evaluation without a trained model


def test_evaluate_leaves_out_what_is_not_trained(capsys, world, tmp_path):
    work = tmp_path / "work"
    common = ["evaluate", "--corpus", world.corpus, "--work", work, "--quiet"]
    status, out, err = run(capsys, *common, "--systems", "bm25", "gpl")
    assert status == 0, err
    assert [line.split()[0] for line in out.splitlines()[3:-1]] == ["bm25"]
    status, _, err = run(
        capsys, "evaluate", "--corpus", world.corpus, "--work", tmp_path / "none", "--systems", "gpl", "genq"
    )
    assert status == 2
    assert "nothing to evaluate: of gpl, genq none is trained in" in err
    assert not (tmp_path / "none").exists()


def test_unknown_judgements_can_be_left_out(capsys, world, tmp_path):
    folder = tiny.write_corpus(tmp_path / "corpus", 12)
    with (folder / "qrels" / "test.tsv").open("a") as file:
        file.write("q1\tnowhere\t1\n")
    common = ["evaluate", "--corpus", folder, "--work", tmp_path / "w", "--systems", "bm25", "--quiet"]
    status, _, err = run(capsys, *common)
    assert (status, "nowhere" in err) == (2, True)
    assert run(capsys, *common, "--allow-unknown")[0] == 0


# ---- models of the wrong kind, packages that are missing


@pytest.mark.parametrize(
    ("setting", "model", "message"),
    [
        ("generate.model", "student", r"generator: .* is BertModel .* but must be a T5"),
        ("label.model", "student", r"cross-encoder: .* has no classifier.weight"),
        ("label.model", "generator", r"model_type is 't5' but an encoder must be one of"),
        ("train.base", "teacher", r"student: .* is BertForSequenceClassification .*, a cross-encoder"),
        ("mine.retrievers", "teacher", r"retriever: .* a cross-encoder, which scores pairs and has no vectors"),
        ("mine.retrievers", "generator", r"retriever: .* is T5.* but must be an encoder: bert"),
    ],
)
def test_models_of_the_wrong_kind_are_said_before_any_work(world, tmp_path, setting, model, message):
    path, (section, name) = str(getattr(world, model)), setting.split(".")
    settings = world.settings(**{section: {name: [path] if name == "retrievers" else path}})
    with pytest.raises(ModelError, match=message):
        adapt(world.corpus, work=tmp_path / "work", config=settings)
    assert not (tmp_path / "work").exists()


def test_a_teacher_has_one_output(tmp_path):
    from models.conftest import build_encoder

    folder = build_encoder(tmp_path, "bert", n_labels=3)
    with pytest.raises(ModelError, match=r"has 3 labels .* but a teacher must have 1"):
        preflight.teacher(folder, config.LabelConfig())
    preflight.teacher(folder, config.LabelConfig(relevance_label="LABEL_2", activation="softmax"))
    with pytest.raises(ConfigError, match="label is 'LABEL_3' but"):
        preflight.teacher(folder, config.LabelConfig(relevance_label="LABEL_3"))


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("torch", "gplfast[train]"),
        ("onnxruntime", "gplfast[cpu]"),
        ("ir_measures", "gplfast[eval]"),
        ("scipy", "gplfast[eval]"),
    ],
)
def test_a_missing_package_names_its_extra(world, tmp_path, monkeypatch, package, extra):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(
        MissingExtraError, match=rf" needs {package.replace('_', '-')}, .*: pip install '{re.escape(extra)}'"
    ):
        adapt(world.corpus, work=tmp_path / "work", config=world.settings(), evaluate=True)
    assert not (tmp_path / "work").exists()


def test_ask_refuses_a_cross_encoder(capsys, world):
    status, _, err = run(capsys, "ask", "q", "--model", world.teacher, "--corpus", world.corpus)
    assert (status, err.count("\n")) == (2, 1)
    assert "a cross-encoder, which scores pairs and has no vectors" in err


# ---- flags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--students", "genq", "--train-steps", "7"], r"--train-steps has no effect: genq is the only student"),
        (["--students", "genq", "--mine-negatives-per-query", "7"], r"--mine-negatives-per-query has no effect"),
        (["--genq-steps", "7"], r"--genq-steps has no effect: the students are gpl; add genq"),
        (["--refresh-every", "7"], r"--refresh-every has no effect: the students are gpl; add rgpl to --students"),
        (["--evaluate-split", "dev"], r"--evaluate-split has no effect: nothing is evaluated; add --evaluate"),
        (["--judgements", "x"], r"--judgements has no effect"),
        (["--students", "rgpl", "--refresh-below", "0.5"], "--refresh-below has no effect: only the mode adaptive"),
        (
            ["--students", "rgpl", "--refresh-mode", "async", "--refresh-sample-queries", "9"],
            "--refresh-sample-queries has no effect: only the mode adaptive reads it, not async",
        ),
        (["--mine-nprobe", "9"], "--mine-nprobe has no effect: only the search faiss-ivf reads it, not exact"),
        (["--filter-scored", "nano:student"], "--filter-scored has no effect: there is no limit of the score"),
    ],
)
def test_a_flag_without_effect_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(cli.parser().parse_args(["run", "--corpus", "c", "--work", "w", *arguments]))


OF_OTHER_LOSSES = [
    (["--in-batch-hard", "2"], "--train-in-batch-hard has no effect: not read by the loss margin-mse of [train]; see"),
    (["--guide", "g"], "--train-guide has no effect: not read by the loss margin-mse of [train]"),
    (["--loss", "kl", "--label-mean", "0.1"], "--train-label-mean has no effect: not read by the loss kl of [train]"),
    (
        ["--students", "genq", "--genq-negatives-per-row", "4"],
        "--genq-negatives-per-row has no effect: not read by the loss mnrl of [genq]",
    ),
    (
        ["--students", "genq", "--negatives-per-row", "4"],
        "--train-negatives-per-row has no effect: not read by the loss mnrl of [genq]",
    ),
    (
        ["--students", "gpl", "genq", "--loss-margin", "2"],
        "--train-loss-margin has no effect: not read by the loss margin-mse of [train] and mnrl of [genq]",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), OF_OTHER_LOSSES)
def test_a_flag_of_another_loss_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_settings(cli.parser().parse_args(["train", "--corpus", "c", "--work", "w", *arguments]))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--negatives-per-row", "4"],
        ["--loss", "mnrl", "--in-batch-hard", "2"],
        ["--loss", "cached-gist", "--guide", "g", "--mini-batch-size", "8"],
        ["--students", "genq", "--temperature", "0.1"],
        ["--students", "gpl", "genq", "--temperature", "0.1", "--negatives-per-row", "4"],
        ["--students", "rgpl", "genq", "--genq-in-batch-hard", "2"],
    ],
)
def test_a_flag_that_a_loss_reads_is_taken(tmp_path, arguments):
    """A file may hold what the loss does not read."""
    (tmp_path / "c.toml").write_text("[train]\nloss_margin = 2.0\n[genq]\nnegatives_per_row = 1\nsearch_top = 9\n")
    given = ["--corpus", "c", "--work", "w", "--config", str(tmp_path / "c.toml")]
    assert read_settings(cli.parser().parse_args(["train", *given, *arguments])).train.loss_margin == 2.0


def test_the_students_of_the_file_decide_what_flags_mean(tmp_path):
    (tmp_path / "c.toml").write_text('students = ["genq"]\n')
    given = ["--corpus", "c", "--work", "w", "--config", str(tmp_path / "c.toml")]
    assert read_settings(cli.parser().parse_args(["train", *given, "--steps", "12"])).genq.steps == 12
    with pytest.raises(ConfigError, match="genq is the only student"):
        read_settings(cli.parser().parse_args(["run", *given, "--train-steps", "12"]))
    student = read_settings(cli.parser().parse_args(["run", *given, "--student", "s"]))
    assert student.genq.base == "s"


def test_training_rgpl_takes_the_flags_of_its_labels():
    given = ["train", "--corpus", "c", "--work", "w", "--label-model", "t", "--refresh-mode", "async"]
    found = read_settings(cli.parser().parse_args([*given, "--students", "rgpl", "--steps", "9"]))
    assert (found.label.model, found.refresh.mode, found.train.steps) == ("t", "async", 9)
    with pytest.raises(ConfigError, match="--label-model has no effect: the students are gpl; add rgpl"):
        read_settings(cli.parser().parse_args(given[:7]))


def test_a_preset_beside_whole_settings_is_refused(world, tmp_path):
    with pytest.raises(ConfigError, match="preset is 'paper' but config is a RunConfig"):
        adapt(world.corpus, work=tmp_path, preset="paper", config=config.load_config())


@pytest.mark.parametrize("name", ["ask", "export"])
def test_ask_and_export_read_the_corpus_as_the_other_commands(capsys, name):
    status, out, _ = run(capsys, name, "--help")
    assert status == 0
    for flag in ("--input-text-column", "--input-split-words", "--config"):
        assert flag in out


def test_a_missing_column_names_the_flags(tmp_path):
    (tmp_path / "c.csv").write_text("id,body\n1,x\n")
    with pytest.raises(DataError, match=r"--input-id-column, --input-title-column, --input-text-column"):
        load_corpus(tmp_path / "c.csv")


# ---- input errors leave nothing behind, and are one line


@pytest.mark.parametrize("name", ["generate", "mine", "label", "train", "evaluate"])
def test_an_input_error_leaves_no_work_directory(capsys, tmp_path, name):
    status, _, err = run(capsys, name, "--corpus", tmp_path / "nowhere", "--work", tmp_path / "w")
    assert (status, err.count("\n")) == (2, 1)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "/full/x"), PermissionError(13, "denied", "/x")]
)
def test_an_error_of_the_system_is_one_line(capsys, monkeypatch, world, tmp_path, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Pipeline, "check", fail)
    status, _, err = run(capsys, "run", "--corpus", world.corpus, "--work", tmp_path / "w")
    assert (status, err) == (2, f"gplfast: error: {error.filename}: {error.strerror}\n")


def test_a_work_directory_below_a_file_is_one_line(capsys, world, tmp_path):
    (tmp_path / "file").write_text("")
    work = tmp_path / "file" / "sub"
    status, _, err = run(capsys, "evaluate", "--corpus", world.corpus, "--work", work, "--systems", "bm25")
    assert (status, err.count("\n")) == (2, 1)
    assert re.match(r"gplfast: error: .*file.*: Not a directory", err)


# ---- README and the package


def readme_flags():
    """(command or None, flag) of every flag in README's code blocks and text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    lines += re.findall(r"`(gplfast [^`|]*)`", text)
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["gplfast"]:
            command = " ".join(words[1:3]) if words[1] == "bench" else words[1]
            yield from ((command, word) for word in words[2:] if word.startswith("--"))
    yield from ((None, flag) for flag in re.findall(r"`(--[\w.-]+)", text))


def test_every_flag_of_readme_exists():
    commands = dict(cli.parser()._subparsers._group_actions[0].choices)
    for name, command in commands["bench"]._subparsers._group_actions[0].choices.items():
        commands[f"bench {name}"] = command
    found = list(readme_flags())
    assert len(found) > 10
    for command, flag in found:
        assert flag in commands[command or "run"]._option_string_actions, f"gplfast {command or 'run'} has no {flag}"


def test_the_steps_are_functions_of_the_package():
    from gplfast import steps

    for name in ("generate", "mine", "label", "train", "evaluate"):
        assert getattr(gplfast, name) is getattr(steps, name)


def test_a_table_without_a_result_must_say_so(monkeypatch, tmp_path):
    if not (ROOT / "benchmarks" / "report.py").is_file():
        pytest.skip("benchmarks/ is not part of this installation")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("benchmarks_report", ROOT / "benchmarks" / "report.py")
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    said = f"<!-- nano:begin -->\n{report.UNMEASURED}\n<!-- nano:end -->"
    assert report.rendered(said, "nano") == said
    assert report.rendered("<!-- nano:begin -->\n<!-- nano:end -->", "nano") == said
    with pytest.raises(SystemExit, match="needs one pair"):
        report.rendered("no table", "nano")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("<!-- adapt:begin -->\n<!-- adapt:end -->")
    monkeypatch.setattr(report, "TABLES", {"adapt": report.TABLES["adapt"]})
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    with pytest.raises(SystemExit, match="is not what benchmarks/results say"):
        report.main()
