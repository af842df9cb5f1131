"""Queries from a part of a passage: each method against its definition."""

from __future__ import annotations

import collections
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gplfast.mining.copies import plain
from gplfast.mining.positives import cuts, documents, salient
from gplfast.mining.positives.quota import fill
from gplfast.mining.positives.text import Words, draws, one_line, pick, sentences, uniform
from gplfast.mining.sampling import below
from gplfast.mining.sampling import words as random_words
from gplfast.store.corpus import load_corpus

TEXT = 'Naïve "T cells" (n = 12) do not divide. Why? They rest,\nas β-cells do... At least in mice.'


def random(n, item=0):
    return random_words(7, "test", item, n)


def test_a_run_is_a_slice_of_the_text_as_written():
    words = Words.of(TEXT)
    assert len(words) == 19
    assert words.run(0, 5) == 'Naïve "T cells" (n = 12'
    assert words.run(8, 3) == "Why? They rest"
    assert words.run(3, 0) == ""
    assert not Words.of("... !")


def test_sentences_have_their_marks_and_end_at_line_ends():
    assert [TEXT[start:end] for start, end in sentences(TEXT)] == [
        'Naïve "T cells" (n = 12) do not divide.',
        "Why?",
        "They rest,",
        "as β-cells do...",
        "At least in mice.",
    ]
    assert sentences(" \n ") == []
    assert sentences("one") == [(0, 3)]


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**31 - 1))
def test_whole_numbers_are_those_of_the_other_draws(word, limit):
    assert pick(np.uint64(word), limit) == below(np.array([word], np.uint64), np.array([limit]))[0]
    assert 0 <= uniform(np.uint64(word)) < 1


def test_no_two_samples_share_their_random_words():
    seen = [tuple(draws(1, stage, row, sample, 3)) for stage in "ab" for row in range(5) for sample in (0, 1, 2**25)]
    assert len({word for stream in seen for word in stream}) == 3 * len(seen)
    assert draws(1, "a", 2**31 - 1, 2**32 - 1, 2).shape == (2,)


@given(st.integers(1, 400), st.tuples(st.floats(0, 1), st.floats(0.01, 1)).map(sorted), st.integers(0, 2**32))
def test_a_crop_has_the_share_of_the_words_that_was_drawn_and_fits(n_words, ratios, item):
    first, length = cuts.crop_bounds(n_words, tuple(ratios), random(2, item))
    low, high = ratios
    assert math.floor(n_words * low) <= length <= math.floor(n_words * high)
    assert 0 <= first <= n_words - length


def test_crops_are_contiguous_and_of_every_length_and_place():
    """Contriever: the ratio is uniform in [0.1, 0.5), the start uniform."""
    words = Words.of(" ".join(f"w{number}" for number in range(100)))
    lengths, firsts = collections.Counter(), set()
    for item in range(4000):
        found = [int(word[1:]) for word in cuts.crop(words, (0.1, 0.5), random(2, item)).split()]
        assert found == list(range(found[0], found[0] + len(found)))
        lengths[len(found)] += 1
        firsts.add(found[0])
    assert set(lengths) == set(range(10, 50))
    assert min(firsts) == 0
    assert max(firsts) >= 88
    few = {cuts.crop_bounds(4, (0.5, 0.5), random(2, item)) for item in range(60)}
    assert few == {(0, 2), (1, 2), (2, 2)}
    assert all(60 < number < 145 for number in lengths.values())  # 100 each; the standard deviation is 10


def test_the_sentences_of_the_inverse_cloze_come_once_each_in_random_order():
    text = " ".join(f"Sentence number {number}." for number in range(6))
    expected = sorted(f"Sentence number {number}." for number in range(6))
    orders = {tuple(cuts.shuffled_sentences(text, seed=3, row=row)) for row in range(300)}
    assert all(sorted(order) == expected for order in orders)
    assert len(orders) > 200
    assert {order[0] for order in orders} == set(expected)
    assert cuts.shuffled_sentences(text, seed=3, row=1) == cuts.shuffled_sentences(text, seed=3, row=1)


@pytest.mark.parametrize(("delete", "replace", "mask"), [(0.1, 0, 0), (0, 0.2, 0), (0, 0, 0.3), (0.2, 0.1, 0.3)])
def test_noise_hits_the_share_of_the_words_that_was_asked_for(delete, replace, mask):
    words = Words.of(" ".join(f"w{number}" for number in range(1000)))
    noise = cuts.Noise(delete, replace, mask, "<hidden>")
    counts = collections.Counter()
    for item in range(40):
        bits = random(cuts.n_random(1000, (0.5, 0.5)), item)
        found = cuts.noisy_crop(words, (0.5, 0.5), noise, bits, lambda *_: "other").split()
        kept = [int(word[1:]) for word in found if word.startswith("w")]
        assert kept == sorted(kept)
        assert kept[-1] - kept[0] < 500
        counts += collections.Counter(
            deleted=500 - len(found), replaced=found.count("other"), masked=found.count("<hidden>")
        )
    for name, share in (("deleted", delete), ("replaced", replace), ("masked", mask)):
        assert counts[name] / 20_000 == pytest.approx(share, abs=4 * math.sqrt(0.25 / 20_000))
        assert (counts[name] == 0) == (share == 0)


def test_noise_leaves_the_marks_between_words():
    words = Words.of("Alpha, beta; gamma!")
    bits = np.zeros(cuts.n_random(3, (1, 1)), np.uint64)
    bits[0] = 2**64 - 1  # as near to the whole as the ratio gets
    whole = (1.0, 1.0)
    assert cuts.noisy_crop(words, whole, cuts.Noise(0, 0, 0, ""), bits, lambda *_: "") == "Alpha, beta; gamma"
    assert cuts.noisy_crop(words, whole, cuts.Noise(0, 1, 0, ""), bits, lambda *_: "") == "Alpha, beta; gamma"
    assert cuts.noisy_crop(words, whole, cuts.Noise(0, 0, 1, "[X]"), bits, lambda *_: "") == "[X], [X]; [X]"
    bits[2 + 3] = 2**63  # the second word is above one half
    assert cuts.noisy_crop(words, whole, cuts.Noise(0.5, 0, 0, ""), bits, lambda *_: "") == "beta;"
    assert cuts.noisy_crop(words, whole, cuts.Noise(1, 0, 0, ""), bits, lambda *_: "") == ""


def test_documents_are_split_ids_or_neighbouring_equal_titles():
    titled = load_corpus(_table(titles=["a", "a", "", "", "b", "a", "b", "b", " b"]))
    starts = documents.document_starts(titled)
    assert starts.tolist() == [0, 0, 2, 3, 4, 5, 6, 6, 6]
    stops = documents.document_stops(starts)
    assert stops.tolist() == [2, 2, 3, 4, 5, 6, 9, 9, 9]
    near = [documents.neighbours(row, int(starts[row]), int(stops[row])) for row in range(9)]
    assert near == [[1], [0], [], [], [], [], [7], [6, 8], [7]]
    split = load_corpus(_table(titles=["same", "same"], text="one two three four five"), split_words=2)
    assert documents.document_starts(split).tolist() == [0, 0, 0, 3, 3, 3]


def _table(titles, text="some text"):
    import pyarrow as pa

    n = len(titles)
    return pa.table({"_id": [f"d{row}" for row in range(n)], "title": titles, "text": [text] * n})


def test_random_spans_have_the_lengths_that_were_asked_for():
    text = " ".join(f"w{number}" for number in range(50))
    words = Words.of(text)
    lengths = collections.Counter()
    for item in range(200):
        found = salient.random_spans(words, 16, 4, 16, random(32, item))
        assert 10 < len(found) <= 16
        assert len(set(found)) == len(found)
        for start, end in found:
            numbers = [int(word[1:]) for word in text[start:end].split()]
            assert numbers == list(range(numbers[0], numbers[-1] + 1))
            lengths[len(numbers)] += 1
    assert set(lengths) == set(range(4, 17))
    short = Words.of("two words")
    assert salient.random_spans(short, 16, 4, 16, random(32)) == [(0, 9)]
    assert salient.random_spans(Words.of(""), 16, 4, 16, random(32)) == []


def test_candidates_are_ordered_by_score_then_number():
    scores = np.array([1, np.nan, 3, 1, 3, 0], np.float32)
    assert salient.order(scores).tolist() == [2, 4, 0, 3, 5]


def test_a_masked_span_leaves_the_rest_of_its_sentences():
    text = "One two. Three four five six. Seven eight."
    at = text.index("four")
    assert salient.masked(text, (at, at + len("four five")), "[MASK]") == "Three [MASK] six."
    both = (text.index("six"), text.index("Seven") + len("Seven"))
    assert salient.masked(text, both, "…") == "Three four five … eight."


def test_a_quota_is_filled_in_order_and_what_is_dropped_is_counted():
    samples = ["a b", "a\n b ", "word", "?", "B, a!", "c d", "whole thing", "e f", "g h"]

    def sample(number):
        return (samples[number], 3) if number < len(samples) else None

    found = fill(sample, ("Whole THING.", "x"), 3, 9)
    assert found.samples == [("a b", 3), ("B, a!", 3), ("c d", 3)]
    assert +found.counts == {"drawn": 6, "duplicate": 1, "too short": 2, "made up": 2}
    more = fill(sample, ("Whole THING.", "x"), 5, 4)
    assert [text for text, _ in more.samples] == ["a b", "B, a!", "c d", "e f", "g h"]
    assert more.counts["whole passage"] == 1
    few = fill(sample, (), 5, 1)
    assert (few.counts["drawn"], few.counts["passages below quota"]) == (6, 1)
    none = fill(lambda number: None, (), 5, 1)
    assert none.samples == []
    assert none.counts["drawn"] == 0


def test_a_query_is_one_line():
    assert one_line(" a\n\tb  c ") == "a b c"
    assert plain(one_line(TEXT)) == plain(TEXT)
