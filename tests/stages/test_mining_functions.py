from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tiny

from gplfast.mining import lists as ragged
from gplfast.mining import rescale
from gplfast.mining.bm25 import Bm25, Ranking
from gplfast.mining.lists import Copies, Widened, from_sequences, same_text_groups, single, without
from gplfast.mining.rerank import rerank
from gplfast.mining.sampling import below, permutation, visited, visits, words
from gplfast.mining.scoring import PairScorer
from gplfast.mining.windows import random_windows, starts
from gplfast.store.scores import ScoreStore

POSITIVES = from_sequences([[0], [1], [2, 3], [4], []])
NEGATIVES = from_sequences([[5, 6], [7], [], [1, 2, 3], [0]])


def test_visits_see_every_query_once_per_epoch_with_one_of_each():
    rows = visits(POSITIVES, NEGATIVES, seed=1, start=0, stop=300)
    eligible = visited(POSITIVES, NEGATIVES)
    assert eligible.tolist() == [0, 1, 3]
    for epoch in range(100):
        assert sorted(rows.queries[3 * epoch : 3 * epoch + 3]) == [0, 1, 3]
    for query, positive, negative in zip(*rows, strict=True):
        assert positive in POSITIVES.list(query)
        assert negative in NEGATIVES.list(query)
    assert len({tuple(rows.queries[3 * epoch : 3 * epoch + 3]) for epoch in range(100)}) == 6  # every order occurs
    counts = np.bincount(rows.negatives[rows.queries == 3])
    assert counts[[1, 2, 3]].min() > 15  # uniform: 33 expected


def test_visits_of_a_part_are_a_part_of_the_visits():
    whole = visits(POSITIVES, NEGATIVES, seed=9, start=0, stop=50)
    for start, stop in ((0, 1), (7, 13), (2, 3), (49, 50), (10, 10)):
        part = visits(POSITIVES, NEGATIVES, seed=9, start=start, stop=stop)
        assert all(np.array_equal(a[start:stop], b) for a, b in zip(whole, part, strict=True))
    other = visits(POSITIVES, NEGATIVES, seed=10, start=0, stop=50)
    assert not np.array_equal(whole.queries, other.queries)


def test_visits_of_nothing():
    assert len(visits(from_sequences([[1]]), from_sequences([[]]), seed=0, start=0, stop=9).queries) == 0


def test_the_random_numbers_are_fixed():
    """Other values would silently change everybody's visits, samples and windows."""
    assert words(1, "visits", 0, 3).tolist() == [8800827423210301838, 6213014500603412569, 10279904563115482053]
    assert permutation(0, "sample", 0, 6).tolist() == [3, 5, 1, 2, 4, 0]
    assert sorted(permutation(3, "sample", 1, 50)) == list(range(50))
    drawn = below(words(0, "x", 0, 10_000), np.full(10_000, 7))
    assert np.bincount(drawn).min() > 1200  # 1428 expected


def test_no_order_depends_on_pythonhashseed():
    """GPL's query ids and sampled rows did: both came from list(set(...))."""
    code = (
        "import numpy as np, hashlib\n"
        "from gplfast.mining.lists import from_sequences, same_text_groups\n"
        "from gplfast.mining.sampling import visits\n"
        "p, n = from_sequences([[0], [1], [2]]), from_sequences([[5, 6, 9], [7, 8], [1, 2]])\n"
        "rows = visits(p, n, seed=1, start=0, stop=99)\n"
        "groups = same_text_groups(['b', 'a', 'b ', 'c', 'a'])\n"
        "print(hashlib.sha256(b''.join(x.tobytes() for x in (*rows, groups))).hexdigest())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert len(printed) == 1
    assert len(printed.pop().strip()) == 64


def test_positives_are_widened_to_equal_texts():
    groups = same_text_groups(["a", "b", "a ", "c", "b"])
    assert groups.tolist() == [0, 1, 0, 3, 1]
    wide = Copies(groups).widen(from_sequences([[0], [3], [4, 2], []]))
    assert [wide.list(i).tolist() for i in range(4)] == [[0, 2], [3], [0, 1, 2, 4], []]
    assert single(np.array([4, 2])).list(1).tolist() == [2]


@pytest.mark.parametrize("at_once", [1 << 23, 3, 1])
def test_lists_are_widened_part_by_part(monkeypatch, at_once):
    monkeypatch.setattr(ragged, "_WIDENED_ROWS", at_once)
    random = np.random.default_rng(0)
    groups = same_text_groups([f"text {number}" for number in random.integers(0, 12, 60)])
    given = [random.integers(0, 60, n) for n in random.integers(0, 5, 40)]
    wanted = [np.flatnonzero(np.isin(groups, groups[rows])).tolist() for rows in given]
    wide = Widened(from_sequences(given), Copies(groups))
    for start, stop in ((0, 40), (7, 19), (5, 5)):
        part = wide.part(start, stop)
        assert [part.list(i).tolist() for i in range(stop - start)] == wanted[start:stop]
        assert part.rows.dtype == part.indptr.dtype == np.int64
    taken = wide.take(np.array([31, 2, 2]))
    assert [taken.list(i).tolist() for i in range(3)] == [wanted[31], wanted[2], wanted[2]]
    assert len(Copies(np.empty(0, np.int64)).widen(from_sequences([[], []])).indptr) == 3


def test_copies_of_boilerplate_are_held_for_one_part_only():
    """30,000 copies with a query each are 7 GB as lists."""
    n = 30_000
    wide = Widened(single(np.arange(n)), Copies(np.zeros(n, np.int64)))
    assert wide.part(17, 19).rows.tolist() == 2 * list(range(n))


def test_what_is_left_of_lists_keeps_its_order():
    left = without(from_sequences([[5, 1, 9], [], [2, 2, 7]]), from_sequences([[9, 2], [5], [7]]))
    assert [left.list(i).tolist() for i in range(3)] == [[5, 1], [], [2, 2]]


def test_bm25_orders_by_score_then_row_and_leaves_out():
    index = Bm25(["the cat sat", "dog and cat", "nothing here", "cat cat dog", "dog and cat"])
    found = index.search(["cat dog", "the", "zebra"], 4)
    assert found.ids[0].tolist() == [1, 4, 3, 0]  # 1 and 4 are equal texts
    assert found.ids[1].tolist() == found.ids[2].tolist() == [-1] * 4
    assert np.isneginf(found.scores[1:]).all()
    excluded = index.search(["cat dog"], 4, exclude=from_sequences([[1, 3]]))
    assert excluded.ids[0].tolist() == [4, 0, -1, -1]
    assert Bm25(["", "the"]).search(["a cat"], 2).ids.tolist() == [[-1, -1]]


def test_bm25_has_the_bits_of_bm25s(monkeypatch):
    """Columns of words that are new in later parts, words several times in passages and queries, passages without."""
    import bm25s

    from gplfast.mining import bm25

    monkeypatch.setattr(bm25, "_TEXTS", 37)
    random = np.random.default_rng(0)
    texts = [" ".join(f"w{int(n)}" for n in random.zipf(1.3, random.integers(0, 40)) % 300) for _ in range(200)]
    queries = [" ".join(f"w{int(n)}" for n in random.zipf(1.2, 9) % 310) for _ in range(60)] + ["", "the", "zebra"]
    made, other = Bm25(texts), bm25s.BM25(method="lucene", k1=bm25.K1, b=bm25.B)
    other.index(bm25s.tokenize(texts, return_ids=False, show_progress=False), show_progress=False)
    found = made.search(queries, 200)
    pairs = from_sequences([random.integers(0, 200, 25) for _ in queries])
    own = made.pair_scores(queries, pairs)
    for number, tokens in enumerate(bm25s.tokenize(queries, return_ids=False, show_progress=False)):
        scores = other.get_scores(tokens) if tokens else np.zeros(200, np.float32)
        order = np.lexsort((np.arange(200), -scores))[: (scores > 0).sum()]
        assert found.ids[number].tolist() == [*order.tolist(), *[-1] * (200 - len(order))]
        np.testing.assert_array_equal(found.scores[number, : len(order)], scores[order])
        wanted = scores[pairs.list(number)]
        got = own[pairs.indptr[number] : pairs.indptr[number + 1]]
        np.testing.assert_array_equal(got, np.where(wanted > 0, wanted, np.float32(np.nan)))
    assert np.isfinite(own).sum() > 100


def test_bm25_finds_50_without_the_positive():
    texts = [f"word number{i} word" for i in range(60)]
    found = Bm25(texts).search(["word"], 50, exclude=from_sequences([[0]]))
    assert 0 not in found.ids[0]
    assert (found.ids[0] >= 0).sum() == 50


def test_windows_start_at_sentences_and_leave_enough_text():
    text = "First one. Second one! " + "x" * 100 + ". Last."
    assert starts(text, 20) == [0, 11, 23]
    assert starts("short text", 96) == [0]
    for items, samples in ((range(200), [0] * 200), ([7] * 200, range(200))):
        drawn = random_windows([""] * 200, [text] * 200, items, samples, 20, seed=0)
        assert {window[:6] for window in drawn} == {"First ", "Second", "xxxxxx"}
        part = random_windows([""] * 5, [text] * 5, items[3:8], samples[3:8], 20, seed=0)
        assert part == drawn[3:8]  # by item and sample, not by place


def test_every_window_has_the_title_in_front():
    body = "First one. Second one! " + "x" * 100 + ". Last."
    drawn = random_windows(
        ["A title. With a stop"] * 200, [f"A title. With a stop {body}"] * 200, range(200), [0] * 200, 20, seed=0
    )
    assert {window[:27] for window in drawn} == {
        "A title. With a stop First ",
        "A title. With a stop Second",
        "A title. With a stop xxxxxx",
    }
    assert random_windows(["Only a title"], ["Only a title"], [0], [0], 20, seed=0) == ["Only a title"]


def test_rescaling_to_cosine_units():
    margins = np.array([10.0, -5.0, 0.0, 100.0], np.float32)
    scaled, done = rescale.scale_to_mean(margins, 0.2, clip=3.0)
    assert scaled.tolist() == pytest.approx([10 * 0.2 / 28.75, -5 * 0.2 / 28.75, 0.0, 0.6])
    assert done.n_clipped == 1
    zero, _ = rescale.scale_to_mean(np.zeros(3, np.float32), 0.2, clip=3.0)
    assert zero.tolist() == [0, 0, 0]


def test_rescaling_to_a_range_is_gpls():
    """gpl/toolkit/rescale.py: [0, max] and [min, 0] each linearly, so signs stay."""
    margins = np.array([10.0, -4.0, 0.0, 5.0, -1.0], np.float32)
    assert rescale.scale_to_range(margins, -1.0, 2.0)[0].tolist() == pytest.approx([2.0, -1.0, 0.0, 1.0, -0.25])
    assert rescale.scale_to_range(np.array([3.0], np.float32), -1.0, 2.0)[0].tolist() == [2.0]


def test_labels_that_do_not_fit_the_student_are_told():
    student = {"min": -0.2, "max": 0.3, "mean_abs": 0.1}
    raw = {"min": -3.0, "max": 11.0, "mean_abs": 6.0}
    assert "labels reach 11 but the margin of two cosines is at most 2" in str(
        rescale.misfit(raw, student, bounded=True)
    )
    assert "60 times apart" in str(rescale.misfit(raw, student, bounded=False))
    assert rescale.misfit({"min": -0.6, "max": 0.6, "mean_abs": 0.2}, student, bounded=True) is None
    assert rescale.misfit(raw, {"min": -9.0, "max": 9.0, "mean_abs": 4.0}, bounded=False) is None


class CountingTeacher:
    fingerprint = "teacher"

    def __init__(self, n_characters=100):
        self.pairs, self.n_characters = [], n_characters

    def cut(self, texts, max_tokens):
        return [text[:max_tokens] for text in texts]

    def score(self, queries, docs, *, batch_size, activation, progress):
        self.pairs += list(zip(queries, docs, strict=True))
        return np.array([len(q) - len(d) for q, d in zip(queries, docs, strict=True)], np.float32)


def scorer(tmp_path, teacher, **options):
    return PairScorer(
        lambda found: ScoreStore(tmp_path / "scores", found),
        lambda: teacher,
        max_tokens=options.pop("max_tokens", 50),
        activation="identity",
        **options,
    )


def test_a_pair_is_scored_once_in_its_life(tmp_path):
    teacher = CountingTeacher()
    queries, passages = ["a", "bb", "a"], ["ccc", "dddd"]  # the first and third query are equal texts
    query_of, passage_of = np.array([0, 1, 2, 0]), np.array([0, 1, 0, 0])
    first = scorer(tmp_path, teacher).score(queries, passages, query_of, passage_of)
    assert first.tolist() == [-2, -2, -2, -2]
    assert teacher.pairs == [("a", "ccc"), ("bb", "dddd")]
    again = scorer(tmp_path, teacher).score(queries, passages, query_of, passage_of)
    assert again.tolist() == first.tolist()
    assert len(teacher.pairs) == 2


def test_texts_are_cut_before_they_are_looked_up(tmp_path):
    teacher = CountingTeacher()
    one = np.zeros(1, np.int64)
    scorer(tmp_path, teacher, max_tokens=3).score(["query"], ["passage"], one, one)
    assert teacher.pairs == [("que", "pas")]


def test_reranking_orders_the_head_and_keeps_the_tail_below(tmp_path):
    ids = np.array([[0, 1, 2, 3], [3, -1, -1, -1], [-1, -1, -1, -1]])
    first = Ranking(np.where(ids >= 0, 1.0, -np.inf).astype(np.float32), ids)
    texts = ["aaaa", "aa", "aaa", "a"]
    found = rerank(
        first, ["q1", "q2", "q3"], lambda rows: [texts[row] for row in rows], scorer(tmp_path, CountingTeacher()), 3
    )
    assert found.ids.tolist() == [[1, 2, 0, 3], [3, -1, -1, -1], [-1, -1, -1, -1]]
    assert found.scores[0].tolist() == [0, -1, -2, -3]
    assert np.isneginf(found.scores[2]).all()


def test_texts_of_the_tiny_corpus_differ():
    assert len(set(tiny.texts(50))) == 50
