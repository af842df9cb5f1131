from __future__ import annotations

import math

import numpy as np
import pytest
import tiny

from gplfast.config import GenerateConfig
from gplfast.mining.copies import FEWEST_WORDS, is_copied, plain
from gplfast.mining.sampling import words
from gplfast.stages import generate
from gplfast.store.corpus import load_corpus
from gplfast.store.manifest import Manifest, freshness
from gplfast.store.shards import ShardSet


class FakeGenerator:
    max_input_tokens = 64

    def __init__(self, answers=None, fail_after=None):
        self.answers, self.fail_after = answers, fail_after
        self.calls, self.sampling = [], None

    def generate(
        self, texts, n_samples, *, sampling, seed, items, first_sample, batch_size, max_input_tokens, progress
    ):
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise RuntimeError("the device is gone")
        self.calls.append(list(zip(texts, items, first_sample, strict=True)))
        self.sampling = sampling
        if progress is not None:
            progress(len(texts), len(texts))
        numbers = [range(first, first + n_samples) for first in first_sample]
        if self.answers:
            return [[self.answers[sample % len(self.answers)] for sample in samples] for samples in numbers]
        return [
            [f"query {seed} {item} {sample}" for sample in samples]
            for item, samples in zip(items, numbers, strict=True)
        ]


class Repeater(FakeGenerator):
    """Draws that follow from (passage, sample): often empty, equal to others or words of the passage."""

    def generate(self, texts, n_samples, *, items, first_sample, **options):
        super().generate(texts, n_samples, items=items, first_sample=first_sample, **options)
        return [
            [self._query(text, item, sample) for sample in range(first, first + n_samples)]
            for text, item, first in zip(texts, items, first_sample, strict=True)
        ]

    def _query(self, text, item, sample):
        number = int(words(5, "test", 1000 * item + sample, 1)[0] % 10)
        if number < 2:
            return " " * number
        if number < 5:
            return " ".join(text.split()[: number + 4])
        return f"what is {number}"


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
    queries, _ = run(tiny.corpus(2), tmp_path, generator, queries_per_passage=7, extra_draws=0)
    assert queries.texts == ["b", "a", "c"] * 2
    assert Manifest.read(tmp_path).counts == {
        "passages": 2,
        "drawn": 14,
        "queries": 6,
        "empty": 4,
        "duplicate": 4,
        "copied": 0,
        "made up": 0,
        "passages below quota": 2,
    }


PASSAGE = "Beta-cells of Naïve mice, however, don't divide."


def test_a_query_copied_from_its_passage_is_dropped_whatever_became_of_its_marks(tmp_path):
    answers = [
        "BETA - cells of naive mice however",  # a run of the passage: case, accents and marks are the tokenizer's
        "naive mice , however , don ' t divide ?",
        "do beta cells of naive mice divide",  # more words than the passage's
        "beta cells of mice naive however",  # another order
        "eta cells of naive mice however",  # a run of letters, not of words
        "beta-cells of naive mice",  # a topic
        "- ?",  # no word at all
        "of naive mice however don t",
        "of naive mice however don t",  # counted for the first rule that drops it
    ]
    corpus = load_corpus([PASSAGE])
    queries, _ = run(corpus, tmp_path / "a", FakeGenerator(answers), queries_per_passage=9, extra_draws=0)
    assert queries.texts == answers[2:6]
    counts = Manifest.read(tmp_path / "a").counts
    assert (counts["copied"], counts["empty"], counts["duplicate"]) == (3, 1, 1)
    kept, _ = run(corpus, tmp_path / "b", FakeGenerator(answers), queries_per_passage=9, extra_draws=0, copied="keep")
    assert kept.texts == [*answers[:6], answers[7]]
    assert Manifest.read(tmp_path / "b").counts["copied"] == 0


@pytest.mark.parametrize("n_words", range(1, FEWEST_WORDS + 3))
def test_short_topics_are_no_copies(n_words):
    passage = plain("one two three four five six seven eight nine ten eleven twelve")
    query = " ".join(passage.split()[1 : 1 + n_words])
    assert is_copied(plain(query), passage) == (n_words >= FEWEST_WORDS)
    assert not is_copied(plain(f"{query} too"), passage)
    assert not is_copied(plain(query), plain(""))


def test_the_quota_is_made_up_with_further_samples(tmp_path):
    generator = FakeGenerator(["a", "a", "", "b", "c", "d"])
    queries, _ = run(tiny.corpus(2), tmp_path, generator, queries_per_passage=3)
    assert queries.texts == ["a", "b", "c"] * 2
    assert [[first for _, _, first in call] for call in generator.calls] == [[0, 0], [3, 3]]
    counts = Manifest.read(tmp_path).counts
    assert (counts["drawn"], counts["queries"], counts["made up"], counts["passages below quota"]) == (10, 6, 4, 0)


@pytest.mark.parametrize(
    ("quota", "share", "n"), [(3, 0, 0), (3, 0.1, 1), (10, 0.7, 7), (3, 1.0, 3), (3, 2.5, 8), (250_000, 1.0, 250_000)]
)
def test_extra_draws_are_a_share_of_the_quota(quota, share, n):
    assert generate.most_extra_draws(quota, share) == n


def test_the_quota_is_not_made_up_beyond_the_limit(tmp_path):
    for extra, expected in ((0, 4), (0.1, 5), (0.5, 6), (1.0, 8), (6, 28)):
        generator = FakeGenerator(["a"] * 30)
        run(tiny.corpus(1), tmp_path / str(extra), generator, queries_per_passage=4, extra_draws=extra)
        counts = Manifest.read(tmp_path / str(extra)).counts
        assert counts == {**dict.fromkeys(counts, 0), "passages": 1, "queries": 1, "drawn": expected} | {
            "duplicate": expected - 1,
            "passages below quota": 1,
        }


@pytest.mark.parametrize("window", ["head", "random"])
def test_what_is_kept_follows_from_the_samples_in_order(tmp_path, monkeypatch, window):
    """One sample after the other, by the rules; and the same for any shards."""
    corpus = tiny.corpus(30)
    options = {"queries_per_passage": 4, "extra_draws": 1.5, "window": window}
    queries, _ = run(corpus, tmp_path / "a", Repeater(), **options)
    expected, made_up, drawn = [], 0, 0
    for row, text in enumerate(corpus.texts()):
        kept, seen = [], set()
        for sample in range(10):
            if len(kept) == 4:
                break
            query, drawn = Repeater()._query(text, row, sample).strip(), drawn + 1
            if query and query not in seen and not is_copied(plain(query), plain(text)):
                kept.append(query)
                made_up += sample >= 4
            seen.add(query)
        expected += [(row, query) for query in kept]
    assert list(zip(queries.passages.tolist(), queries.texts, strict=True)) == expected
    counts = Manifest.read(tmp_path / "a").counts
    assert (counts["drawn"], counts["queries"], counts["made up"]) == (drawn, len(expected), made_up)
    assert counts["drawn"] == sum(counts[name] for name in ("queries", "empty", "duplicate", "copied"))
    assert min(made_up, counts["empty"], counts["duplicate"], counts["copied"], counts["passages below quota"]) > 0
    monkeypatch.setattr(generate, "SHARD_PASSAGES", 7)
    parts, _ = run(corpus, tmp_path / "b", Repeater(), **options)
    assert parts.texts == queries.texts
    assert Manifest.read(tmp_path / "b").counts == counts


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
    one = generate.plan(30, GenerateConfig(queries_per_passage=3, max_queries=1), 0)
    assert (len(one.passages), one.per_passage) == (1, 1)


@pytest.mark.parametrize(
    ("limit", "n_used", "per_passage"),
    [(1000, 100, 10), (350, 100, 3), (299, 99, 3), (100, 33, 3), (2, 1, 2), (0, 100, 2500), (250_000, 100, 2500)],
)
def test_a_limit_lowers_an_automatic_quota_before_it_drops_passages(limit, n_used, per_passage):
    plan = generate.plan(100, GenerateConfig(max_queries=limit), 0)
    assert (len(plan.passages), plan.per_passage) == (n_used, per_passage)
    assert not limit or len(plan.passages) * plan.per_passage <= limit


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
    assert [text for text, *_ in generator.calls[0]] == ["only text", "T x"]


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
    assert [item for call in generator.calls for _, item, _ in call] == [4, 5, 6]
    whole, _ = run(corpus, tmp_path / "b", FakeGenerator(), queries_per_passage=2)
    assert resumed.texts == whole.texts
    for path in sorted((tmp_path / "b").iterdir()):
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name


def test_a_run_killed_while_it_makes_up_the_quota_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "SHARD_PASSAGES", 5)
    corpus, options = tiny.corpus(14), {"queries_per_passage": 3, "window": "random", "passage_tokens": 3}
    whole = Repeater()
    run(corpus, tmp_path / "whole", whole, **options)
    assert len(whole.calls) > 6  # several rounds in each of the three shards
    for n_calls in range(len(whole.calls)):
        folder = tmp_path / f"killed after {n_calls}"
        with pytest.raises(RuntimeError, match="the device is gone"):
            run(corpus, folder, Repeater(fail_after=n_calls), **options)
        run(corpus, folder, Repeater(), **options)
        for path in sorted((tmp_path / "whole").iterdir()):
            assert path.read_bytes() == (folder / path.name).read_bytes(), (n_calls, path.name)


def test_other_settings_make_the_queries_stale(tmp_path):
    """GPL looked only whether the file was there."""
    corpus = tiny.corpus(3)
    run(corpus, tmp_path, FakeGenerator(), queries_per_passage=1)
    fresh = FakeGenerator()
    run(corpus, tmp_path, fresh, queries_per_passage=1)
    assert fresh.calls == []
    for options in (
        {"top_p": 0.9},
        {"prefix": "x: "},
        {"copied": "keep"},
        {"extra_draws": 2},
        {"queries_per_passage": 2},
    ):
        changed = FakeGenerator()
        run(corpus, tmp_path, changed, **{"queries_per_passage": 1, **options})
        assert len(changed.calls) == 1, options
    same = FakeGenerator()
    run(corpus, tmp_path, same, queries_per_passage=2, batch_size=7)
    assert same.calls == []


def test_every_sample_reads_a_random_window_of_its_own(tmp_path):
    corpus = load_corpus(["One sentence here. " * 20, "Another one. " * 30])
    options = {"window": "random", "passage_tokens": 20, "prefix": "p "}
    generator = FakeGenerator()
    queries, _ = run(corpus, tmp_path / "a", generator, queries_per_passage=3, **options)
    (call,) = generator.calls
    assert [(item, sample) for _, item, sample in call] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert queries.passages.tolist() == [0, 0, 0, 1, 1, 1]
    assert len({text for text, *_ in call}) > 2
    assert all(text.startswith(("p One", "p Another")) for text, *_ in call)
    more = FakeGenerator()  # a sample's window does not depend on how many are asked for
    run(corpus, tmp_path / "b", more, queries_per_passage=9, **options)
    assert set(call) <= set(more.calls[0])
    later = FakeGenerator(["a", "a", "a", "b", "c"])  # nor on when it is drawn
    run(corpus, tmp_path / "c", later, queries_per_passage=3, **options)
    assert len(later.calls) == 2
    assert set(later.calls[1]) < set(more.calls[0])


def test_shards_hold_whole_passages(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "SHARD_PASSAGES", 2)
    corpus = tiny.corpus(5)
    queries, wanted = run(corpus, tmp_path, FakeGenerator(), queries_per_passage=2)
    tables = list(ShardSet(tmp_path, wanted).tables())
    assert [table.num_rows for table in tables] == [4, 4, 2]
    assert len(tables) == math.ceil(5 / 2)
    assert len(queries) == 10
