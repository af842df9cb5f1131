"""Rows with several negatives: drawn, labelled, stored, exported."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from stages.test_label_stage import Teacher, run, score, setting

from gplfast.config import LabelConfig, TrainConfig
from gplfast.errors import ShapeError
from gplfast.mining.lists import from_sequences, single
from gplfast.mining.sampling import visits
from gplfast.stages import label
from gplfast.store.margins import Margins


def lists(lengths):
    return from_sequences([np.arange(100 * i, 100 * i + n) for i, n in enumerate(lengths)])


def test_one_negative_gives_the_bytes_that_it_always_gave():
    """Recorded before rows could have several: margins made then stay what a run of today would make."""
    rows = visits(single(np.arange(7)), lists([3, 5, 0, 9, 1, 4, 6]), seed=5, start=3, stop=40)
    assert rows.negatives.shape == (37,)
    assert (
        hashlib.sha256(np.concatenate(rows).tobytes()).hexdigest()
        == "afd152bc730c2a46ea76f4af10dfde0b00d7665c874254b81421612c468e9018"
    )


def test_the_negatives_of_a_row_are_different_and_every_set_of_them_is_as_likely():
    pool = lists([4, 4])
    rows = visits(single(np.arange(2)), pool, seed=0, start=0, stop=24_000, n_negatives=2)
    assert rows.negatives.shape == (24_000, 2)
    assert (rows.negatives[:, 0] != rows.negatives[:, 1]).all()
    drawn, counts = np.unique(rows.negatives[rows.queries == 1], axis=0, return_counts=True)
    assert len(drawn) == 12  # ordered pairs of four
    assert set(drawn.ravel().tolist()) == {100, 101, 102, 103}
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)  # 5 standard deviations
    one = visits(single(np.arange(2)), pool, seed=0, start=0, stop=24_000)
    assert np.array_equal(rows.negatives[:, 0], one.negatives)
    assert np.array_equal(rows.queries, one.queries)


def test_a_query_with_fewer_negatives_repeats_its_own():
    rows = visits(single(np.arange(3)), lists([2, 5, 1]), seed=3, start=0, stop=60, n_negatives=5)
    for query, found in zip(rows.queries, rows.negatives.tolist(), strict=True):
        n_own = (2, 5, 1)[query]
        assert len(set(found[:n_own])) == n_own
        assert found == [found[place % n_own] for place in range(5)]


def test_any_range_of_rows_is_a_part_of_the_whole():
    asked = {"seed": 1, "n_negatives": 3}
    whole = visits(single(np.arange(4)), lists([3, 5, 0, 9]), start=0, stop=50, **asked)
    part = visits(single(np.arange(4)), lists([3, 5, 0, 9]), start=17, stop=23, **asked)
    for all_rows, rows in zip(whole, part, strict=True):
        assert np.array_equal(all_rows[17:23], rows)
    empty = visits(single(np.arange(1)), lists([0]), start=0, stop=5, **asked)
    assert empty.negatives.shape == (0, 3)


def test_every_negative_of_a_row_gets_its_margin_and_each_pair_is_scored_once(tmp_path):
    corpus, queries, _ = parts = setting()
    teacher = Teacher()
    margins = run(tmp_path, parts, teacher, negatives_per_row=3, steps=50)
    assert margins.negatives.shape == margins.margins.shape == (200, 3)
    assert teacher.n_pairs == 10 * (1 + 4)
    for row in range(0, 200, 7):
        query = queries.texts[margins.queries[row]]
        for negative, margin in zip(margins.negatives[row], margins.margins[row], strict=True):
            wanted = score(query, corpus.text(margins.positives[row])) - score(query, corpus.text(negative))
            assert margin == pytest.approx(wanted, abs=1e-5)
    first = run(tmp_path / "one", parts, Teacher(), steps=50)
    assert np.array_equal(first.negatives, margins.negatives[:, 0])
    assert np.array_equal(first.margins, margins.margins[:, 0])


def test_a_row_of_which_one_negative_has_no_score_is_dropped(tmp_path):
    parts = setting()
    teacher = Teacher(nan_for=parts[0].text(3))
    margins = run(tmp_path, parts, teacher, config=LabelConfig(nan="drop"), steps=40, negatives_per_row=2)
    assert 0 < len(margins) < 160
    assert 3 not in margins.negatives
    assert np.isfinite(margins.margins).all()


def test_labels_of_another_number_of_negatives_are_made_again_and_those_of_one_stay_fresh():
    keys = [
        label.manifest({}, "t", LabelConfig(), TrainConfig(**given), 0).config
        for given in ({}, {"negatives_per_row": 1}, {"negatives_per_row": 2})
    ]
    assert keys[0] == keys[1]
    assert "negatives_per_row" not in keys[0]
    assert keys[2]["negatives_per_row"] == 2


def test_margins_of_several_negatives_come_back_from_their_table():
    n = np.arange(3)
    some = Margins(n, n + 1, np.arange(6).reshape(3, 2), np.arange(6, dtype=np.float32).reshape(3, 2))
    table = some.table()
    assert str(table.schema.field("negative").type) == "fixed_size_list<item: int64>[2]"
    import pyarrow as pa

    both = pa.concat_tables([table, table.slice(1)])
    back = Margins.from_table(both, "x", n_queries=3, n_passages=6)
    assert back.negatives.tolist() == [[0, 1], [2, 3], [4, 5], [2, 3], [4, 5]]
    assert back.margins.dtype == np.float32
    assert back.margins.tolist() == back.negatives.tolist()
    empty = Margins.from_table(table.slice(3), "x", n_queries=3, n_passages=6)
    assert empty.negatives.shape == (0, 2)
    with pytest.raises(ShapeError, match=r"negatives \(3, 2\) and margins \(3,\)"):
        Margins(n, n, some.negatives, np.zeros(3, np.float32))


def test_a_row_of_several_negatives_is_as_many_lines_of_gpls_file():
    n = np.arange(2)
    some = Margins(n, n + 4, np.array([[1, 2], [3, 1]]), np.array([[0.5, 1.5], [2.5, 3.5]], np.float32))
    flat = some.one_negative_each()
    assert (flat.queries.tolist(), flat.positives.tolist()) == ([0, 0, 1, 1], [4, 4, 5, 5])
    assert (flat.negatives.tolist(), flat.margins.tolist()) == ([1, 2, 3, 1], [0.5, 1.5, 2.5, 3.5])
    assert flat.one_negative_each() is flat
