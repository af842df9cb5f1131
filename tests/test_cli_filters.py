"""Filters and the audit from the command line, with real (tiny) models."""

from __future__ import annotations

import json

import pytest
import tiny

from gplfast.store.manifest import Manifest


@pytest.fixture
def world(tmp_path_factory, monkeypatch):
    found = tiny.world(tmp_path_factory)
    monkeypatch.setenv("GPLFAST_CACHE", str(found.cache))
    return found


def test_filters_by_flags(world, tmp_path, capsys):
    work, script = tmp_path / "work", tmp_path / "mine.py"
    script.write_text("def keep(scores, positive_scores, ranks):\n    return ranks != 0\n")
    common = ("--corpus", world.corpus, "--work", work, "--threads", "1")
    model = ("--model", world.generator, "--queries-per-passage", "1", "--max-new-tokens", "8", "--window", "head")
    assert tiny.run_cli(capsys, "generate", *common, *model)[0] == 0
    mined = ("--retrievers", world.student, "bm25", "--negatives-per-query", "3")
    teacher = ("--label-model", world.teacher, "--label-max-seq-length", "32")
    filters = ("--filter-near-negative", "0.999", "--filter-denoise", "0.9", "--filter-function", f"{script}:keep")
    status, printed, error = tiny.run_cli(capsys, "mine", *common, *mined, *teacher, *filters)
    assert status == 0, error
    made = Manifest.read(work / "mine")
    for what in ("candidates", "dropped, function", "dropped, denoise", "dropped, near negative", "lists with fewer"):
        assert f"{what} {made.counts[what]}" in printed
    assert made.counts["dropped, function"] > 0
    kept = sum(n for name, n in made.counts.items() if name.startswith("negatives "))
    assert made.counts["candidates"] == kept + sum(n for name, n in made.counts.items() if name.startswith("dropped"))
    status, printed, error = tiny.run_cli(
        capsys, "mine", *common, *mined, *teacher, *filters, "--filter-audit", "5", "--seed", "3"
    )
    assert status == 0, error
    audited = Manifest.read(work / "mine")
    assert audited.key == made.key
    assert f"negatives audited {audited.counts['negatives audited']}" in printed
    assert json.loads((work / "mine" / "audit.json").read_text())["of"]["seed"] == 3


def test_what_is_wrong_shows_before_anything_runs(world, tmp_path, capsys):
    script = tmp_path / "mine.py"
    script.write_text("def keep(scores):\n    return scores.no_such_thing\n")
    flags = ("run", "--corpus", world.corpus, "--work", tmp_path / "work", *world.flags())
    for given, message in {
        ("--filter-function", f"{script}:keep"): f"filter function {script}:keep does not compile: line 2:",
        ("--filter-function", "nowhere.py:keep"): "there is no file nowhere.py",
        ("--filter-near-positive", "0.9", "--mine-sources", "bm25:5"): "no source of negatives is a bi-encoder",
        ("--filter-denoise", "2"): "--filter-denoise is 2.0 but must be at most 1",
        ("--filter-denoise", "0.1", "--students", "genq"): "has no effect",
    }.items():
        status, _, error = tiny.run_cli(capsys, *flags, *given)
        assert status == 2, given
        assert message in error, given
    assert not (tmp_path / "work").exists()
