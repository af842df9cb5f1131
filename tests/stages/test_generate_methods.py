"""Queries without a generator: what the step makes of each method, from passages to the artifact."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny

from gplfast.config import GenerateConfig, load_config
from gplfast.errors import ConfigError, DataError
from gplfast.mining.bm25 import K1, B, Bm25
from gplfast.mining.copies import plain
from gplfast.mining.lists import single
from gplfast.mining.positives import others
from gplfast.pipeline import Pipeline
from gplfast.positive_settings import METHODS, T5, check, read_by
from gplfast.settings import output_settings
from gplfast.stages import generate, mine
from gplfast.store.corpus import Queries, load_corpus
from gplfast.store.generated import GeneratedQueries
from gplfast.store.manifest import Manifest, freshness

OTHERS = ("neighbours", "spans", "bm25")
WITHOUT = [method for method in METHODS if method != T5]


def stories(n=12, n_words=40, n_parts=3):
    """Documents of parts in a row under one title: sentences of random words, and one phrase in all parts."""
    texts = []
    for row in range(n):
        sentences = [" ".join(text.split()[:-1]).capitalize() for text in tiny.texts(n_words // 6, seed=row)]
        sentences.insert(row % 4, f"Here the red king of house {row // n_parts} was")
        texts.append(". ".join(sentences) + ".")
    titles = [f"Story number {row // n_parts}" for row in range(n)]
    return load_corpus(pa.table({"_id": [f"d{row}" for row in range(n)], "title": titles, "text": texts}))


def run(corpus, folder, method, *, seed=0, given=None, open_model=None, **options):
    config = GenerateConfig(method=method, **{"queries_per_passage": 3, **options})
    model = "encoder" if open_model is not None else ""
    wanted = generate.manifest(
        corpus.fingerprint, model, config, seed, given="" if given is None else given.fingerprint
    )
    found = generate.generate(corpus, folder, wanted, config, open_model or no_model, seed=seed, given=given)
    return found, Manifest.read(folder)


def no_model():
    raise AssertionError("a model was asked for")


def encoder():
    return tiny.HashEncoder()


def options(method):
    return {"open_model": encoder, "salient_by": "encoder"} if method == "salient" else {}


@pytest.mark.parametrize("method", WITHOUT)
def test_every_method_makes_the_same_artifact(tmp_path, method):
    corpus = stories()
    queries, made = run(corpus, tmp_path, method)
    assert isinstance(queries, GeneratedQueries)
    assert queries.ids[0] == "genQ1"
    n = 12 if method == "title" else 36
    assert 0.9 * n <= len(queries) <= n
    assert made.counts["queries"] == len(queries)
    assert made.counts["passages"] == 12
    assert all(len(plain(text).split()) >= 2 for text in queries.texts)
    assert all(text == " ".join(text.split()) for text in queries.texts)
    assert made.config["method"] == method
    assert set(made.config) == set(read_by(GenerateConfig(method=method))) - {
        "queries",
        "salient_model",
    } | {"seed", "shard_passages"}
    assert made.models == {}
    assert list(made.inputs) == ["corpus"]
    if method in OTHERS:
        assert (queries.sources != queries.passages).all()
    else:
        assert queries.sources is None
        if method != "noise":
            texts = corpus.texts()
            assert all(text in texts[row] for text, row in zip(queries.texts, queries.passages, strict=True))
    again = generate.load(tmp_path, made, n_passages=12)
    assert again.texts == queries.texts
    assert np.array_equal(again.passages, queries.passages)


@pytest.mark.parametrize("method", WITHOUT)
def test_shards_make_no_difference(tmp_path, monkeypatch, method):
    corpus, texts = stories(), []
    for size in (256, 5, 1):
        monkeypatch.setattr(generate, "SHARD_PASSAGES", size)
        queries, made = run(corpus, tmp_path / str(size), method, **options(method))
        sources = None if queries.sources is None else queries.sources.tolist()
        texts.append((queries.texts, queries.passages.tolist(), sources, made.counts))
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("method", [method for method in WITHOUT if method != "title"])
def test_the_seed_decides(tmp_path, method):
    corpus = stories()
    first, _ = run(corpus, tmp_path / "a", method)
    other, _ = run(corpus, tmp_path / "b", method, seed=1)
    assert first.texts != other.texts


@pytest.mark.parametrize("method", WITHOUT)
def test_a_sample_of_passages_and_more_queries_change_no_query(tmp_path, method):
    corpus = stories()
    few, made = run(corpus, tmp_path / "a", method, max_queries=8, extra_draws=0)
    rows = sorted(set(few.passages.tolist() if few.sources is None or method != "bm25" else few.sources.tolist()))
    assert made.counts["passages"] == (8 if method == "title" else 2)
    assert len(rows) <= made.counts["passages"]
    every, _ = run(corpus, tmp_path / "b", method, extra_draws=0)
    assert set(zip(few.texts, few.passages, strict=True)) <= set(zip(every.texts, every.passages, strict=True))
    if method in ("crop", "noise", "neighbours", "spans"):  # the first samples of more are the same
        more, _ = run(corpus, tmp_path / "c", method, queries_per_passage=6, extra_draws=0)
        assert set(every.texts) <= set(more.texts)


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


def test_the_passage_that_a_query_was_cut_from_is_no_negative(tmp_path):
    corpus = stories()
    queries, _ = run(corpus, tmp_path, "neighbours")
    excluded = mine.exclusions(corpus, queries, duplicates=False)
    for number in range(len(queries)):
        assert set(excluded.list(number).tolist()) == {queries.passages[number], queries.sources[number]}
    wide = mine.exclusions(corpus, queries, duplicates=True).part(0, len(queries))
    assert all(set(excluded.list(number)) <= set(wide.list(number)) for number in range(len(queries)))


@pytest.mark.parametrize(
    ("method", "texts", "message"),
    [
        ("title", ["No title.", "None."], "method title needs titles but none of 2 passages has one"),
        ("neighbours", ["One text.", "Another."], "needs documents of several passages but of 2 passages no two in a"),
        ("spans", ["One text only."], "method spans pairs a passage with another one but the corpus has 1;"),
        ("bm25", ["One text only."], "method bm25 pairs a passage with another one but the corpus has 1;"),
        ("spans", ["Red fox.", "Blue whale."], r"method spans made 0 queries \(passages 2, passages below quota 2, "),
        ("crop", ["?!", "..."], r"method crop made 0 queries \(passages 2, passages below quota 2, passages without"),
        ("crop", ["one two", "three"], r"method crop made 0 queries .*too short"),
        ("ict", ["Only one sentence."], r"method ict made 0 queries .*whole passage 1"),
        ("noise", ["?!"], "method noise made 0 queries"),
        ("salient", ["?!", "?"], "method salient made 0 queries"),
        ("bm25", ["red fox", "blue whale"], "method bm25 made 0 queries .*queries without passage 6|too short"),
    ],
)
def test_a_corpus_that_lacks_what_the_method_needs_is_said(tmp_path, method, texts, message):
    with pytest.raises(DataError, match=message):
        run(load_corpus(texts), tmp_path, method)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("method", ["ict", "crop", "noise", "salient"])
def test_one_passage_is_enough_for_its_own_parts(tmp_path, method):
    corpus = load_corpus(stories().bodies(np.arange(1)))
    queries, _ = run(corpus, tmp_path, method)
    assert len(queries) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"crop_min": 0.6}, r"crop_min is 0.6 but crop_max is 0.5"),
        ({"span_words_min": 11}, "span_words_min is 11 but span_words_max is 10"),
        ({"noise_mask": 0.6, "noise_replace": 0.5}, "add up to 1.2 but each word has one fate"),
        ({"queries": "q.jsonl"}, "queries is 'q.jsonl' but method is crop, which makes its own"),
    ],
)
def test_settings_that_do_not_fit_each_other(given, message):
    with pytest.raises(ConfigError, match=message):
        check(GenerateConfig(method="crop", **given))
    with pytest.raises(ConfigError, match=message):
        load_config(overrides={"generate": {"method": "crop", **given}})


def test_every_setting_is_read_by_some_method_and_t5_records_what_it_did_before():
    fields = set(GenerateConfig.__dataclass_fields__)
    assert set().union(*(read_by(GenerateConfig(method=method)) for method in METHODS)) == fields
    before = generate.manifest("c", "m", GenerateConfig(), 0)
    assert set(before.config) - {"seed", "shard_passages"} == {
        *("queries_per_passage", "max_queries", "copied", "extra_draws", "top_k", "top_p", "temperature"),
        *("max_new_tokens", "passage_tokens", "window", "prefix"),
    }
    assert before.models == {"generator": "m"}
    assert generate.manifest("c", "m", GenerateConfig(crop_min=0.2, span_keep=0.1), 0).key == before.key
    assert generate.manifest("c", "", GenerateConfig(method="crop"), 0).key != before.key
    crop = generate.manifest("c", "", GenerateConfig(method="crop", top_p=0.5, model="x", span_keep=0.3), 0)
    assert crop.key == generate.manifest("c", "", GenerateConfig(method="crop"), 0).key
    assert output_settings(GenerateConfig()).keys() == before.config.keys() - {"seed", "shard_passages"}


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from stages import test_generate_methods as here
from gplfast.stages import generate
from gplfast.store.shards import ShardSet
generate.SHARD_PASSAGES = 2
write = ShardSet.write
def slowly(self, shard, table):
    write(self, shard, table)
    print("wrote", shard, flush=True)
    time.sleep(60 if shard == 2 else 0)
ShardSet.write = slowly
here.run(here.stories(), here.Path({folder!r}), {method!r}, **here.options({method!r}))
"""


@pytest.mark.parametrize("method", ["crop", "spans", "salient", "bm25"])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, method):
    monkeypatch.setattr(generate, "SHARD_PASSAGES", 2)
    corpus = stories()
    run(corpus, tmp_path / "whole", method, **options(method))
    tests = Path(__file__).resolve().parent.parent
    code = KILLED.format(tests=str(tests), folder=str(tmp_path / "killed"), method=method)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert [process.stdout.readline() for _ in range(3)][-1] == "wrote 2\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    before = (tmp_path / "killed" / "shard-00001.parquet").stat().st_mtime_ns
    time.sleep(0.01)
    run(corpus, tmp_path / "killed", method, **options(method))
    assert (tmp_path / "killed" / "shard-00001.parquet").stat().st_mtime_ns == before
    for path in sorted((tmp_path / "whole").iterdir()):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes(), path.name


def test_no_generator_is_asked_for(world, tmp_path):
    """Neither its files nor a package that serves it: a hub name that cannot be reached is no matter."""
    config = load_config(overrides=world.settings(generate={"method": "crop", "model": "no/such-model"}))
    pipeline = Pipeline(world.corpus, tmp_path, config)
    pipeline.check(["generate"])
    with pipeline.work:
        assert len(pipeline.step("generate")) > 0
    assert Manifest.read(tmp_path / "generate").models == {}


def test_the_encoder_of_salient_spans_is_checked_and_served(world, tmp_path, cache):
    from gplfast.errors import ModelError

    given = {"method": "salient", "salient_by": "encoder", "salient_model": str(world.student)}
    pipeline = Pipeline(world.corpus, tmp_path, load_config(overrides=world.settings(generate=given)))
    pipeline.check(["generate"])
    with pipeline.work:
        pipeline.step("generate")
    made = Manifest.read(tmp_path / "generate")
    assert made.models == {"encoder": pipeline.model(str(world.student)).fingerprint}
    assert list(made.served) == ["encoder"]
    given["salient_model"] = str(world.generator)
    wrong = Pipeline(world.corpus, tmp_path, load_config(overrides=world.settings(generate=given)))
    with pytest.raises(ModelError, match=r"salient_model: .* must be an encoder"):
        wrong.check(["generate"])


def test_a_file_of_queries_that_is_missing_is_said_before_any_work(world, tmp_path):
    given = {"method": "bm25", "queries": str(tmp_path / "no.jsonl")}
    pipeline = Pipeline(world.corpus, tmp_path / "w", load_config(overrides=world.settings(generate=given)))
    with pytest.raises(DataError, match=r"no\.jsonl: no such file or folder"):
        pipeline.check(["generate"])
    (tmp_path / "no.jsonl").write_text('{"_id": "a", "text": "king of france"}\n{"_id": "b"}\n')
    again = Pipeline(world.corpus, tmp_path / "w", load_config(overrides=world.settings(generate=given)))
    with pytest.raises(DataError, match="line 2: missing 'text'"):
        again.check(["generate"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "crop", "--top-p", "0.5"], "--generate-top-p has no effect: method is crop, which does not read"),
        (["--crop-min", "0.2"], "--generate-crop-min has no effect: method is t5, which does not read it"),
        (["--method", "crops"], "--generate-method is 'crops' but must be one of t5, ict, crop"),
    ],
)
def test_flags_of_another_method_are_refused(capsys, world, tmp_path, arguments, message):
    given = ["generate", "--corpus", world.corpus, "--work", tmp_path / "w"]
    status, _, err = tiny.run_cli(capsys, *given, *arguments)
    assert status == 2
    assert message in err


@pytest.mark.usefixtures("cache")
@pytest.mark.filterwarnings("ignore")
def test_a_whole_run_on_titles(capsys, world, tmp_path):
    flags = world.flags()
    for name in ("--generator", "--generate-max-new-tokens", "--generate-window"):
        at = flags.index(name)
        del flags[at : at + 2]
    corpus = tiny.write_corpus(tmp_path / "corpus", 40)
    lines = [json.loads(line) for line in (corpus / "corpus.jsonl").read_text().splitlines()]
    for line in lines:
        line["title"] = " ".join(line["text"].split()[1:4])
    (corpus / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["--corpus", corpus, "--work", tmp_path / "work", "--generate-method", "title", "--evaluate"]
    status, out, err = tiny.run_cli(capsys, "run", *given, *flags)
    assert status is None or status == 0, err
    assert "zero-shot" in out
    made = Manifest.read(tmp_path / "work" / "generate")
    assert made.config["method"] == "title"
    assert made.counts["queries"] == 40
    assert (tmp_path / "work" / "train" / "gpl" / "model" / "modules.json").is_file()
