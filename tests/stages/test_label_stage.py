from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny

from gplfast.config import LabelConfig, TrainConfig
from gplfast.errors import DataError, ModelError
from gplfast.mining import scoring
from gplfast.stages import label
from gplfast.store.generated import GeneratedQueries
from gplfast.store.manifest import Manifest
from gplfast.store.negatives import Negatives, RankedLists


class Teacher:
    """Scores are a function of the two texts, and of nothing else."""

    fingerprint = "teacher"

    def __init__(self, nan_for=None, fail_after=None):
        self.n_pairs, self.calls, self.nan_for, self.fail_after = 0, [], nan_for, fail_after

    def cut(self, texts, max_tokens):
        return [" ".join(text.split()[:max_tokens]) for text in texts]

    def score(self, queries, docs, *, batch_size, activation, progress):
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise RuntimeError("the device is gone")
        self.n_pairs += len(queries)
        self.calls.append((tuple(queries), tuple(docs), activation))
        progress(len(queries), len(queries))
        values = [score(q, d) for q, d in zip(queries, docs, strict=True)]
        return np.array([np.nan if d == self.nan_for else v for v, d in zip(values, docs, strict=True)], np.float32)


def score(query, doc):
    return float(sum(map(ord, query)) % 97 - sum(map(ord, doc)) % 89) / 7


def setting(n_queries=10, n_passages=20, n_negatives=4, without=()):
    queries = GeneratedQueries(tiny.texts(n_queries, seed=5), np.arange(n_queries, dtype=np.int64))
    draw = np.random.default_rng(0)
    ids = np.array(
        [draw.permutation([p for p in range(n_passages) if p != q])[:n_negatives] for q in range(n_queries)], np.int64
    )
    ids[list(without)] = -1
    negatives = Negatives.from_padded(np.arange(n_queries), {"a": (ids, np.zeros(ids.shape, np.float32))})
    return tiny.corpus(n_passages), queries, negatives


def run(folder, parts, teacher, seed=0, config=None, **train):
    config = config or LabelConfig()
    train_config = TrainConfig(**{"steps": 10, "batch_size": 4, **train})
    inputs = {"corpus": parts[0].fingerprint, "queries": "q", "negatives": "n"}
    wanted = label.manifest(inputs, "teacher", config, train_config, seed)
    return label.label(
        *parts,
        folder / "label",
        wanted,
        config=config,
        train=train_config,
        open_teacher=lambda: teacher,
        open_store=scoring.stores_of(folder / "scores"),
        seed=seed,
    )


def test_the_label_is_the_margin_of_raw_logits(tmp_path):
    corpus, queries, negatives = parts = setting()
    teacher = Teacher()
    margins = run(tmp_path, parts, teacher)
    assert len(margins) == 40
    for query, positive, negative, margin in zip(
        margins.queries, margins.positives, margins.negatives, margins.margins, strict=True
    ):
        assert positive == queries.passages[query]
        assert negative in negatives.lists["a"][query]
        expected = score(queries.texts[query], corpus.text(positive)) - score(
            queries.texts[query], corpus.text(negative)
        )
        assert margin == pytest.approx(expected, abs=1e-5)
    assert teacher.calls[0][2] == "identity"
    assert np.abs(margins.margins).max() > 1


def test_promoted_passages_are_positives_too(tmp_path):
    """What the filters promoted is drawn as often as the query's own passage."""
    corpus, queries, negatives = setting()
    indptr = np.array([0, 2, *[2] * 9])
    promoted = dataclasses.replace(negatives, promoted=RankedLists(indptr, np.array([11, 15])))
    margins = run(tmp_path, (corpus, queries, promoted), Teacher(), steps=300)
    drawn = margins.positives[margins.queries == 0]
    assert dict(zip(*np.unique(drawn, return_counts=True), strict=True)).keys() == {0, 11, 15}
    assert np.bincount(drawn).max() < 0.5 * len(drawn)
    assert (margins.positives == queries.passages[margins.queries])[margins.queries > 0].all()


def test_rows_of_a_loss_without_scores_are_not_scored(tmp_path):
    """The rows are those of MarginMSE; no teacher is opened, nor named in the manifest."""
    parts = setting()
    scored = run(tmp_path / "a", parts, Teacher(), negatives_per_row=2)

    def no_teacher():
        raise AssertionError("the teacher was opened")

    inputs = {"corpus": parts[0].fingerprint, "queries": "q", "negatives": "n"}
    train = TrainConfig(steps=10, batch_size=4, negatives_per_row=2, loss="mnrl")
    wanted = label.manifest(inputs, "teacher", LabelConfig(), train, 0, more_teachers=["other"])
    assert not wanted.models
    options = {"config": LabelConfig(), "train": train, "open_store": scoring.stores_of(tmp_path / "scores"), "seed": 0}
    openers = {"open_teacher": no_teacher, "more_teachers": [no_teacher]}
    rows = label.label(*parts, tmp_path / "b", wanted, **openers, **options)
    for name in ("queries", "positives", "negatives"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(scored, name))
    assert rows.margins.shape == (40, 2)
    assert np.isnan(rows.margins).all()
    assert np.isnan(label.mean_negative_score(tmp_path / "b", wanted))
    # Queries are still chosen by the teacher's scores of their own passages where that is asked for.
    half = LabelConfig(keep_share=0.5)
    teacher = Teacher()
    best = run(tmp_path / "c", parts, teacher, config=half, loss="mnrl")
    assert teacher.n_pairs == 10
    assert len(set(best.queries)) == 5


def test_no_sigmoid_unless_asked_for(tmp_path):
    """A cross-encoder whose configuration names no activation gets Sigmoid in sentence-transformers: GPL's margins then
    lay in [-1, 1]."""
    teacher = Teacher()
    run(tmp_path, setting(), teacher, config=LabelConfig(activation="sigmoid"))
    assert teacher.calls[0][2] == "sigmoid"
    raw = Teacher()
    run(tmp_path, setting(), raw)
    assert raw.n_pairs > 0  # scores of another activation are not taken for logits


def test_scores_of_another_label_are_asked_for_again(tmp_path):
    for name, asked in (("", True), ("", False), ("entailment", True), ("entailment", False), ("neutral", True)):
        teacher = Teacher()
        run(tmp_path, setting(), teacher, config=LabelConfig(relevance_label=name))
        assert (teacher.n_pairs > 0) is asked, name


def test_each_pair_is_scored_once(tmp_path):
    """GPL scored 8.96 million pairs of which half were different."""
    teacher = Teacher()
    run(tmp_path, setting(), teacher, steps=100)
    assert teacher.n_pairs == 10 * (1 + 4)
    run(tmp_path, setting(), teacher, steps=200)
    assert teacher.n_pairs == 50


def test_fewer_queries_than_a_batch_are_fine(tmp_path):
    """GPL stopped with StopIteration (issue 4)."""
    margins = run(tmp_path, setting(n_queries=2), Teacher(), steps=5, batch_size=32)
    assert len(margins) == 160
    assert np.bincount(margins.queries).tolist() == [80, 80]


def test_queries_without_negatives_are_skipped_and_counted(tmp_path):
    margins = run(tmp_path, setting(without=(1, 4)), Teacher())
    assert not {1, 4} & set(margins.queries.tolist())
    assert Manifest.read(tmp_path / "label").counts["queries skipped, no negatives"] == 2
    with pytest.raises(DataError, match="10 queries and none has a negative; the corpus has 20 passages"):
        run(tmp_path / "none", setting(without=range(10)), Teacher())


def test_a_teacher_that_gives_nan_is_an_error_or_dropped(tmp_path):
    parts = setting()
    bad = parts[0].text(3)
    with pytest.raises(ModelError, match=r'the teacher gave nan for query .* leave them out: nan = "drop"'):
        run(tmp_path, parts, Teacher(nan_for=bad))
    margins = run(tmp_path, parts, Teacher(nan_for=bad), config=LabelConfig(nan="drop"), steps=40)
    assert not {3} & {*margins.positives.tolist(), *margins.negatives.tolist()}
    counts = Manifest.read(tmp_path / "label").counts
    assert counts["rows"] == len(margins) < counts["rows drawn"] == 160
    assert counts["rows"] + counts["rows dropped for NaN"] == 160
    assert np.isfinite(margins.margins).all()


def test_pairs_without_a_score_are_asked_once_and_still_an_error_unless_dropped(tmp_path):
    parts = setting()
    bad, drop = parts[0].text(3), LabelConfig(nan="drop")
    first, second = Teacher(nan_for=bad), Teacher(nan_for=bad)
    run(tmp_path, parts, first, config=drop, steps=100)
    assert first.n_pairs == 50
    run(tmp_path, parts, second, config=drop, steps=200)
    assert second.n_pairs == 0
    with pytest.raises(ModelError, match=r'the teacher gave nan for query .* leave them out: nan = "drop"'):
        run(tmp_path, parts, Teacher(), steps=100)


@pytest.mark.parametrize("nan", ["error", "drop"])
def test_a_killed_run_goes_on_with_the_same_calls_and_bytes(tmp_path, monkeypatch, nan):
    """What a call of the teacher holds decides how it rounds, so it must not depend on where a run was killed. GPL held
    all rows in memory and wrote them at the end."""
    monkeypatch.setattr(scoring, "CALL_PAIRS", 6)
    monkeypatch.setattr(label, "SHARD_ROWS", 16)
    parts, config = setting(), LabelConfig(nan=nan)
    bad = parts[0].text(3) if nan == "drop" else None
    whole = Teacher(bad)
    run(tmp_path / "a", parts, whole, config=config)
    assert len(whole.calls) > 4
    resumed = []
    for n_calls in range(len(whole.calls)):
        teacher = Teacher(bad, fail_after=1)
        with pytest.raises(RuntimeError, match="gone"):
            run(tmp_path / "b", parts, teacher, config=config)
        resumed += teacher.calls
        assert resumed == whole.calls[: n_calls + 1]
        if n_calls == len(whole.calls) - 2:
            break
    run(tmp_path / "b", parts, teacher := Teacher(bad), config=config)
    assert resumed + teacher.calls == whole.calls
    names = sorted(path.name for path in (tmp_path / "a" / "label").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b" / "label").iterdir())
    for name in names:
        assert (tmp_path / "a" / "label" / name).read_bytes() == (tmp_path / "b" / "label" / name).read_bytes()


def test_a_share_of_the_queries_is_kept_by_their_own_passages_score(tmp_path):
    corpus, queries, _ = parts = setting(without=(2,))
    margins = run(tmp_path, parts, Teacher(), config=LabelConfig(keep_share=0.3), steps=20)
    own = [score(text, corpus.text(row)) for text, row in zip(queries.texts, queries.passages, strict=True)]
    own[2] = -np.inf  # without negatives
    assert sorted(set(margins.queries.tolist())) == sorted(np.argsort(own, kind="stable")[::-1][:3].tolist())
    counts = Manifest.read(tmp_path / "label").counts
    assert (counts["queries dropped by score"], counts["queries skipped, no negatives"]) == (6, 1)


def test_rows_follow_from_the_seed(tmp_path):
    parts = setting()
    same = [run(tmp_path / str(i), parts, Teacher(), seed=seed).table() for i, seed in enumerate((0, 0, 1))]
    assert same[0].equals(same[1])
    assert not same[0].equals(same[2])
