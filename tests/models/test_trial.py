"""The trial that chooses what a model runs on, and the gates that a low precision has to pass."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from gplfast.errors import ModelError
from gplfast.models import CrossEncoder, calibration
from gplfast.models.calibration import Calibration, Item, overlap_gate, rank_gate
from gplfast.models.query_generator import Queries, QueryGate

pytest.importorskip("onnxruntime", reason="graphs run on onnxruntime")


@dataclasses.dataclass
class Trials:
    """A kind of model whose runs take as long as they are told to, on a clock of its own."""

    seconds: dict[str, float]
    quality: dict[str, float]
    started: list[str] = dataclasses.field(default_factory=list)
    now: float = 0.0

    def start(self, one: str) -> str:
        self.started.append(one)
        if one == "broken":
            raise ModelError("a node that is not known")
        if one == "mistaken":
            raise TypeError("of this code")
        return one

    def run(self, model: str, items: list[Item]) -> float:
        if model == "refused":
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")
        self.now += self.seconds[model] * len(items)
        return self.quality[model]

    def calibration(self, monkeypatch) -> Calibration:
        monkeypatch.setattr(calibration.time, "perf_counter", lambda: self.now)
        return Calibration("kind", self.start, self.run, lambda a, b: ({"ratio": b / a}, b >= 0.9 * a))


@pytest.fixture
def trials():
    names = {"exact": (0.004, 1.0), "fast": (0.003, 1.0), "low": (0.001, 0.95), "bad": (0.0001, 0.5), "broken": (0, 0)}
    return Trials({n: s for n, (s, _) in names.items()}, {n: q for n, (_, q) in names.items()})


def test_the_fastest_that_passes_is_taken_once(trials, monkeypatch, tmp_path):
    trial = trials.calibration(monkeypatch)
    found = ["exact", "fast", "low", "bad", "broken"]
    model, choice = trial.choose(found, "exact", tmp_path, 2, gated=True)
    assert (model, choice.runtime, choice.why) == ("low", "low", "calibrated")
    assert {name: one.get("passed") for name, one in choice.trials.items()} == {
        "exact": True, "fast": None, "low": True, "bad": False, "broken": False,
    }  # fmt: skip
    assert choice.trials["bad"]["ratio"] == 0.5
    assert "a node that is not known" in choice.trials["broken"]["error"]
    assert choice.n_items == int(calibration.SAMPLE_SECONDS / 0.004)
    trials.started.clear()
    assert trial.choose(found, "exact", tmp_path, 2, gated=True) == ("low", choice)
    assert trials.started == ["low"], "what was chosen before is not tried again"
    assert trial.choose(found[:2], "exact", tmp_path, 2, gated=True)[0] == "fast", "other candidates, another trial"


def test_other_work_on_the_machine_does_not_decide(trials, monkeypatch, tmp_path):
    """The fastest runtime is disturbed in all its rounds but one."""
    run, calls = trials.run, []

    def disturbed(model, items):
        calls.append(model)
        if model == "low" and calls.count("low") != 1 + calibration.ROUNDS:
            trials.now += 1.0
        return run(model, items)

    trials.run = disturbed
    assert trials.calibration(monkeypatch).choose(["exact", "low"], "exact", tmp_path, 2, gated=True)[0] == "low"


def test_what_was_asked_for_by_name_passes_no_gate(trials, monkeypatch, tmp_path):
    trial = trials.calibration(monkeypatch)
    model, choice = trial.choose(["low", "bad"], "exact", tmp_path, 2, gated=False)
    assert (model, choice.why, choice.trials["bad"]["passed"]) == ("bad", "asked for", False)
    trials.started.clear()
    assert trial.choose(["bad"], "exact", tmp_path, 2, gated=False)[1].why == "asked for"
    assert trials.started == ["bad"], "one candidate needs no trial"


def test_what_fails_in_its_runtime_is_left_out(trials, monkeypatch, tmp_path):
    """A type that this device does not compute in shows when a graph is run; a mistake of ours is not hidden."""
    trial = trials.calibration(monkeypatch)
    model, choice = trial.choose(["exact", "refused", "low"], "exact", tmp_path, 2, gated=True)
    assert model == "low"
    assert choice.trials["refused"] == {"error": "CUBLAS_STATUS_NOT_SUPPORTED", "passed": False}
    with pytest.raises(TypeError, match="of this code"):
        trial.choose(["exact", "mistaken"], "exact", tmp_path, 2, gated=True)


def test_what_none_can_serve_is_an_error(trials, monkeypatch, tmp_path):
    trial = trials.calibration(monkeypatch)
    trials.seconds["other"], trials.quality["other"] = 0.001, 0.1
    with pytest.raises(ModelError, match=r"kind: none of broken, other serves it.*a node that is not known"):
        trial.choose(["broken", "other"], "exact", tmp_path, 2, gated=True)


def test_none_that_passes_leaves_the_reference(trials, monkeypatch, tmp_path):
    trial = trials.calibration(monkeypatch)
    assert trial.choose(["exact", "bad", "broken"], "exact", tmp_path, 2, gated=True)[0] == "exact"


def test_a_damaged_record_is_made_again(trials, monkeypatch, tmp_path, caplog):
    trial = trials.calibration(monkeypatch)
    trial.choose(["exact", "low"], "exact", tmp_path, 2, gated=True)
    (record,) = tmp_path.iterdir()
    for damage in ("{", "{}", json.dumps({"runtime": "gone", "why": ""})):
        record.write_text(damage)
        assert trial.choose(["exact", "low"], "exact", tmp_path, 2, gated=True)[0] == "low"
    assert "is made again" in caplog.text


def test_a_folder_that_cannot_be_written_costs_only_the_record(trials, monkeypatch, tmp_path, caplog):
    trial = trials.calibration(monkeypatch)
    (tmp_path / "file").write_text("")
    assert trial.choose(["exact", "low"], "exact", tmp_path / "file" / "folder", 2, gated=True)[0] == "low"
    assert "cannot be written" in caplog.text


def test_gates_measure_what_they_say():
    rng = np.random.default_rng(0)
    queries, passages = rng.standard_normal((40, 16)), rng.standard_normal((60, 16))
    assert overlap_gate((queries, passages), (queries, 3 * passages)) == ({"top10_overlap": 1.0}, True)
    figures, passed = overlap_gate((queries, passages), (queries, passages + rng.standard_normal((60, 16))))
    assert not passed
    assert figures["top10_overlap"] < 0.8
    scores = rng.standard_normal(200)
    assert rank_gate(scores, 2 * scores + 1) == ({"spearman": 1.0}, True)
    assert rank_gate(scores, -scores) == ({"spearman": -1.0}, False)
    from scipy.stats import spearmanr

    noisy = scores + 0.05 * rng.standard_normal(200)
    figures, _ = rank_gate(scores, noisy)
    assert figures["spearman"] == pytest.approx(spearmanr(scores, noisy).statistic, abs=1e-6)


def test_queries_that_are_worse_do_not_pass(monkeypatch):
    class Teacher:
        @staticmethod
        def score(queries, passages, activation):
            assert activation == "sigmoid"
            return np.array(
                [0.9 if query in passage else 0.1 for query, passage in zip(queries, passages, strict=True)]
            )

    monkeypatch.setattr(CrossEncoder, "open", lambda *args, **options: Teacher)
    passages = ["the king of france", "light wave"]
    good, bad = Queries(["king", "light"], passages), Queries(["king", "gene"], passages)
    gate = QueryGate(None, None)
    assert gate(good, good) == ({"mean_score_fp32": 0.9, "mean_score": 0.9, "same_queries": 1.0}, True)
    assert gate(good, bad) == ({"mean_score_fp32": 0.9, "mean_score": 0.5, "same_queries": 0.5}, False)


def test_the_sample_is_bundled_and_whole():
    items = calibration.sample()
    assert len(items) == calibration.MOST_ITEMS
    assert all(item.query.strip() and item.passage.strip() for item in items)
