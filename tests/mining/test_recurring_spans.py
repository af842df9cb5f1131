"""Recurring spans against their definition, in plain Python."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gplfast.mining.bm25 import stop_words
from gplfast.mining.positives import recurring
from gplfast.mining.positives.text import Words
from gplfast.mining.sampling import words as random_words

STOP = frozenset({"the", "of"})


def spans_of(texts, documents=None, shortest=2, longest=10):
    """{(document, words): [(passage, first word)]} of what `find` gives."""
    documents = documents or [0] * len(texts)
    words = [Words.of(text) for text in texts]
    found = recurring.find(words, documents, STOP, shortest=shortest, longest=longest)
    spans = collections.defaultdict(list)
    for passage, first, length in zip(found.passages, found.firsts, found.lengths, strict=True):
        folded = tuple(
            words[passage].text[start:end].casefold() for start, end in words[passage].spans[first : first + length]
        )
        spans[documents[passage], folded].append((int(passage), int(first)))
    numbers = [{int(found.spans[at]) for at in found.of_span.list(span)} for span in range(len(spans))]
    assert numbers == [{span} for span in range(len(spans))]
    assert len(found.of_span.rows) == len(found.passages)
    return dict(spans)


def by_definition(texts, documents, shortest, longest):
    """Every run, then those in two passages, then those that no longer one has around each time."""
    runs = collections.defaultdict(list)
    for passage, text in enumerate(texts):
        words = Words.of(text)
        folded = [text[start:end].casefold() for start, end in words.spans]
        for first in range(len(words)):
            for length in range(shortest, longest + 1):
                stop = first + length
                if stop > len(words) or folded[first] in STOP or folded[stop - 1] in STOP:
                    continue
                gaps = [text[words.spans[at][1] : words.spans[at + 1][0]] for at in range(first, stop - 1)]
                if all(gap.isspace() for gap in gaps):
                    runs[documents[passage], tuple(folded[first:stop])].append((passage, first))
    runs = {name: places for name, places in runs.items() if len({passage for passage, _ in places}) > 1}

    def inside(name, places):
        for (document, longer), theirs in runs.items():
            if document != name[0] or len(longer) <= len(name[1]):
                continue
            around = [
                any(p == q and f <= first and first + len(name[1]) <= f + len(longer) for q, f in theirs)
                for p, first in places
            ]
            if all(around) and len(theirs) == len(places):
                return True
        return False

    return {name: places for name, places in runs.items() if not inside(name, places)}


def test_a_hand_example():
    texts = [
        "The Treaty of Versailles ended the war. Red fox.",
        "Nobody liked the treaty of Versailles; red, fox.",
        "War of the worlds. Treaty of",
    ]
    # "ended the war" is in one passage, "red, fox" has a comma, "of Versailles" begins with a stop word, and "treaty"
    # alone is too short.
    assert spans_of(texts) == {(0, ("treaty", "of", "versailles")): [(0, 1), (1, 3)]}
    assert spans_of(texts, shortest=1) == {
        (0, ("treaty", "of", "versailles")): [(0, 1), (1, 3)],
        (0, ("treaty",)): [(0, 1), (1, 3), (2, 4)],  # once more than the longer one
        (0, ("war",)): [(0, 6), (2, 0)],
        (0, ("red",)): [(0, 7), (1, 6)],
        (0, ("fox",)): [(0, 8), (1, 7)],
    }
    assert spans_of(texts, longest=2) == {}


def test_spans_recur_within_their_document_only():
    texts = ["red fox a", "b red fox", "red fox c", "red cat"]
    assert spans_of(texts, [0, 1, 1, 1]) == {(1, ("red", "fox")): [(1, 1), (2, 0)]}
    assert spans_of(texts, [0, 1, 2, 3]) == {}
    assert spans_of(["red fox red fox"]) == {}  # twice, in one passage
    assert spans_of([]) == {}
    assert spans_of(["", "?!"]) == {}


@given(
    st.lists(st.text("abcd the,.", max_size=40), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(0, 4),
    st.integers(1, 2),
)
def test_spans_are_those_of_the_definition(texts, shortest, more, n_documents):
    texts = [" ".join(text.replace("the", " the ")) if len(text) % 2 else text for text in texts]
    documents = sorted(number % n_documents for number in range(len(texts)))
    longest = shortest + more
    assert spans_of(texts, documents, shortest, longest) == by_definition(texts, documents, shortest, longest)


def test_a_drawn_span_is_in_both_passages_and_all_are_drawn():
    texts = ["red fox and blue sky", "one red fox", "the blue sky, a red fox", "nothing of it"]
    words = [Words.of(text) for text in texts]
    found = recurring.find(words, [0] * 4, STOP, shortest=2, longest=10)
    drawn = collections.Counter()
    for item in range(600):
        at = recurring.draw(found, 0, random_words(0, "test", item, 2))
        first, length = int(found.firsts[at]), int(found.lengths[at])
        passage = int(found.passages[at])
        span = words[passage].run(first, length)
        assert span in texts[0]
        drawn[passage, span] += 1
    assert set(drawn) == {(1, "red fox"), (2, "red fox"), (2, "blue sky")}
    assert drawn[2, "blue sky"] == pytest.approx(300, abs=50)  # the span first, then its place
    assert recurring.draw(found, 3, random_words(0, "test", 0, 2)) is None


@given(
    st.integers(1, 40),
    st.integers(0, 39),
    st.integers(1, 10),
    st.tuples(st.integers(1, 30), st.integers(0, 30)),
    st.integers(0, 2**32),
)
def test_a_window_is_around_the_span_and_of_the_size(n_words, first, n_span, size, item):
    low, more = size
    first = min(first, n_words - 1)
    n_span = min(n_span, n_words - first)
    words, sizes = Words.of(" ".join(f"w{number}" for number in range(n_words))), (low, low + more)
    span = list(range(first, first + n_span))
    bits = random_words(0, "test", item, 3)
    kept = [int(word[1:]) for word in recurring.window(words, (first, n_span), sizes, 1.0, bits).split()]
    assert kept == list(range(kept[0], kept[0] + len(kept)))
    assert set(span) <= set(kept)
    assert min(max(low, n_span), n_words) <= len(kept) <= min(max(low + more, n_span), n_words)
    cut = [int(word[1:]) for word in recurring.window(words, (first, n_span), sizes, 0.0, bits).split()]
    rest = [number for number in range(n_words) if number not in span]
    assert min(low, len(rest)) <= len(cut) <= min(low + more, len(rest))
    if cut:
        start = rest.index(cut[0])
        assert cut == rest[start : start + len(cut)]
        assert {first - 1, first + n_span} & set(cut)  # next to where the span was


def test_the_span_stays_as_often_as_asked():
    words = Words.of(" ".join(f"w{number}" for number in range(60)))
    n_kept = sum(
        "w30 w31" in recurring.window(words, (30, 2), (5, 30), 0.3, random_words(0, "test", item, 3))
        for item in range(4000)
    )
    assert n_kept / 4000 == pytest.approx(0.3, abs=0.03)


def test_stop_words_are_common_english_words():
    assert {"the", "of", "and", "with", "because"} <= stop_words()
    assert not {"fox", "protein"} & stop_words()
    assert all(word == word.casefold() for word in stop_words())


def test_many_words_are_searched_in_vectors():
    """A passage of 100,000 words, most of them once: nothing is quadratic."""
    text = " ".join(f"w{number}" for number in range(100_000))
    assert spans_of([text, "x w5 w6 w7 y w99998 w99999"]) == {
        (0, ("w5", "w6", "w7")): [(0, 5), (1, 1)],
        (0, ("w99998", "w99999")): [(0, 99_998), (1, 5)],
    }
