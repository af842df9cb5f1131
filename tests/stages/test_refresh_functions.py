"""What a refresh changes, by hand-made lists; and work in a thread."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from gplfast.config import RefreshConfig, TrainConfig
from gplfast.errors import ArtifactError
from gplfast.mining import refreshes, rescale
from gplfast.mining.background import Cancelled, Job
from gplfast.mining.lists import Lists, from_sequences
from gplfast.stages.refresh import Refreshes
from gplfast.store.negatives import Negatives, RankedLists, different
from gplfast.store.segments import SegmentFolders

OLD = from_sequences([[1, 4, 7], [2, 3], [], [5]])
NEW = from_sequences([[7, 9, 1], [8], [6], []])


def as_lists(found):
    return [found.list(index).tolist() for index in range(len(found.indptr) - 1)]


def test_a_new_list_takes_the_old_ones_place():
    """Where nothing was found the old one stays; a query without a list was left out before and stays out."""
    assert as_lists(refreshes.replaced(OLD, NEW)) == [[1, 7, 9], [8], [], [5]]


def test_a_new_list_joins_the_old_one():
    assert as_lists(refreshes.joined(OLD, NEW)) == [[1, 4, 7, 9], [2, 3, 8], [], [5]]


def test_pairs_far_apart_stay_apart():
    """Many queries of 8.8 million passages: the one number that a pair becomes has more than 32 bits."""
    owners, rows = np.array([499_999, 0, 499_999, 3]), np.array([8_841_822, 8_841_822, 7, 0])
    indptr, found = different(np.tile(owners, 2), np.tile(rows, 2), 500_000)
    assert found.tolist() == [8_841_822, 0, 7, 8_841_822]
    assert np.diff(indptr)[[0, 1, 3, 499_999]].tolist() == [1, 0, 1, 2]
    assert indptr.dtype == found.dtype == np.int64


def test_what_was_mined_before_training_is_read_once(tmp_path):
    given, read = Negatives(np.arange(4), {"a": RankedLists(OLD.indptr, OLD.rows)}), []
    steps = SimpleNamespace(initial=lambda: read.append(1) or given)
    made = Refreshes(tmp_path, "key", steps, None, None, config=RefreshConfig(), train=TrainConfig(), seed=0)
    for _ in range(3):
        assert as_lists(Lists(*made._pool(made._fold([0])).union())) == as_lists(OLD)
    assert len(read) == 1


def test_overlap_is_the_mean_share_of_the_first_k_of_the_new_list():
    # 7 and 1 of (7, 9, 1); none of (8); none of (6); the last query has no new list and does not count.
    assert refreshes.overlap(OLD, NEW, 3) == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert refreshes.overlap(OLD, NEW, 1) == pytest.approx((1 + 0 + 0) / 3)
    assert refreshes.overlap(OLD, NEW, 2) == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert refreshes.overlap(OLD, OLD, 50) == 1.0
    assert refreshes.overlap(OLD, from_sequences([[], [], [], []]), 50) == 1.0


def test_unseen_is_the_share_of_all_entries():
    # 9, 8 and 6 of 7, 9, 1, 8, 6. A passage of another query's list is new here.
    assert refreshes.unseen(OLD, NEW) == pytest.approx(3 / 5)
    assert refreshes.unseen(OLD, from_sequences([[2], [1], [], []])) == 1.0
    assert refreshes.unseen(OLD, from_sequences([[], [], [], []])) == 0.0


def test_pairs_are_counted_once():
    queries, positives = np.array([0, 0, 1]), np.array([5, 5, 5])
    assert refreshes.n_pairs(queries, positives, np.array([6, 7, 6])) == 5
    assert refreshes.n_pairs(queries, positives, np.array([[6, 7], [7, 8], [6, 5]])) == 6


def test_a_sample_is_drawn_by_the_seed():
    first = refreshes.sample(0, "refreshq", 1000, 20)
    assert len(set(first.tolist())) == 20
    assert (np.diff(first) > 0).all()
    np.testing.assert_array_equal(first, refreshes.sample(0, "refreshq", 1000, 20))
    assert not np.array_equal(first, refreshes.sample(1, "refreshq", 1000, 20))
    assert not np.array_equal(first, refreshes.sample(0, "refreshp", 1000, 20))
    np.testing.assert_array_equal(refreshes.sample(0, "refreshq", 5, 20), np.arange(5))


def test_later_labels_are_scaled_like_the_first():
    """A refresh finds harder negatives: their margins are smaller, and must not be blown up to the old mean."""
    first, later = np.array([2.0, -4.0, 6.0], np.float32), np.array([1.0, -1.0], np.float32)
    before = rescale.spread(first)
    np.testing.assert_allclose(rescale.scale_to_mean(later, 0.4, clip=3, like=before)[0], [0.1, -0.1])
    np.testing.assert_allclose(rescale.scale_to_mean(later, 0.4, clip=3)[0], [0.4, -0.4])
    np.testing.assert_allclose(rescale.scale_to_range(later, -0.2, 0.6, like=before)[0], [0.1, -0.05])
    assert rescale.scale_to_mean(later, 0.4, clip=3, like=before)[1].before["mean_abs"] == 1.0


# ---- folders


def test_folders_of_another_training_are_dropped(tmp_path):
    folders = SegmentFolders(tmp_path / "refresh")
    folders.keep_only("a")
    folders.write(1, {"lists": [0, 1]})
    assert folders.begun(2, "w", 7) == 7
    folders.keep_only("a")
    assert folders.finished(1) == {"lists": [0, 1]}
    assert (folders.begun(2, "w", 9), folders.begun(2, "other", 9), folders.begun(2, "other", 11)) == (7, 9, 9)
    folders.keep_only("b")
    assert folders.record(1) is None
    with pytest.raises(ArtifactError, match=r"record\.json is missing but training is past its segment; delete"):
        folders.finished(1)


# ---- a thread


def test_a_job_gives_its_outcome_or_its_error():
    assert Job(lambda report: threading.current_thread() is threading.main_thread()).wait() is False

    def fails(report):
        raise ValueError("no")

    job = Job(fails)
    with pytest.raises(ValueError, match="no"):
        job.wait()
    with pytest.raises(ValueError, match="no"):
        job.check()
    go_on = threading.Event()
    job = Job(lambda report: go_on.wait())
    job.check()
    go_on.set()
    assert job.wait()
    job.check()


def test_a_job_ends_at_its_next_report():
    reports = []

    def work(report):
        while True:
            report("embed", len(reports), 0)
            reports.append(1)
            time.sleep(0.001)

    job = Job(work)
    while not reports:
        time.sleep(0.001)
    job.cancel()
    n_reports = len(reports)
    time.sleep(0.02)
    assert len(reports) == n_reports
    with pytest.raises(Cancelled):
        job.wait()
