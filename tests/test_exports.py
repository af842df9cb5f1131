"""`gplfast export`: generated queries in every format, scored as the step label scored them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from tiny import lines_of, run_cli

import gplfast
from gplfast.labelled_settings import FORMATS
from gplfast.store.manifest import Manifest


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A work directory of the pipeline with tiny models."""
    os.environ["GPLFAST_CACHE"] = str(world.cache)
    folder = tmp_path_factory.mktemp("run")
    gplfast.adapt(world.corpus, work=folder, config=world.settings())
    return folder


def test_generated_queries_in_every_format(world, run, tmp_path, capsys):
    names = [name for name in FORMATS if name not in ("negminer", "gpl")]
    flags = ["--teacher", world.teacher, "--threads", 1, "--quiet"]
    given = ["--corpus", world.corpus, "--work", run, "--output", tmp_path / "a", "--format", *names]
    status, out, err = run_cli(capsys, "export", *given, *flags)
    assert status == 0, err
    pipeline = gplfast.pipeline.Pipeline(world.corpus, run, gplfast.pipeline.as_config(world.settings()), alone=True)
    queries, negatives, margins = pipeline.queries(), pipeline.negatives(), pipeline.margins()
    lines = {line["query_id"]: line for line in lines_of(tmp_path / "a" / "tevatron" / "train.jsonl")}
    ids = pipeline.corpus.ids
    for query, name in enumerate(queries.ids):
        assert lines[name]["positive_document_ids"] == [ids[queries.passages[query]]]
        union = {ids[row] for ranked in negatives.lists.values() for row in ranked[query]}
        assert set(lines[name]["negative_document_ids"]) == union
        assert len(lines[name]["negative_document_ids"]) == len(union)
    n_compared = 0
    scored = {line["query"]: line for line in lines_of(tmp_path / "a" / "flag-embedding.jsonl")}
    for query, positive, negative, margin in zip(
        margins.queries, margins.positives, margins.negatives, margins.margins, strict=True
    ):
        line = scored[queries.texts[query]]
        if line["pos"] == [pipeline.corpus.text(positive)]:  # of queries with the same text the last one is there
            at = line["neg"].index(pipeline.corpus.text(negative))
            assert line["pos_scores"][0] - line["neg_scores"][at] == pytest.approx(margin, abs=1e-5)
            n_compared += 1
    assert n_compared > 0
    assert len(out.split()) == len(names) + 2


@pytest.mark.parametrize(
    "case",
    [("trec", "a TREC run needs scores"), ("negminer", "negminer's lines need cosines")],
    ids=lambda case: case[0],
)
def test_an_export_that_cannot_be_writes_nothing(world, run, tmp_path, capsys, case):
    name, message = case
    given = ["--corpus", world.corpus, "--work", run, "--output", tmp_path / "a", "--format", "gpl", "tevatron", name]
    status, out, err = run_cli(capsys, "export", *given)
    assert (status, out) == (2, "")
    assert message in err
    assert not (tmp_path / "a").exists()


def test_exported_scores_are_asked_as_label_asked(world, run, tmp_path, monkeypatch, capsys):
    made = tmp_path / "work" / "label"
    found = Manifest.read(run / "label")
    Manifest(found.artifact, config={**found.config, "nan": "drop", "activation": "sigmoid"}).write(made)
    seen = []
    monkeypatch.setattr("gplfast.exports.export", lambda pipeline, *_, **__: seen.append(pipeline.config.label) or [])
    given = ["--corpus", world.corpus, "--output", tmp_path / "a", "--format", "dpr", "--teacher", world.teacher]
    for more in (["--label-activation", "identity"], []):
        assert run_cli(capsys, "export", *given, "--work", tmp_path / "work", *more)[0] == 0
    assert run_cli(capsys, "export", *given, "--work", tmp_path / "none")[0] == 0
    asked = [(label.max_seq_length, label.activation, label.nan) for label in seen]
    assert asked == [(32, "identity", "drop"), (32, "sigmoid", "drop"), (256, "identity", "error")]
    assert {label.model for label in seen} == {str(world.teacher)}


def test_an_export_of_several_teachers_is_refused(world, run, tmp_path, capsys):
    (tmp_path / "c.toml").write_text('[label]\nmore_models = ["other"]\n')
    given = ["--corpus", world.corpus, "--work", run, "--output", tmp_path / "a", "--format", "dpr", "gpl"]
    options = ["--teacher", world.teacher, "--config", tmp_path / "c.toml"]
    status, _, err = run_cli(capsys, "export", *given, *options)
    assert status == 2
    assert "[label] more_models has no effect on exported scores" in err
    assert not (tmp_path / "a").exists()


def test_exported_margins_are_those_of_the_training(world, run, tmp_path, capsys):
    import pyarrow.parquet as pq

    given = ["--corpus", world.corpus, "--work", run, "--output", tmp_path]
    status, out, err = run_cli(capsys, "export", *given, "--format", "sentence-transformers-margins", "gpl", "--quiet")
    assert status == 0, err
    assert str(tmp_path / "hard-negatives.jsonl") in out
    rows = pq.read_table(tmp_path / "sentence-transformers-margins.parquet").to_pylist()
    pipeline = gplfast.pipeline.Pipeline(world.corpus, run, gplfast.pipeline.as_config(world.settings()), alone=True)
    margins = pipeline.margins()
    assert np.array([row["label"] for row in rows], np.float32).tobytes() == margins.margins.tobytes()
    texts = pipeline.queries().texts
    assert [row["anchor"] for row in rows] == [texts[query] for query in margins.queries]
    assert [row["negative"] for row in rows] == pipeline.corpus.texts(margins.negatives)
