"""The whole of it on tiny random models: order, freshness, kill -9, and every architecture."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from models.conftest import build_encoder, build_t5

import gplfast
from gplfast.config import load_config
from gplfast.errors import ArtifactError, DataError, HubError, LockedError, ModelError
from gplfast.pipeline import Pipeline, adapt
from gplfast.steps import export_gpl, generate, label, mine
from gplfast.store.corpus import load_corpus

pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("cache")]


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A work directory after a whole run with evaluation; tests that change it copy nothing but settings."""
    os.environ["GPLFAST_CACHE"] = str(world.cache)
    work = tmp_path_factory.mktemp("finished")
    return adapt(world.corpus, work=work, config={**world.settings(), "students": ["gpl", "genq"]}, evaluate=True)


def pipeline(world, work, **overrides):
    return Pipeline(world.corpus, work, load_config(overrides=world.settings(**overrides)))


def test_a_run_makes_models_and_a_report(world, finished):
    assert sorted(finished.models) == ["genq", "gpl"]
    assert finished.model == finished.models["gpl"]
    assert (finished.model / "model.safetensors").is_file()
    report = json.loads((finished.work / "report.json").read_text())
    assert report == finished.report
    assert report["collection"] == "corpus"
    assert list(finished.report["systems"]) == ["bm25", "zero-shot", "genq", "gpl"]
    assert set(report["systems"]["gpl"]) == {"nDCG@10", "MRR@10", "Recall@100", "MAP"}
    assert report["systems"]["bm25"]["nDCG@10"] > 0.5
    assert "gpl vs zero-shot" in report["p_values"]
    assert list(finished.report["seconds"])[:3] == ["generate", "mine", "label"]
    assert gplfast.adapt is adapt


def test_a_second_run_does_nothing_again(world, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.work.rglob("*.parquet")}
    done = []
    again = adapt(
        world.corpus,
        work=finished.work,
        config={**world.settings(), "students": ["gpl", "genq"]},
        evaluate=True,
        report=lambda *what: done.append(what),
    )
    assert again.report == finished.report
    assert done == []
    assert before == {path: path.stat().st_mtime_ns for path in finished.work.rglob("*.parquet")}


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({}, {}),
        ({"generate": {"batch_size": 3}}, {}),
        (
            {"generate": {"top_p": 0.9}},
            {
                "generate": "config.top_p is 0.9 but was 0.95",
                "mine": "inputs.queries changed",
                "evaluate gpl": "waits for train gpl",
            },
        ),
        (
            {"mine": {"negatives_per_query": 3}},
            {"mine": "config.negatives_per_query is 3 but was 5", "train gpl": "inputs.margins changed"},
        ),
        ({"label": {"max_seq_length": 9}}, {"label": "config.max_seq_length is 9 but was 32"}),
        ({"train": {"steps": 5}}, {"label": "config.steps is 5 but was 4", "train gpl": "config.steps is 5 but was 4"}),
        ({"train": {"rescale_range": [-1, 1]}}, {"train gpl": "config.rescale_range is [-1.0, 1.0] but was []"}),
        ({"evaluate": {"top_k": 20}}, {"evaluate bm25": "config.top_k is 20 but was 100"}),
        ({"seed": 4}, {"generate": "config.seed is 4 but was 0"}),
    ],
)
def test_the_plan_names_what_is_stale_and_why(world, finished, change, stale):
    """GPL looked only whether files were there, whatever had made them."""
    plan = pipeline(world, finished.work, **change).plan(evaluate=True)
    reasons = {item.step: item.reason for item in plan if not item.fresh}
    for step, reason in stale.items():
        assert reason in reasons[step]
    if not stale:
        assert not reasons
    kept = {"mine": {"generate"}, "label": {"generate", "mine"}}
    first = next(iter(stale), "")
    assert not kept.get(first, set()) & set(reasons)


def test_a_plan_of_nothing_writes_nothing(world, tmp_path):
    plan = pipeline(world, tmp_path / "work").plan(evaluate=True)
    assert [(item.step, item.reason) for item in plan[:4]] == [
        ("generate", "missing"),
        ("mine", "missing"),
        ("label", "missing"),
        ("train gpl", "missing"),
    ]
    assert not (tmp_path / "work").exists()


def test_a_changed_corpus_makes_everything_stale(world, finished):
    changed = Pipeline(tiny.corpus(5), finished.work, load_config(overrides=world.settings()))
    assert {item.reason for item in changed.plan()} >= {"inputs.corpus changed"}
    alone = Pipeline(tiny.corpus(5), finished.work, load_config(overrides=world.settings()), alone=True)
    with pytest.raises(ArtifactError, match="was made from another corpus; run `gplfast generate` again"):
        alone.wanted("mine")


def test_a_step_alone_takes_what_is_there(world, tmp_path, finished):
    with pytest.raises(
        ArtifactError, match="generate is missing or not finished; run `gplfast generate` or `gplfast run` first"
    ):
        mine(world.corpus, work=tmp_path, config=world.settings())
    queries = generate(world.corpus, work=tmp_path, config=world.settings(generate={"top_p": 0.8}))
    assert queries.ids[0] == "genQ1"
    negatives = mine(world.corpus, work=tmp_path, config=world.settings())  # not these settings' queries, and fine
    assert negatives.retrievers == ["student", "bm25"]
    margins = label(world.corpus, work=tmp_path, config=world.settings())
    assert len(margins) == 16


def test_what_is_made_can_be_written_as_gpls_files(world, finished, tmp_path):
    from gplfast.interop import gpl

    work = Pipeline(world.corpus, finished.work, load_config(), alone=True)
    written = [path.relative_to(tmp_path).as_posix() for path in export_gpl(work, tmp_path)]
    assert written[0] == "corpus.jsonl"
    assert load_corpus(tmp_path).fingerprint == load_corpus(world.corpus).fingerprint
    written = written[1:]
    assert written == ["qgen-queries.jsonl", "qgen-qrels/train.tsv", "hard-negatives.jsonl", "gpl-training-data.tsv"]
    corpus, queries = load_corpus(world.corpus), gpl.read_queries(tmp_path / written[0])
    assert queries.ids[0] == "genQ1"
    assert gpl.read_hard_negatives(tmp_path / written[2], corpus, queries).negatives.retrievers == ["student", "bm25"]
    assert len(gpl.read_training_data(tmp_path / written[3], corpus, queries)) == 16


def test_no_judgements_is_said_before_any_work(world, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("some text")
    with pytest.raises(DataError, match="has no qrels/ with judgements; give a BEIR folder"):
        adapt(tmp_path / "docs", work=tmp_path / "work", config=world.settings(), evaluate=True)
    with pytest.raises(DataError, match="a corpus in memory has no judgements"):
        adapt(["a text"], work=tmp_path / "work", config=world.settings(), evaluate=True)
    assert not (tmp_path / "work").exists()


def test_a_teacher_with_several_labels_needs_to_be_told_which(world, tmp_path, tmp_path_factory):
    teacher = str(build_encoder(tmp_path_factory.mktemp("labels"), "bert", n_labels=3))
    queries = generate(world.corpus, work=tmp_path, config=world.settings())
    assert len(mine(world.corpus, work=tmp_path, config=world.settings()).retrievers) == 2
    with pytest.raises(ModelError, match=r"has 3 labels .*label.relevance_label"):
        label(world.corpus, work=tmp_path, config=world.settings(label={"model": teacher}))
    found = [
        label(world.corpus, work=tmp_path, config=world.settings(label={"model": teacher, "relevance_label": name}))
        for name in ("LABEL_0", "2")
    ]
    assert len(queries)
    assert abs(found[0].margins - found[1].margins).max() > 1e-3


def test_one_writer_per_work_directory(world, tmp_path):
    first = pipeline(world, tmp_path)
    with first.work, pytest.raises(LockedError, match="is being written by process"):
        adapt(world.corpus, work=tmp_path, config=world.settings())


def test_an_unreachable_hub_is_said_plainly(world, tmp_path, monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(HubError, match="the model hub cannot be reached"):
        adapt(world.corpus, work=tmp_path, preset="paper")


# ---- kill -9


def command(world, corpus, work):
    return [
        sys.executable,
        "-m",
        "gplfast",
        "run",
        "--quiet",
        "--corpus",
        str(corpus),
        "--work",
        str(work),
        *world.flags(),
    ]


# Enough work in each step that it can be hit in the middle.
_MORE = [
    "--train-steps",
    "12",
    "--train-batch-size",
    "512",
    "--train-checkpoint-steps",
    "4",
    "--train-max-seq-length",
    "8",
]
_MORE += ["--mine-negatives-per-query", "25"]
_KILLS = {
    "generate": "generate/shard-00000.parquet",
    "mine": "embeddings/*/embeddings.json",
    "label": "scores/*/scores-000000.parquet",
    "train": "train/gpl/checkpoints/checkpoint-4/gplfast.json",
}


def kill_when(pattern, arguments, work, finished_file):
    """Start, and kill -9 as soon as a file is there. Says whether the step was still unfinished then."""
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(work.glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"{pattern} did not appear"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    return not (work / finished_file / "manifest.json").exists()


def test_kill_9_in_every_step_gives_the_bytes_of_one_run(world, tmp_path):
    corpus = tiny.write_corpus(tmp_path / "corpus", 700, n_words=12)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command(world, corpus, whole), *_MORE], check=True, capture_output=True)
    killed.mkdir()
    for step, pattern in _KILLS.items():
        unfinished = kill_when(
            pattern, [*command(world, corpus, killed), *_MORE], killed, "train/gpl" if step == "train" else step
        )
        assert unfinished, f"{step} was over before it could be killed"
    subprocess.run([*command(world, corpus, killed), *_MORE], check=True, capture_output=True)
    compared = 0
    for step in ("generate", "mine", "label", "train/gpl/model"):
        for path in sorted(file for file in (whole / step).rglob("*") if file.is_file()):
            assert path.read_bytes() == (killed / path.relative_to(whole)).read_bytes(), path.relative_to(whole)
            compared += 1
    assert compared > 10


# ---- architectures


@pytest.mark.parametrize(
    ("generator", "encoder"),
    [("v1.0", "bert"), ("v1.1", "minilm"), ("v1.0", "distilbert"), ("v1.1", "mpnet"), ("v1.0", "xlm-roberta")],
)
def test_checkpoints_of_each_architecture_run(tmp_path, world, generator, encoder):
    """Generator, teacher and student of one architecture each: exported, served and trained by `run`."""
    folders = [tmp_path / name for name in ("generator", "teacher", "student")]
    for folder in folders:
        folder.mkdir()
    build_t5(folders[0], generator)
    build_encoder(folders[1], encoder, n_labels=1)
    build_encoder(folders[2], encoder)
    settings = world.settings(
        generate={"model": str(folders[0]), "queries_per_passage": 1, "max_queries": 12},
        mine={"retrievers": [str(folders[2])]},
        label={"model": str(folders[1])},
        train={"base": str(folders[2]), "steps": 2, "max_seq_length": 16},
        evaluate={"systems": ["zero-shot", "gpl"]},
    )
    adapted = adapt(world.corpus, work=tmp_path / "work", config=settings, evaluate=True)
    config = json.loads((adapted.model / "config.json").read_text())
    assert config["model_type"] == {"minilm": "bert"}.get(encoder, encoder)
    assert set(adapted.report["systems"]) == {"zero-shot", "gpl"}
    assert Path(adapted.model / "modules.json").is_file()
