from __future__ import annotations

import math

import numpy as np
import pytest
import tiny

from gplfast.config import GenerateConfig
from gplfast.stages import generate
from gplfast.store.corpus import load_corpus
from gplfast.store.manifest import Manifest, freshness
from gplfast.store.shards import ShardSet


class FakeGenerator:
    max_input_tokens = 64

    def __init__(self, answers=None, fail_after=None):
        self.answers, self.fail_after = answers, fail_after
        self.calls, self.sampling = [], None

    def generate(self, texts, n_samples, *, sampling, seed, items, batch_size, max_input_tokens, progress):
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise RuntimeError("the device is gone")
        self.calls.append(list(zip(texts, items, strict=True)))
        self.sampling = sampling
        progress(len(texts), len(texts))
        if self.answers:
            return [list(self.answers) for _ in texts]
        return [[f"query {seed} {item} {sample}" for sample in range(n_samples)] for item in items]


def run(corpus, folder, generator, seed=0, **options):
    config = GenerateConfig(**options)
    wanted = generate.manifest(corpus.fingerprint, "model", config, seed)
    return generate.generate(corpus, folder, wanted, config, lambda: generator, seed=seed), wanted


@pytest.mark.parametrize(("n_passages", "expected"), [(1, 250_000), (1000, 250), (83_333, 4), (83_334, 3), (10**6, 3)])
def test_queries_per_passage_follow_gpls_rule(n_passages, expected):
    assert generate.auto_queries_per_passage(n_passages) == expected
    assert generate.plan(1000, GenerateConfig(), 0).per_passage == 250


def test_ids_are_gpls_and_each_query_knows_its_passage(tmp_path):
    queries, _ = run(tiny.corpus(3), tmp_path, FakeGenerator(), queries_per_passage=2)
    assert queries.ids == ["genQ1", "genQ2", "genQ3", "genQ4", "genQ5", "genQ6"]
    assert queries.passages.tolist() == [0, 0, 1, 1, 2, 2]
    assert queries.texts[3] == "query 0 1 1"


def test_equal_queries_of_a_passage_are_kept_once_in_the_order_drawn(tmp_path):
    """GPL's came through set(): their order, and so the ids, hung on PYTHONHASHSEED."""
    generator = FakeGenerator(["b", " a ", "b", "", "  ", "a", "c"])
    queries, _ = run(tiny.corpus(2), tmp_path, generator, queries_per_passage=7)
    assert queries.texts == ["b", "a", "c"] * 2
    counts = Manifest.read(tmp_path).counts
    assert counts == {"passages": 2, "queries": 6, "empty": 4, "duplicate": 4}


def test_a_limit_takes_a_sample_of_passages_by_the_seed(tmp_path):
    """GPL's corpus resize drew with random.sample, unseeded."""
    corpus = tiny.corpus(30)
    first, _ = run(corpus, tmp_path / "a", FakeGenerator(), queries_per_passage=3, max_queries=20)
    again, _ = run(corpus, tmp_path / "b", FakeGenerator(), queries_per_passage=3, max_queries=20)
    other, _ = run(corpus, tmp_path / "c", FakeGenerator(), seed=1, queries_per_passage=3, max_queries=20)
    assert len(first) == 18
    assert np.array_equal(first.passages, again.passages)
    assert not np.array_equal(first.passages, other.passages)
    assert generate.plan(30, GenerateConfig(queries_per_passage=3, max_queries=90), 0).passages.tolist() == list(
        range(30)
    )
    assert len(generate.plan(30, GenerateConfig(queries_per_passage=3, max_queries=1), 0).passages) == 1


def test_temperature_does_not_drop_top_p(tmp_path):
    """BEIR's generator ignores top_p when a temperature is given."""
    generator = FakeGenerator()
    run(tiny.corpus(1), tmp_path, generator, queries_per_passage=1, temperature=0.7, top_p=0.9, top_k=11)
    sampling = generator.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (0.7, 0.9, 11, 64)


def test_a_document_without_a_title_is_no_problem(tmp_path):
    """GPL crashed on a corpus line without "title", and put a space before the text when it was empty."""
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "a", "text": "only text"}\n{"_id": "b", "title": "T", "text": "x"}\n'
    )
    generator = FakeGenerator()
    run(load_corpus(tmp_path), tmp_path / "out", generator, queries_per_passage=1)
    assert [text for text, _ in generator.calls[0]] == ["only text", "T x"]


def test_errors_of_the_generator_are_not_swallowed_and_nothing_half_done_counts(tmp_path, monkeypatch):
    """GPL swallowed every RuntimeError but "CUDA out of memory", and took a partial file for a whole one."""
    monkeypatch.setattr(generate, "SHARD_PASSAGES", 2)
    corpus = tiny.corpus(7)
    with pytest.raises(RuntimeError, match="the device is gone"):
        run(corpus, tmp_path / "a", FakeGenerator(fail_after=2), queries_per_passage=2)
    config = GenerateConfig(queries_per_passage=2)
    wanted = generate.manifest(corpus.fingerprint, "model", config, 0)
    assert freshness(tmp_path / "a", wanted) == (False, "incomplete: 2 of 4 shards")
    generator = FakeGenerator()
    resumed, _ = run(corpus, tmp_path / "a", generator, queries_per_passage=2)
    assert [item for call in generator.calls for _, item in call] == [4, 5, 6]
    whole, _ = run(corpus, tmp_path / "b", FakeGenerator(), queries_per_passage=2)
    assert resumed.texts == whole.texts
    for path in sorted((tmp_path / "b").iterdir()):
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name


def test_other_settings_make_the_queries_stale(tmp_path):
    """GPL looked only whether the file was there."""
    corpus = tiny.corpus(3)
    run(corpus, tmp_path, FakeGenerator(), queries_per_passage=1)
    fresh = FakeGenerator()
    run(corpus, tmp_path, fresh, queries_per_passage=1)
    assert fresh.calls == []
    for options in ({"top_p": 0.9}, {"prefix": "x: "}, {"queries_per_passage": 2}):
        changed = FakeGenerator()
        run(corpus, tmp_path, changed, **{"queries_per_passage": 1, **options})
        assert len(changed.calls) == 1, options
    same = FakeGenerator()
    run(corpus, tmp_path, same, queries_per_passage=2, batch_size=7)
    assert same.calls == []


def test_every_sample_of_a_random_window_is_an_item_of_its_own(tmp_path):
    corpus = load_corpus(["One sentence here. " * 20, "Another one. " * 30])
    generator = FakeGenerator()
    queries, _ = run(
        corpus, tmp_path, generator, queries_per_passage=3, window="random", passage_tokens=20, prefix="p "
    )
    (call,) = generator.calls
    assert [item for _, item in call] == [0, 1, 2, 3, 4, 5]
    assert queries.passages.tolist() == [0, 0, 0, 1, 1, 1]
    assert len({text for text, _ in call}) > 2
    assert all(text.startswith(("p One", "p Another")) for text, _ in call)


def test_shards_hold_whole_passages(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "SHARD_PASSAGES", 2)
    corpus = tiny.corpus(5)
    queries, wanted = run(corpus, tmp_path, FakeGenerator(), queries_per_passage=2)
    tables = list(ShardSet(tmp_path, wanted).tables())
    assert [table.num_rows for table in tables] == [4, 4, 2]
    assert len(tables) == math.ceil(5 / 2)
    assert len(queries) == 10
