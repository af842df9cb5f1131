from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gplfast import ops
from gplfast.config import FilterConfig
from gplfast.mining import filters, near
from gplfast.mining.filters import REASONS, Means, Scored, choose
from gplfast.mining.lists import Lists, from_sequences, owner_of

NAN = math.nan


def scored(rows, scores):
    values = np.array([score for part in scores for score in part], np.float32)
    return Scored(from_sequences(rows), values)


def lists_of(lists, values):
    return [values[lists.indptr[i] : lists.indptr[i + 1]].tolist() for i in range(len(lists.indptr) - 1)]


class Table:
    """A teacher by a table of queries and passages; counts what it reads."""

    def __init__(self, scores):
        self.scores, self.read = np.asarray(scores, np.float32), []

    def __call__(self, queries, rows):
        self.read += list(zip(queries.tolist(), rows.tolist(), strict=True))
        return self.scores[queries, rows]


def dropped(found):
    return {reason: n for reason, n in found.dropped.items() if n}


# One query; its positive is row 0. Candidates are rows 1 to 6, best first.
ROWS, SCORES = [[1, 2, 3, 4, 5, 6]], [[0.95, 0.9, 0.75, 0.5, 0.125, -0.3]]


@pytest.mark.parametrize(
    ("options", "kept", "reason"),
    [
        ({"min_score": 0.125}, [1, 2, 3, 4, 5], "min score"),
        ({"max_score": 0.75}, [3, 4, 5, 6], "max score"),
        ({"absolute_margin": 0.05}, [3, 4, 5, 6], "absolute margin"),
        ({"relative_margin": 0.25}, [4, 5, 6], "relative margin"),
        ({"relative_margin": 0.0}, [2, 3, 4, 5, 6], "relative margin"),
    ],
)
def test_the_limits_of_the_score_by_hand(options, kept, reason):
    """The positive has 0.9: 0.85 is left by the absolute margin, 0.675 by the relative one."""
    found = choose(scored([[0]], [[0.9]]), scored(ROWS, SCORES), 9, FilterConfig(**options), Means())
    assert np.array(ROWS[0])[found.kept].tolist() == kept
    assert dropped(found) == {reason: 6 - len(kept)}


@pytest.mark.parametrize("at_once", [1, 5, 1 << 20])
def test_near_positives_in_blocks_of_pairs(monkeypatch, at_once):
    monkeypatch.setattr(near, "_PAIRS", at_once)
    random = np.random.default_rng(3)
    docs = random.normal(size=(30, 4)).astype(np.float32)
    positives = from_sequences([random.integers(0, 30, n) for n in (0, 3, 1, 8, 0, 2)])
    candidates = from_sequences([random.integers(0, 30, n) for n in (4, 7, 0, 5, 0, 9)])
    alive = random.random(len(candidates.rows)) < 0.8
    cosines = ops.gram(docs, from_sequences([range(30)])).values.reshape(30, 30)
    wanted = [
        is_alive and bool((cosines[row, positives.list(owner)] > np.float32(0.4)).any())
        for row, owner, is_alive in zip(candidates.rows, owner_of(candidates), alive, strict=True)
    ]
    assert 0 < sum(wanted) < sum(alive)
    for groups in (None, np.zeros(30, np.int64)):
        assert near.near_positives(docs, positives, candidates, alive, 0.4, groups=groups).tolist() == wanted


def test_a_relative_margin_below_a_negative_score():
    """pos x (1 - r) would be above the positive where it is negative: -2 x 0.9 = -1.8 keeps what is better than it."""
    found = choose(
        scored([[0]], [[-2.0]]),
        scored([[1, 2, 3]], [[-1.9, -2.1, -2.3]]),
        9,
        FilterConfig(relative_margin=0.1),
        Means(),
    )
    assert found.kept.tolist() == [False, False, True]


def test_the_lowest_of_several_positives_counts_and_none_is_no_limit():
    positives = scored([[0, 9], [8], [], [7]], [[0.9, 0.5], [0.9], [], [NAN]])
    candidates = scored([[1, 2], [1, 2], [1, 2], [1, 2]], [[0.6, 0.4]] * 4)
    found = choose(positives, candidates, 9, FilterConfig(absolute_margin=0.05), Means())
    assert lists_of(candidates.lists, found.kept) == [[False, True], [True, True], [True, True], [False, False]]
    assert dropped(found) == {"absolute margin": 1, "no score": 2}
    found = choose(positives, candidates, 9, FilterConfig(min_score=0.5), Means())
    assert lists_of(candidates.lists, found.kept) == [[True, False]] * 4


# Angles in degrees of rows 0 to 6.
DOCS = np.array(
    [[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in (0, 5, 40, 44, 48, 90, 91)], np.float32
)


def test_near_duplicates_by_hand():
    """Row 1 is 5 degrees from the positive; 3 is near 2, 4 is near 3 only: greedy keeps 4, for 3 is gone."""
    candidates = scored([[1, 2, 3, 4, 5, 6]], [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]])
    config = FilterConfig(near_positive=math.cos(math.radians(6)), near_negative=math.cos(math.radians(6)))
    for groups in (None, ops.dedup(DOCS, config.near_negative).representative):
        found = choose(scored([[0]], [[1.0]]), candidates, 9, config, Means(docs=DOCS, groups=groups))
        assert candidates.lists.rows[found.kept].tolist() == [2, 4, 5]
        assert dropped(found) == {"near positive": 1, "near negative": 2}


def test_the_teacher_by_hand():
    """Logits: the sigmoid of -2.197 is 0.1, of 2.197 it is 0.9. The positive has 1."""
    table = Table([[1.0, 5.0, 2.3, 2.0, -2.1, -2.3, -9.0]])
    positives, candidates = scored([[0]], [[0.9]]), scored(ROWS, SCORES)
    cases = [
        ({"denoise": 0.1}, [5, 6], {"denoise": 4}),
        ({"denoise": 0.1, "pseudo_positive": 0.9}, [5, 6], {"denoise": 2, "pseudo positive": 2}),
        ({"pseudo_positive": 0.9}, [3, 4, 5, 6], {"pseudo positive": 2}),
        ({"teacher_margin": 0.05}, [4, 5, 6], {"teacher margin": 3}),
        ({"teacher_margin": 3.2}, [5, 6], {"teacher margin": 4}),
    ]
    for options, kept, why in cases:
        found = choose(positives, candidates, 9, FilterConfig(**options), Means(teacher=table))
        assert (candidates.lists.rows[found.kept].tolist(), dropped(found)) == (kept, why), options
        if "pseudo_positive" in options:
            assert candidates.lists.rows[found.pseudo].tolist() == [1, 2]
    chances = Table([[0.8, 0.95, 0.91, 0.5, 0.11, 0.09, 0.0]])
    found = choose(positives, candidates, 9, FilterConfig(denoise=0.1), Means(teacher=chances, logits=False))
    assert candidates.lists.rows[found.kept].tolist() == [5, 6]


def test_a_margin_of_the_teacher_at_the_limit_drops():
    """negminer drops where the difference is <= the threshold."""
    table = Table([[1.0, 0.75, 0.5]])
    candidates = scored([[1, 2]], [[0.9, 0.8]])
    found = choose(scored([[0]], [[0.9]]), candidates, 9, FilterConfig(teacher_margin=0.25), Means(teacher=table))
    assert found.kept.tolist() == [False, True]


def test_the_teacher_reads_no_more_than_is_needed():
    """Two are wanted: 1 and 2 are read, 1 goes, 3 is read; 4, 5 and 6 are not needed. The positive is never read."""
    table = Table([[9.0, 9.0, -9.0, -9.0, -9.0, 9.0, 9.0]])
    candidates = scored(ROWS, SCORES)
    found = choose(scored([[0]], [[0.9]]), candidates, 2, FilterConfig(denoise=0.1), Means(teacher=table))
    assert table.read == [(0, 1), (0, 2), (0, 3)]
    assert candidates.lists.rows[found.kept].tolist() == [2, 3]
    assert dropped(found) == {"denoise": 1, "not needed": 3}
    np.testing.assert_array_equal(found.scores, np.array([9, -9, -9, NAN, NAN, NAN], np.float32))


def test_nothing_is_asked_twice_of_a_teacher_and_nothing_of_what_is_dropped_before():
    table = Table(np.zeros((1, 7)))
    config = FilterConfig(max_score=0.6, denoise=0.1, teacher_margin=0.0)
    choose(scored([[0]], [[0.9]]), scored(ROWS, SCORES), 3, config, Means(teacher=table))
    assert sorted(table.read) == [(0, 0), (0, 4), (0, 5), (0, 6)]


def test_what_the_teacher_cannot_score_is_no_negative():
    table = Table([[1.0, NAN, -9.0], [NAN, -9.0, -9.0]])
    candidates = scored([[1, 2], [1, 2]], [[0.9, 0.8]] * 2)
    positives = scored([[0], [0]], [[0.9]] * 2)
    found = choose(positives, candidates, 9, FilterConfig(denoise=0.1), Means(teacher=table))
    assert found.kept.tolist() == [False, True, True, True]
    found = choose(positives, candidates, 9, FilterConfig(teacher_margin=0.0), Means(teacher=table))
    assert found.kept.tolist() == [False, True, False, False]
    assert dropped(found) == {"no teacher score": 3}


def test_places_in_a_triangle():
    for size in (*range(2, 12), 1000):
        rows, columns = np.triu_indices(size, 1)
        got = near.triangle_places(np.arange(len(rows)), np.full(len(rows), size))
        np.testing.assert_array_equal(got, (rows, columns))


# ---- the same, written down as simply as can be


def cosine(docs, a, b):
    x, y = docs[a].astype(np.float64), docs[b].astype(np.float64)
    norms = math.sqrt(x @ x) * math.sqrt(y @ y)
    return np.float32(x @ y / norms) if norms else NAN


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def oracle(positives, candidates, config, docs, table, *, n_most):
    """One query: what becomes of each candidate, by the first reason."""
    (own, positives), (rows, scores), reasons = positives, candidates, []
    for row, score in zip(rows, map(float, scores), strict=True):
        reason = ""
        margins = config.absolute_margin is not None or config.relative_margin is not None
        lowest = NAN if any(math.isnan(p) for p in positives) else min(map(float, positives), default=math.inf)
        limits = margins or config.min_score is not None or config.max_score is not None
        if (limits and math.isnan(score)) or (margins and math.isnan(lowest)):
            reason = "no score"
        elif config.min_score is not None and score < config.min_score:
            reason = "min score"
        elif config.max_score is not None and score > config.max_score:
            reason = "max score"
        elif config.absolute_margin is not None and score + config.absolute_margin > lowest:
            reason = "absolute margin"
        elif (
            config.relative_margin is not None
            and len(positives)
            and (score > lowest - abs(lowest) * config.relative_margin)
        ):
            reason = "relative margin"
        elif config.near_positive < 1 and any(cosine(docs, p, row) > np.float32(config.near_positive) for p in own):
            reason = "near positive"
        reasons.append(reason)
    kept = []
    for at, row in enumerate(rows):
        if reasons[at]:
            continue
        if config.by_teacher:
            if len(kept) == n_most:
                reasons[at] = "not needed"
                continue
            value, limits = float(table[row]), [float(table[p]) for p in own]
            limit = NAN if any(map(math.isnan, limits)) else min(limits, default=math.inf)
            if math.isnan(value) or (config.teacher_margin is not None and math.isnan(limit)):
                reasons[at] = "no teacher score"
            elif sigmoid(value) > config.pseudo_positive:
                reasons[at] = "pseudo positive"
            elif config.denoise < 1 and sigmoid(value) > config.denoise:
                reasons[at] = "denoise"
            elif config.teacher_margin is not None and limit - value <= config.teacher_margin:
                reasons[at] = "teacher margin"
            if reasons[at]:
                continue
        if config.near_negative < 1 and any(cosine(docs, k, row) > np.float32(config.near_negative) for k in kept):
            reasons[at] = "near negative"
        else:
            kept.append(row)
    kept = set(kept[:n_most])
    return ["" if row in kept else reason or "not needed" for row, reason in zip(rows, reasons, strict=True)]


N_DOCS = 14
few = st.sampled_from([-2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0])
numbers = st.one_of(few, few, few, st.just(NAN), st.floats(-3, 3, width=32))


@st.composite
def problems(draw):
    n_queries = draw(st.integers(0, 5))
    own = [draw(st.lists(st.integers(0, 3), max_size=3, unique=True)) for _ in range(n_queries)]
    rows = [draw(st.lists(st.integers(4, N_DOCS - 1), max_size=10, unique=True)) for _ in range(n_queries)]
    scores = [draw(st.lists(numbers, min_size=len(part), max_size=len(part))) for part in rows]
    own_scores = [draw(st.lists(numbers, min_size=len(part), max_size=len(part))) for part in own]
    docs = np.array(draw(st.lists(st.tuples(*[st.integers(-1, 1)] * 3), min_size=N_DOCS, max_size=N_DOCS)), np.float32)
    table = np.array(draw(st.lists(numbers, min_size=n_queries * N_DOCS, max_size=n_queries * N_DOCS)), np.float32)
    limit = st.one_of(st.none(), few)
    closest = st.sampled_from([1.0, 0.9, 0.7, 0.5, 0.0])
    config = FilterConfig(
        min_score=draw(limit),
        max_score=draw(limit),
        absolute_margin=draw(limit),
        relative_margin=draw(limit),
        near_positive=draw(closest),
        near_negative=draw(closest),
        denoise=draw(st.sampled_from([1.0, 0.5, 0.1])),
        pseudo_positive=draw(st.sampled_from([1.0, 0.9, 0.6])),
        teacher_margin=draw(limit),
    )
    return own, own_scores, rows, scores, docs, table.reshape(n_queries, N_DOCS), config, draw(st.integers(1, 6))


@settings(max_examples=150, deadline=None)
@given(problems(), st.booleans(), st.sampled_from([1, 2]))
def test_filters_are_what_they_say(problem, grouped, threads):
    own, own_scores, rows, scores, docs, table, config, n_most = problem
    positives, candidates = scored(own, own_scores), scored(rows, scores)
    groups = None
    if grouped and config.by_vector:
        groups = near.corpus_groups(docs, config, 10**9, 10, threads)
        assert groups is not None
    means = Means(docs=docs, groups=groups, teacher=Table(table), threads=threads)
    found = choose(positives, candidates, n_most, config, means)
    expected = [
        oracle((own[i], positives.scores[_slice(positives, i)]), part, config, docs, table[i], n_most=n_most)
        for i, part in enumerate(zip(rows, lists_of(candidates.lists, candidates.scores), strict=True))
    ]
    assert lists_of(candidates.lists, found.kept) == [[not reason for reason in part] for part in expected]
    flat = [reason for part in expected for reason in part]
    assert found.dropped == {reason: flat.count(reason) for reason in REASONS}
    assert sum(found.dropped.values()) + found.kept.sum() == len(flat)
    assert [reason == "pseudo positive" for reason in flat] == found.pseudo.tolist()
    read = [(i, row) for i, part in enumerate(rows) for row in part]
    assert len(set(means.teacher.read)) == len(means.teacher.read)
    if not config.by_teacher:
        assert means.teacher.read == []
    assert {pair for pair in means.teacher.read if pair[1] > 3} <= set(read)


def _slice(given, i):
    return slice(given.lists.indptr[i], given.lists.indptr[i + 1])


def test_cosines_come_in_parts(monkeypatch):
    draw = np.random.default_rng(1)
    docs = draw.integers(-1, 2, (60, 3)).astype(np.float32)
    rows = [draw.permutation(50)[: draw.integers(0, 30)] + 10 for _ in range(40)]
    candidates = Scored(from_sequences(rows), np.zeros(sum(map(len, rows)), np.float32))
    positives = Scored(from_sequences([draw.permutation(10)[: i % 4] for i in range(40)]), np.empty(0, np.float32))
    config = FilterConfig(near_positive=0.8, near_negative=0.8)
    whole = choose(positives, candidates, 5, config, Means(docs=docs))
    assert min(whole.dropped["near positive"], whole.dropped["near negative"]) > 0
    for size in (1, 50, 700):
        monkeypatch.setattr(near, "_GRAM_VALUES", size)
        parts = choose(positives, candidates, 5, config, Means(docs=docs))
        assert parts.dropped == whole.dropped
        np.testing.assert_array_equal(parts.kept, whole.kept)


def test_groups_of_the_corpus_only_where_they_are_cheaper():
    docs = np.eye(10, dtype=np.float32)
    config = FilterConfig(near_negative=0.9)
    assert near.corpus_groups(docs, config, 4, 5) is not None
    assert near.corpus_groups(docs, config, 3, 5) is None
    assert near.corpus_groups(docs, FilterConfig(near_positive=0.9), 9, 5) is None
    assert near.corpus_groups(docs, FilterConfig(denoise=0.1), 10**9, 5) is None


def test_inputs_are_left_as_they_are():
    positives, candidates = scored([[0]], [[0.9]]), scored(ROWS, SCORES)
    before = [array.copy() for array in (*positives.lists, positives.scores, *candidates.lists, candidates.scores)]
    config = FilterConfig(min_score=0.0, absolute_margin=0.01, near_positive=0.99, near_negative=0.99, denoise=0.9)
    choose(positives, candidates, 2, config, Means(docs=DOCS, teacher=Table(np.zeros((1, 7)))))
    after = (*positives.lists, positives.scores, *candidates.lists, candidates.scores)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_sentence_transformers_keeps_the_same():
    """Its own mining over the same vectors: limits, margins below the lowest of one, two or three positives."""
    pytest.importorskip("sentence_transformers")
    datasets = pytest.importorskip("datasets")
    import torch
    from sentence_transformers import util

    draw = np.random.default_rng(5)
    n_docs, n_queries = 60, 25
    docs = draw.standard_normal((n_docs, 6)).astype(np.float32)
    docs /= np.linalg.norm(docs, axis=1, keepdims=True)
    own = [draw.permutation(n_docs)[: 1 + query % 3] for query in range(n_queries)]
    around = np.array([docs[rows].mean(axis=0) for rows in own]) + draw.standard_normal((n_queries, 6)) * 0.4
    queries = (around / np.linalg.norm(around, axis=1, keepdims=True)).astype(np.float32)
    texts = {f"doc {row}": docs[row] for row in range(n_docs)} | {f"query {i}": queries[i] for i in range(n_queries)}

    class Vectors:
        """What mine_hard_negatives asks of a model."""

        device = torch.device("cpu")
        similarity, similarity_pairwise = staticmethod(util.dot_score), staticmethod(util.pairwise_dot_score)

        def encode_query(self, given, **_):
            return np.stack([texts[text] for text in given])

        encode_document = encode_query

    pairs = [(f"query {i}", f"doc {row}") for i, rows in enumerate(own) for row in rows]
    dataset = datasets.Dataset.from_dict({"query": [a for a, _ in pairs], "answer": [b for _, b in pairs]})
    everything = [np.setdiff1d(np.arange(n_docs), rows) for rows in own]
    exact = queries.astype(np.float64) @ docs.astype(np.float64).T
    everything = [rows[np.argsort(-exact[i, rows], kind="stable")] for i, rows in enumerate(everything)]
    candidates = scored(everything, [exact[i, rows] for i, rows in enumerate(everything)])
    positives = scored(own, [exact[i, rows] for i, rows in enumerate(own)])
    for options in (
        {"absolute_margin": 0.1},
        {"relative_margin": 0.2},
        {"absolute_margin": 0.05, "relative_margin": 0.1, "max_score": 0.6, "min_score": 0.1},
    ):
        peer = util.mine_hard_negatives(
            dataset,
            Vectors(),
            corpus=[f"doc {row}" for row in range(n_docs)],
            num_negatives=n_docs - 6,
            range_max=n_docs - 3,
            output_format="triplet",
            verbose=False,
            **options,
        )
        theirs = {(row["query"], row["negative"]) for row in peer}
        found = choose(positives, candidates, n_docs - 6, FilterConfig(**options), Means())
        owners = owner_of(candidates.lists)[found.kept]
        kept = zip(owners.tolist(), candidates.lists.rows[found.kept].tolist(), strict=True)
        assert {(f"query {query}", f"doc {row}") for query, row in kept} == theirs
        assert 0 < len(theirs) < len(candidates.scores)


def test_lowest_of_lists():
    lists = Lists(np.array([0, 0, 2, 2, 3, 3]), np.arange(3))
    found = filters.lowest(lists, np.array([2, 1, NAN], np.float32))
    np.testing.assert_array_equal(found, [math.inf, 1, math.inf, NAN, math.inf])
    np.testing.assert_array_equal(filters.lowest(Lists(np.array([0, 0]), np.empty(0, int)), np.empty(0)), [math.inf])
