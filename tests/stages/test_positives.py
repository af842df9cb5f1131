"""Each method without a generator: which passages and words its queries are made of."""

from __future__ import annotations

import math
import re

import numpy as np
import pyarrow as pa
import pytest
import tiny
from stages.methods import options, run, stories

from gplfast.config import GenerateConfig
from gplfast.errors import DataError
from gplfast.mining.bm25 import K1, B, Bm25
from gplfast.mining.copies import plain
from gplfast.mining.lists import single
from gplfast.mining.positives import others
from gplfast.stages import generate
from gplfast.store.corpus import Queries, load_corpus
from gplfast.store.manifest import freshness


def test_titles_are_exact_and_what_has_none_is_counted(tmp_path):
    corpus = load_corpus(
        pa.table(
            {
                "_id": ["a", "b", "c", "d", "e"],
                "title": ["On  the Origin, of: Species!", "", "Cancer", "Only a title", " "],
                "text": ["It is so.", "No title here.", "It grows.", "", "Blank title here."],
            }
        )
    )
    queries, made = run(corpus, tmp_path, "title", queries_per_passage=5)
    assert queries.texts == ["On the Origin, of: Species!"]
    assert queries.passages.tolist() == [0]
    assert {name: number for name, number in made.counts.items() if number} == {
        "passages": 5,
        "drawn": 3,
        "queries": 1,
        "passages without title": 2,
        "too short": 1,
        "whole passage": 1,
        "passages below quota": 4,
    }


def test_sentences_are_of_the_text_without_its_title(tmp_path):
    corpus = load_corpus(
        pa.table({"_id": ["a", "b"], "title": ["T", ""], "text": ["One sentence. And another one!", "A single one."]})
    )
    queries, made = run(corpus, tmp_path, "ict", queries_per_passage=9)
    assert sorted(queries.texts) == ["And another one!", "One sentence."]
    assert made.counts["whole passage"] == 1
    assert made.counts["passages below quota"] == 2


def test_neighbours_are_next_to_each_other_in_one_document(tmp_path):
    corpus = stories(n=14)  # the last document has two parts
    queries, made = run(corpus, tmp_path, "neighbours", queries_per_passage=8)
    bodies = corpus.bodies(np.arange(14))
    for text, row, source in zip(queries.texts, queries.passages, queries.sources, strict=True):
        assert abs(row - source) == 1
        assert row // 3 == source // 3
        assert text in bodies[source]
    assert set(queries.passages.tolist()) == set(range(14))
    assert set(queries.sources[queries.passages == 1].tolist()) == {0, 2}
    assert made.counts["passages without neighbour"] == 0
    cut, _ = run(corpus, tmp_path / "s", "neighbours", cut="sentence")
    for text, source in zip(cut.texts, cut.sources, strict=True):
        assert text.endswith(".")
        assert text in bodies[source]


def test_neighbours_of_split_documents_are_their_parts(tmp_path):
    texts = [" ".join(f"w{doc}x{number}" for number in range(30)) for doc in range(4)]
    corpus = load_corpus(texts, split_words=10)
    queries, _ = run(corpus, tmp_path, "neighbours")
    assert len(corpus) == 12
    for text, row, source in zip(queries.texts, queries.passages, queries.sources, strict=True):
        assert corpus.parent_ids[row] == corpus.parent_ids[source]
        assert abs(row - source) == 1
        assert text in corpus.text(int(source))


def test_spans_recur_in_both_passages_of_the_document(tmp_path):
    corpus = stories()
    queries, _ = run(corpus, tmp_path, "spans", span_keep=1.0, span_window_max=8)
    for text, row, source in zip(queries.texts, queries.passages, queries.sources, strict=True):
        assert row != source
        assert row // 3 == source // 3
        assert text in corpus.text(int(source))
        words = plain(text).split()
        runs = {f" {' '.join(words[at : at + 2])} " for at in range(len(words) - 1)}
        assert any(pair in plain(corpus.text(int(row))) for pair in runs)
    cut, _ = run(corpus, tmp_path / "cut", "spans", span_keep=0.0)
    assert cut.texts != queries.texts


def test_spans_of_any_two_passages_where_no_document_has_two(tmp_path):
    corpus = load_corpus(["A red fox ran home.", "Nothing here.", "We saw the red fox.", "The red fox is ill."])
    queries, made = run(corpus, tmp_path, "spans", queries_per_passage=4, extra_draws=9, span_keep=1.0)
    assert set(queries.passages.tolist()) == {0, 2, 3}
    assert set(zip(queries.passages.tolist(), queries.sources.tolist(), strict=True)) <= {
        (row, source) for row in (0, 2, 3) for source in (0, 2, 3) if row != source
    }
    assert all("red fox" in text for text in queries.texts)
    assert made.counts["passages without recurring span"] == 1


def bm25_by_hand(corpus, part, row):
    """Lucene's BM25 of a text with one passage (Kamphuis et al. 2020), in float64."""
    from bm25s.stopwords import STOPWORDS_EN

    def tokens(text):
        return [word for word in re.findall(r"\b\w\w+\b", text.lower()) if word not in STOPWORDS_EN]

    docs = [tokens(text) for text in corpus.texts()]
    mean = sum(map(len, docs)) / len(docs)
    total = 0.0
    for word in tokens(part):
        n_with = sum(word in doc for doc in docs)
        often = docs[row].count(word)
        weight = math.log(1 + (len(docs) - n_with + 0.5) / (n_with + 0.5))
        total += weight * often / (often + K1 * (1 - B + B * len(docs[row]) / mean))
    return total


def test_a_document_of_many_shards_is_searched_once(tmp_path, monkeypatch):
    texts = stories(14).bodies(np.arange(14))
    titles = ["one"] * 9 + ["two"] * 3 + ["three"] * 2
    corpus = load_corpus(pa.table({"_id": [f"d{row}" for row in range(14)], "title": titles, "text": texts}))
    whole, _ = run(corpus, tmp_path / "whole", "spans")
    find, searched = others.recurring.find, []

    def count(texts, *args, **options):
        searched.append(len(texts))
        return find(texts, *args, **options)

    monkeypatch.setattr(others.recurring, "find", count)
    monkeypatch.setattr(generate, "SHARD_PASSAGES", 2)
    parts, _ = run(corpus, tmp_path / "parts", "spans")
    assert searched == [9, 3, 2]
    assert parts.texts == whole.texts
    np.testing.assert_array_equal(parts.passages, whole.passages)
    np.testing.assert_array_equal(parts.sources, whole.sources)


@pytest.mark.parametrize("one_document", [False, True])
def test_spans_that_do_not_fit_in_memory_are_refused(tmp_path, monkeypatch, one_document):
    texts = ["Größe und Maß 12", "Eine Größe und Länge", "zwei"]
    titles = ["one", "one", "two"] if one_document else [""] * 3
    corpus = load_corpus(pa.table({"_id": list("abc"), "title": titles, "text": texts}))
    n_passages = 2 if one_document else 3
    searched = " ".join(texts[:n_passages])
    n_words, n_bytes = len(searched.split()), len(searched.encode()) - (n_passages - 1)
    needed = 250 * n_words + n_bytes
    monkeypatch.setattr(generate, "SHARD_PASSAGES", 2)
    monkeypatch.setattr(others, "available_bytes", lambda: needed - 1)
    wanted = rf"about {needed / 1024:.0f} KiB of memory for the {n_words} words of {n_passages} passages .*split_words"
    with pytest.raises(DataError, match=wanted):
        run(corpus, tmp_path, "spans")
    for free in (needed, 0):  # 0: the system does not say
        monkeypatch.setattr(others, "available_bytes", lambda free=free: free)
        run(corpus, tmp_path / str(free), "spans", span_window_min=3, extra_draws=20)


def test_the_best_spans_are_those_of_an_independent_bm25(tmp_path):
    corpus = stories()
    every, _ = run(corpus, tmp_path / "all", "salient", queries_per_passage=16, extra_draws=0)
    best, made = run(corpus, tmp_path / "best", "salient", queries_per_passage=3)
    assert made.counts["queries"] == 36
    for row in range(12):
        mine_all = [text for text, own in zip(every.texts, every.passages, strict=True) if own == row]
        scores = [bm25_by_hand(corpus, text, row) for text in mine_all]
        assert len(mine_all) > 10
        assert scores == pytest.approx(sorted(scores, reverse=True), rel=1e-6)
        assert min(scores) < max(scores)
        assert [text for text, own in zip(best.texts, best.passages, strict=True) if own == row] == mine_all[:3]


def test_scores_with_the_own_passage_are_those_of_the_search():
    texts = [*stories().texts(), "", "unrelated"]
    index = Bm25(texts)
    parts = [text[start : start + 30] for text in texts[:6] for start in (0, 20, 40)] + ["", "zzz", "the of"]
    for row in range(len(texts)):
        found = index.own_scores(parts, row)
        assert np.array_equal(found, index.pair_scores(parts, single(np.full(len(parts), row))), equal_nan=True)
    assert np.isnan(Bm25(["", "?"]).own_scores(["word"], 0)).all()


def test_the_best_spans_by_an_encoder_have_the_highest_cosine(tmp_path):
    corpus, model = stories(), tiny.HashEncoder()
    found, made = run(corpus, tmp_path / "all", "salient", queries_per_passage=16, extra_draws=0, **options("salient"))
    best, _ = run(corpus, tmp_path / "best", "salient", **options("salient"))
    assert made.models == {"encoder": "encoder"}
    for row in (0, 5, 11):
        own = [text for text, passage in zip(found.texts, found.passages, strict=True) if passage == row]
        vectors = model.encode([corpus.text(row), *own], kind="query", batch_size=0, progress=None).astype(np.float64)
        cosines = vectors[1:] @ vectors[0] / np.linalg.norm(vectors[1:], axis=1) / np.linalg.norm(vectors[0])
        assert (np.diff(cosines) <= 1e-7).all()
        assert [text for text, passage in zip(best.texts, best.passages, strict=True) if passage == row] == own[:3]


def test_candidates_are_encoded_as_queries_and_passages_as_documents(tmp_path):
    """Models put another prompt before each."""
    asked = {"query": [], "document": []}

    class Asked(tiny.HashEncoder):
        def encode(self, texts, *, kind, batch_size, progress):
            asked[kind] += texts
            return super().encode(texts, kind=kind, batch_size=batch_size, progress=progress)

    corpus = stories()
    found, _ = run(corpus, tmp_path, "salient", open_model=Asked, salient_by="encoder")
    assert asked["document"] == corpus.texts()
    assert set(found.texts) <= set(asked["query"])


def test_salient_sentences_and_masked_spans(tmp_path):
    corpus = stories()
    bodies = corpus.bodies(np.arange(12))
    sentences, _ = run(corpus, tmp_path / "a", "salient", salient_unit="sentences")
    assert all(text.endswith(".") for text in sentences.texts)
    masked, _ = run(corpus, tmp_path / "b", "salient", salient_masked=True, mask_text="___")
    for text, row in zip(masked.texts, masked.passages, strict=True):
        before, after = text.split("___")
        assert before in bodies[row]
        assert after in bodies[row]
        assert text.endswith(".") or after == ""


def test_a_query_of_bm25_has_the_best_passage_that_is_not_its_own(tmp_path):
    texts = stories(20).bodies(np.arange(20))
    corpus = load_corpus([*texts, texts[0]])  # a copy is no other passage
    queries, made = run(corpus, tmp_path, "bm25", crop_min=0.3, crop_max=0.6)
    index = Bm25(corpus.texts())
    for text, row, source in zip(queries.texts, queries.passages.tolist(), queries.sources.tolist(), strict=True):
        assert text in corpus.text(source)
        own = {0, 20} if source in (0, 20) else {source}
        assert row not in own
        assert row == next(found for found in index.search([text], 3).ids[0] if found not in own)
    assert made.counts["queries without passage"] == 0


def test_the_corpus_is_sorted_once_for_all_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "SHARD_PASSAGES", 2)
    corpus = stories(21)
    argsort, sorted_whole = np.argsort, []

    def count(values, *args, **options):
        sorted_whole.append(np.shape(values) == (21,))
        return argsort(values, *args, **options)

    monkeypatch.setattr(np, "argsort", count)
    run(corpus, tmp_path, "bm25")
    assert sum(sorted_whole) == 1


def test_real_queries_get_their_best_passage(tmp_path):
    corpus = load_corpus(["The red fox ran.", "A blue whale swam.", "Green grass."])
    given = Queries.from_lists(list("vwxyz"), ["blue  whales, a whale", "fox", "fox", "nothing known", "grass\nGreen"])
    queries, made = run(corpus, tmp_path, "bm25", given=given)
    assert list(zip(queries.texts, queries.passages, strict=True)) == [
        ("blue whales, a whale", 1),
        ("fox", 0),  # people ask in one word
        ("grass Green", 2),
    ]
    assert queries.sources is None
    assert {name: number for name, number in made.counts.items() if number} == {
        "given queries": 5,
        "drawn": 5,
        "queries": 3,
        "duplicate": 1,
        "queries without passage": 1,
    }
    assert made.inputs["given queries"] == given.fingerprint
    other = Queries.from_lists(["v"], ["fox"])
    config = GenerateConfig(method="bm25", queries_per_passage=3)
    wanted = generate.manifest(corpus.fingerprint, "", config, 0, given=other.fingerprint)
    assert freshness(tmp_path, wanted).reason == "inputs.given queries changed"
