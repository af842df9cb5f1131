"""Queries without a generator: what the step makes of each method, from passages to the artifact."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from stages.methods import OTHERS, WITHOUT, options, run, stories

from gplfast.config import GenerateConfig, load_config
from gplfast.errors import ConfigError, DataError
from gplfast.mining.copies import plain
from gplfast.pipeline import Pipeline
from gplfast.positive_settings import METHODS, check, read_by
from gplfast.settings import output_settings
from gplfast.stages import generate, mine
from gplfast.store.corpus import load_corpus
from gplfast.store.generated import GeneratedQueries
from gplfast.store.manifest import Manifest


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
