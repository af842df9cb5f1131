"""Labels of several teachers, averaged."""

from __future__ import annotations

import numpy as np
import pytest
from stages.test_label_stage import Teacher, score, setting

from gplfast.config import LabelConfig, RefreshConfig, TrainConfig, check, load_config
from gplfast.errors import ConfigError, ModelError
from gplfast.mining import averaging, scoring
from gplfast.stages import label, refresh
from gplfast.store.atomic import read_json

SECOND = 10.0


class Wide(Teacher):
    """Another opinion, ten times as wide and somewhere else."""

    fingerprint = "wide"

    def score(self, queries, docs, **options):
        first = super().score(queries, docs, **options)
        return (SECOND * first + other(queries, docs) + 40).astype(np.float32)


def other(queries, docs):
    return np.array([sum(map(ord, q + d)) % 13 for q, d in zip(queries, docs, strict=True)])


def wide_score(query, doc):
    return SECOND * score(query, doc) + float(other([query], [doc])[0]) + 40


def run(folder, parts, teachers, config=None, **train):
    config, train_config = config or LabelConfig(), TrainConfig(**{"steps": 30, "batch_size": 4, **train})
    wanted = label.manifest(
        {"corpus": "c"}, "teacher", config, train_config, 0, more_teachers=[item.fingerprint for item in teachers[1:]]
    )
    first, *more = [lambda item=item: item for item in teachers]
    return label.label(
        *parts,
        folder / "label",
        wanted,
        config=config,
        train=train_config,
        open_teacher=first,
        open_store=scoring.stores_of(folder / "scores"),
        seed=0,
        more_teachers=more,
    )


def by_hand(parts, margins, how):
    corpus, queries, _ = parts
    both = []
    for function in (score, wide_score):
        q = [queries.texts[row] for row in margins.queries]
        near = np.array([function(x, corpus.text(p)) for x, p in zip(q, margins.positives, strict=True)])
        far = np.array([function(x, corpus.text(p)) for x, p in zip(q, margins.negatives, strict=True)])
        both.append(near - far)
    factor = np.abs(both[0]).mean() / np.abs(both[1]).mean() if how == "scaled" else 1.0
    return (both[0] + factor * both[1]) / 2


@pytest.mark.parametrize("how", ["scaled", "raw"])
def test_margins_are_the_mean_of_the_teachers_each_as_wide_as_the_first(tmp_path, monkeypatch, how):
    monkeypatch.setattr(label, "SAMPLE_ROWS", 120)  # all the rows: then the factors can be seen in the labels
    parts = setting()
    margins = run(tmp_path, parts, [Teacher(), Wide()], LabelConfig(average=how))
    assert margins.margins == pytest.approx(by_hand(parts, margins, how), rel=1e-4, abs=1e-4)
    record = read_json(tmp_path / "label" / "teachers.json")
    assert record["average"] == how
    assert list(record["factors"]) == ["teacher", "wide"]
    assert (record["factors"]["wide"] == 1.0) is (how == "raw")


def test_one_teacher_is_what_it_always_was(tmp_path):
    parts = setting()
    alone = run(tmp_path, parts, [Teacher()])
    assert not (tmp_path / "label" / "teachers.json").exists()
    assert "average" not in label.manifest({}, "t", LabelConfig(average="raw"), TrainConfig(), 0).config
    made, raw = label.manifest({}, "t", LabelConfig(), TrainConfig(), 0), LabelConfig(average="raw")
    for n_teachers, same in ((1, True), (2, False)):
        keys = [
            refresh.manifest(made, ["t", "u"][:n_teachers], config, RefreshConfig(), {}).key
            for config in (LabelConfig(), raw)
        ]
        assert (keys[0] == keys[1]) is same
    both = run(tmp_path / "both", parts, [Teacher(), Wide()])
    assert np.array_equal(alone.negatives, both.negatives)
    assert not np.array_equal(alone.margins, both.margins)


def test_each_teacher_scores_a_pair_once_whatever_the_others_know(tmp_path):
    parts = setting()
    alone, first, second = Teacher(), Teacher(), Wide()
    run(tmp_path, parts, [alone])
    run(tmp_path, parts, [first, second])
    assert (first.n_pairs, second.n_pairs) == (0, alone.n_pairs)
    assert alone.n_pairs > 40


def test_a_killed_run_goes_on_with_the_same_calls_and_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "CALL_PAIRS", 6)
    monkeypatch.setattr(label, "SHARD_ROWS", 16)
    monkeypatch.setattr(label, "SAMPLE_ROWS", 8)
    parts = setting()
    whole = [Teacher(), Wide()]
    run(tmp_path / "a", parts, whole)
    calls = [[], []]
    for _ in range(200):
        teachers = [Teacher(fail_after=1), Wide(fail_after=1)]
        try:
            run(tmp_path / "b", parts, teachers)
            break
        except RuntimeError:
            pass
        finally:
            for place, teacher in enumerate(teachers):
                calls[place] += teacher.calls
    assert calls == [teacher.calls for teacher in whole]
    for path in (tmp_path / "a" / "label").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "label" / path.name).read_bytes(), path.name


def test_a_pair_that_any_teacher_cannot_score_has_no_label(tmp_path):
    parts = setting()
    wide = Wide(nan_for=parts[0].text(3))
    margins = run(tmp_path, parts, [Teacher(), wide], LabelConfig(nan="drop"))
    assert 0 < len(margins) < 120
    assert 3 not in {*margins.positives.tolist(), *margins.negatives.tolist()}


def test_the_manifest_names_every_teacher():
    made = label.manifest({}, "a", LabelConfig(), TrainConfig(), 0, more_teachers=["b", "c"])
    assert made.models == {"teacher": "a", "teacher 2": "b", "teacher 3": "c"}
    assert made.key != label.manifest({}, "a", LabelConfig(), TrainConfig(), 0, more_teachers=["b"]).key


def test_a_teacher_that_tells_nothing_apart_cannot_be_scaled():
    flat = np.zeros(4, np.float32)
    with pytest.raises(ModelError, match="teacher 2 of 2 has a mean"):
        averaging.factors([np.ones(4, np.float32), flat])
    assert averaging.factors([np.array([2, np.nan], np.float32), np.array([-0.5, 0.5], np.float32)]) == [1.0, 4.0]
    with pytest.raises(ConfigError, match="names a teacher twice"):
        check(load_config(preset="nano", overrides={"label": {"more_models": ["nano:teacher"]}}))
