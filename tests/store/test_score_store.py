"""A pair is scored once in its life."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gplfast.errors import ArtifactError, DataError, ShapeError
from gplfast.store import scores as module
from gplfast.store.scores import ScoreStore

TEXTS = st.sampled_from(["", "a", "b", "ab", "é", "\ud800", "long " * 9])
BATCH = st.lists(st.tuples(TEXTS, TEXTS, st.floats(-9, 9, width=32)), max_size=12)


def split(batch):
    queries, docs, scores = zip(*batch, strict=True) if batch else ((), (), ())
    return list(queries), list(docs), np.array(scores, np.float32)


@pytest.mark.parametrize("collide", [False, True])
def test_it_is_a_dictionary_that_keeps_the_first(tmp_path_factory, monkeypatch, collide):
    if collide:  # every pair gets the same sort key: the full hashes must decide
        monkeypatch.setattr(module, "_MIX", np.zeros(2, np.uint64))

    @settings(max_examples=25)
    @given(st.lists(BATCH, max_size=5))
    def check(batches):
        folder = tmp_path_factory.mktemp("scores")
        store, reference = ScoreStore(folder, "teacher"), {}
        for batch in batches:
            queries, docs, scores = split(batch)
            known_before = len(reference)
            for query, doc, score in zip(queries, docs, scores, strict=True):
                reference.setdefault((query, doc), score)
            assert store.append(queries, docs, scores) == len(reference) - known_before
        for each in (store, ScoreStore(folder, "teacher")):
            pairs = [*reference, ("never", "seen")]
            found = each.lookup([query for query, _ in pairs], [doc for _, doc in pairs])
            assert found.known.tolist() == [True] * len(reference) + [False]
            assert found.scores[:-1].tolist() == list(reference.values())
            assert np.isnan(found.scores[-1])
            assert len(each) == len(reference)

    check()


def test_many_appends_stay_in_few_segments(tmp_path):
    store = ScoreStore(tmp_path, "t")
    for i in range(60):
        store.append([f"q{i}", f"q{i}"], ["d", "e"], np.array([i, -i], np.float32))
    assert len(store._segments) <= 8
    found = ScoreStore(tmp_path, "t").lookup([f"q{i}" for i in range(60)], ["e"] * 60)
    assert found.scores.tolist() == [-float(i) for i in range(60)]


def test_two_stores_open_on_one_directory_lose_nothing(tmp_path):
    one, two = ScoreStore(tmp_path, "t"), ScoreStore(tmp_path, "t")
    one.append(["q"], ["d"], np.ones(1, np.float32))
    two.append(["q", "q"], ["e", "f"], np.zeros(2, np.float32))
    one.append(["q"], ["g"], np.ones(1, np.float32))
    assert ScoreStore(tmp_path, "t").lookup(["q"] * 4, ["d", "e", "f", "g"]).scores.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_teachers_do_not_mix(tmp_path):
    ScoreStore(tmp_path, "one").append(["q"], ["d"], np.ones(1, np.float32))
    assert not ScoreStore(tmp_path, "two").lookup(["q"], ["d"]).known[0]
    assert ScoreStore(tmp_path, "one").lookup(["q"], ["d"]).known[0]


def test_the_same_pair_the_other_way_round_is_another(tmp_path):
    store = ScoreStore(tmp_path, "t")
    store.append(["a"], ["b"], np.ones(1, np.float32))
    assert store.lookup(["b", "a"], ["a", "b"]).known.tolist() == [False, True]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    store = ScoreStore(tmp_path, "t")
    for i in range(3):
        store.append([f"q{i}{j}" for j in range(50)], ["d"] * 50, np.arange(50, dtype=np.float32))
    path = store.directory / "scores-000001.parquet"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-9])
    elif damage == "flipped":
        content[60] ^= 4
        path.write_bytes(content)
    else:
        import pyarrow as pa

        from gplfast.store.atomic import write_parquet

        write_parquet(path, pa.table({"x": [1]}))
    with pytest.raises(ArtifactError, match=r"scores-000001.parquet"):
        ScoreStore(tmp_path, "t")


def test_messages(tmp_path):
    store = ScoreStore(tmp_path, "t")
    with pytest.raises(ShapeError, match="1 query texts but 2 document texts"):
        store.lookup(["a"], ["b", "c"])
    with pytest.raises(ShapeError, match=r"scores have shape \(2,\) but there are 1 pairs"):
        store.append(["a"], ["b"], np.zeros(2, np.float32))
    with pytest.raises(DataError, match="score 0 is inf for query 'a'"):
        store.append(["a"], ["b"], np.array([np.inf], np.float32))
    assert len(store) == 0


def test_that_a_teacher_has_no_score_is_remembered(tmp_path):
    store = ScoreStore(tmp_path, "t")
    assert store.append(["a", "b"], ["d", "d"], np.array([np.nan, 1], np.float32)) == 2
    for each in (store, ScoreStore(tmp_path, "t")):
        found = each.lookup(["a", "b", "c"], ["d", "d", "d"])
        assert found.known.tolist() == [True, True, False]
        assert np.isnan(found.scores[[0, 2]]).all()
        assert each.append(["a"], ["d"], np.zeros(1, np.float32)) == 0
