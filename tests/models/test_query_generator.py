"""Generation against transformers on tiny random T5s, and its independence of batches."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gplfast.errors import ConfigError, ResourceError, ShapeError
from gplfast.models import QueryGenerator, Sampling, decoding
from gplfast.models.export.graph import relative_buckets
from gplfast.models.sampling import choose, keep_mask, softmax, uniforms

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("onnxruntime", reason="graphs run on onnxruntime")
torch = pytest.importorskip("torch", reason="generation is compared with torch")
transformers = pytest.importorskip("transformers", reason="generation is compared with transformers")

PASSAGES = [
    "the norman king of england",
    "what is the dose of the drug and how is the patient?",
    "light",
    "the study of the protein and the gene in the heart was long and the model of the network was new " * 3,
    "",
    "river city house water sea mountain forest ship trade law",
    "who was the first king and when was the war in france",
    "old law",
    "the small blue ship on the sea",
]
GOLDEN_NOISE = [0.5697900827633086, 0.7882226917877699, 0.4361627601691631]
ITEMS = [11, 5, 0, 999, 3, 2**40, 7, 8, 1]
GREEDY = Sampling(greedy=True, max_new_tokens=14)


def reference(folder: Path):
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_greedy_equals_transformers(kind, t5s, model_cache):
    model, tokenizer = reference(t5s[kind])
    batch = tokenizer(PASSAGES, padding=True, return_tensors="pt")
    with torch.no_grad():
        rows = model.generate(**batch, max_new_tokens=14, do_sample=False)
    expected = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
    assert len(set(expected)) > len(expected) // 2, "the test must tell passages apart"
    generator = QueryGenerator.open(t5s[kind], cache_dir=model_cache)
    found = generator.generate(PASSAGES, 2, sampling=GREEDY, seed=0, items=ITEMS)
    assert found == [[text, text] for text in expected]


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_best_logits_of_each_step_equal_torch(kind, t5s, model_cache):
    """Teacher-forced: what the decoder graph sees over cached steps, and what torch computes at once."""
    model, tokenizer = reference(t5s[kind])
    generator = QueryGenerator.open(t5s[kind], cache_dir=model_cache)
    batch = tokenizer(PASSAGES, padding=True, return_tensors="pt")
    forced = np.random.Generator(np.random.Philox(1)).integers(3, 100, (len(PASSAGES), 12))
    forced[:, 0] = 0
    with torch.no_grad():
        rounded = model(**batch, decoder_input_ids=torch.from_numpy(forced)).logits.numpy()
        exact = model.double()(**batch, decoder_input_ids=torch.from_numpy(forced)).logits.numpy()
    outputs = generator._encoder.run({name: batch[name].numpy().astype(np.int32) for name in generator._encoder.inputs})
    feed = dict(zip(generator._encoder.outputs, outputs, strict=True))
    rows = np.arange(len(PASSAGES), dtype=np.int32)
    feed |= {
        "attention_mask": batch["attention_mask"].numpy().astype(np.int32),
        "slots": rows[:, None],
        "row_slots": rows,
    }
    shape = generator._shape
    past = [np.zeros((len(rows), shape.n_heads, 0, shape.head_dim), np.float32) for _ in shape.past_inputs]
    found = []
    for step in range(forced.shape[1]):
        distances = np.minimum(np.arange(step, -1, -1, dtype=np.int32), shape.max_distance)[None, :]
        feed |= {"tokens": forced[:, step].astype(np.int32), "distances": distances}
        feed |= {"n_best": np.array([128]), **dict(zip(shape.past_inputs, past, strict=True))}
        logits, tokens, *past = generator._decoder.run(feed, shape.outputs)
        found.append(np.take_along_axis(logits, np.argsort(tokens), 1))
    # unscaled attention over random weights amplifies rounding, in torch too: the measure is torch's own float32 error
    allowed = 2 * np.abs(rounded - exact).max()
    assert allowed < 1e-3
    np.testing.assert_allclose(np.stack(found, 1), exact, atol=allowed, rtol=0)


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
@pytest.mark.parametrize("top_k", [25, 0])
def test_samples_do_not_depend_on_batches_or_order(kind, top_k, t5s, model_cache):
    generator = QueryGenerator.open(t5s[kind], cache_dir=model_cache)
    sampling = Sampling(top_k=top_k, max_new_tokens=12)
    whole = generator.generate(PASSAGES, 3, sampling=sampling, seed=7, items=ITEMS, batch_size=8)
    assert len({query for queries in whole for query in queries}) > 20
    for batch_size in (1, 3):
        assert generator.generate(PASSAGES, 3, sampling=sampling, seed=7, items=ITEMS, batch_size=batch_size) == whole
    back = generator.generate(PASSAGES[::-1], 3, sampling=sampling, seed=7, items=ITEMS[::-1], batch_size=3)
    assert back[::-1] == whole
    fewer = generator.generate(PASSAGES[2:4], 2, sampling=sampling, seed=7, items=ITEMS[2:4])
    assert fewer == [queries[:2] for queries in whole[2:4]]
    later = generator.generate(PASSAGES[2:4], 1, sampling=sampling, seed=7, items=ITEMS[2:4], first_sample=[2, 1])
    assert later == [whole[2][2:], whole[3][1:2]]
    other = generator.generate(PASSAGES, 3, sampling=sampling, seed=8, items=ITEMS)
    assert other != whole


def test_more_samples_than_rows(t5s, model_cache, monkeypatch):
    generator = QueryGenerator.open(t5s["v1.0"], cache_dir=model_cache)
    sampling = Sampling(max_new_tokens=6)
    whole = generator.generate(PASSAGES[:3], 20, sampling=sampling, seed=1, items=[0, 1, 2])
    monkeypatch.setattr(decoding, "MAX_ROWS", 7)
    seen: list[tuple[int, int]] = []
    split = generator.generate(
        PASSAGES[:3], 20, sampling=sampling, seed=1, items=[0, 1, 2], progress=lambda *at: seen.append(at)
    )
    assert split == whole
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    "limits",
    [
        {"MAX_ROWS": 1},
        {"MAX_ROWS": 5, "_REFILL_SHARE": 1e-9, "_TRIM_POSITIONS": 1, "_SHRINK_SHARE": 1e-9},
        {"MAX_ROWS": 9, "_REFILL_SHARE": 0.5, "_TRIM_POSITIONS": 3, "_PASSAGES_PER_FULL_ONE": 0.5},
        {"MAX_ROWS": 9, "_REFILL_SHARE": 1.0, "_TRIM_POSITIONS": 1000, "_SHRINK_SHARE": 2.0},
        {"MAX_ROWS": 16, "MAX_PASSAGE_BYTES": 1},
    ],
)
@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_rows_that_leave_and_enter_change_nothing(kind, limits, t5s, model_cache, monkeypatch):
    """Every way of keeping the batch full gives what each passage gives alone."""
    generator = QueryGenerator.open(t5s[kind], cache_dir=model_cache)
    options = {"sampling": Sampling(top_k=0, top_p=1.0, temperature=3.0, max_new_tokens=40), "seed": 3}
    texts = [*PASSAGES, PASSAGES[3] + " " + PASSAGES[2]] * 3  # different lengths: places are moved to smaller arrays
    alone = [generator.generate([text], 4, items=[item], **options)[0] for item, text in enumerate(texts)]
    lengths = {len(query.split()) for queries in alone for query in queries}
    assert len(lengths) > 5, "the test needs rows that end at different steps"
    for name, value in limits.items():
        monkeypatch.setattr(decoding, name, value)
    assert generator.generate(texts, 4, items=range(len(texts)), batch_size=2, **options) == alone


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_queries_do_not_depend_on_threads(threads, t5s, model_cache):
    """More threads than passages too."""
    generator = QueryGenerator.open(t5s["v1.1"], cache_dir=model_cache, threads=threads)
    assert generator._decoder.streams == threads
    options = {"sampling": Sampling(max_new_tokens=12), "seed": 3}
    seen: list[tuple[int, int]] = []
    found = generator.generate(
        PASSAGES * 3, 3, items=range(3 * len(PASSAGES)), progress=lambda *at: seen.append(at), **options
    )
    alone = [generator.generate([text], 3, items=[item], **options)[0] for item, text in enumerate(PASSAGES * 3)]
    assert found == alone
    assert seen == [(i + 1, len(found)) for i in range(len(found))]


def test_a_stream_that_fails_ends_the_others(t5s, model_cache, monkeypatch):
    generator = QueryGenerator.open(t5s["v1.0"], cache_dir=model_cache, threads=3)
    run, calls, lock = generator._decoder.run, [0], threading.Lock()

    def failing(feed, outputs=None, kept=()):
        with lock:
            calls[0] += 1
            if calls[0] == 5:
                raise RuntimeError("broken")
        return run(feed, outputs, kept)

    monkeypatch.setattr(generator._decoder, "run", failing)
    with pytest.raises(RuntimeError, match="broken"):
        generator.generate(PASSAGES * 300, 3, seed=0, items=range(300 * len(PASSAGES)))
    # They end with the next row that does: at most Sampling().max_new_tokens steps each.
    assert calls[0] <= 5 + 3 * (Sampling().max_new_tokens + 1) < 3 * 300 * len(PASSAGES) // decoding.MAX_ROWS * 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gplfast-")]


def test_batches_that_do_not_fit_are_halved(t5s, model_cache, monkeypatch, caplog):
    generator = QueryGenerator.open(t5s["v1.0"], cache_dir=model_cache)
    options = {"sampling": Sampling(max_new_tokens=12), "seed": 3, "items": ITEMS}
    expected = generator.generate(PASSAGES, 3, **options)
    run, most = generator._decoder.run, [6]

    def small_memory(feed, outputs=None, kept=()):
        if len(feed["tokens"]) > most[0]:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
        return run(feed, outputs, kept)

    monkeypatch.setattr(generator._decoder, "run", small_memory)
    seen: list[tuple[int, int]] = []
    assert generator.generate(PASSAGES, 3, progress=lambda *at: seen.append(at), **options) == expected
    assert seen == [(i + 1, len(PASSAGES)) for i in range(len(PASSAGES))]
    assert "going on with at most 4 rows at a time" in caplog.text
    most[0] = 0
    with pytest.raises(ResourceError, match="a batch of 1 row does not fit into memory"):
        generator.generate(PASSAGES, 3, **options)
    monkeypatch.setattr(generator._decoder, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        generator.generate(PASSAGES, 3, **options)


def test_end_token_is_appended_where_the_tokenizer_does_not(t5s, model_cache, copied):
    import json

    folder = copied(t5s["v1.0"])
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    expected = QueryGenerator.open(t5s["v1.0"], cache_dir=model_cache)
    found = QueryGenerator.open(folder, cache_dir=model_cache)
    assert found.fingerprint != expected.fingerprint
    arguments = {"sampling": GREEDY, "seed": 0, "items": ITEMS}
    for limit in (None, 5):
        assert found.generate(PASSAGES, 1, max_input_tokens=limit, **arguments) == expected.generate(
            PASSAGES, 1, max_input_tokens=limit, **arguments
        )


def test_input_is_cut_to_max_input_tokens(t5s, model_cache):
    generator = QueryGenerator.open(t5s["v1.0"], cache_dir=model_cache)
    assert generator.max_input_tokens == 64
    cut = generator.generate([PASSAGES[3]], 1, sampling=GREEDY, seed=0, items=[0], max_input_tokens=9)
    same = generator.generate([" ".join(PASSAGES[3].split()[:8])], 1, sampling=GREEDY, seed=0, items=[0])
    assert cut == same


def test_nothing_to_do(t5s, model_cache):
    assert QueryGenerator.open(t5s["v1.0"], cache_dir=model_cache).generate([], 3, seed=0, items=[]) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"items": [1]}, ShapeError, "items has 1 numbers but texts has 2"),
        ({"items": [0, -4]}, ConfigError, "an item is -4"),
        ({"first_sample": [0]}, ShapeError, "first_sample has 1 numbers but texts has 2"),
        ({"first_sample": [-1, 0]}, ConfigError, "a first sample is -1"),
        ({"n_samples": 0}, ConfigError, "n_samples is 0 but must be at least 1"),
        ({"seed": -1}, ConfigError, "seed is -1"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0 but must be at least 1"),
        ({"max_input_tokens": 1}, ConfigError, "max_input_tokens is 1"),
    ],
)
def test_bad_arguments(change, error, message, t5s, model_cache):
    arguments = {"n_samples": 1, "seed": 0, "items": [0, 1]} | change
    with pytest.raises(error, match=message):
        QueryGenerator.open(t5s["v1.0"], cache_dir=model_cache).generate(["a", "b"], **arguments)


@pytest.mark.parametrize(
    "change", [{"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"temperature": 0.0}, {"max_new_tokens": 0}]
)
def test_sampling_out_of_range(change):
    (name, value) = next(iter(change.items()))
    with pytest.raises(ConfigError, match=f"{name} is {value} but must be"):
        Sampling(**change)


# --- sampling alone ---


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 25, 0.95), (0.7, 10, 0.5), (1.5, 0, 0.9), (1, 5, 1.0)]
)
def test_keep_set_equals_the_warpers_of_transformers(temperature, top_k, top_p):
    random = np.random.Generator(np.random.Philox(2))
    logits = (4 * random.standard_normal((500, 200))).astype(np.float32)
    warped = torch.from_numpy(logits.copy())
    warpers = [transformers.TemperatureLogitsWarper(float(temperature))]
    warpers += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    for warper in warpers:
        warped = warper(None, warped)
    expected = np.isfinite(warped.numpy())
    tokens = np.argsort(-logits, axis=1, kind="stable")[:, : top_k or 200]
    kept = keep_mask(np.take_along_axis(logits, tokens, 1) / np.float64(temperature), top_p)
    found = np.zeros_like(expected)
    np.put_along_axis(found, tokens, kept, 1)
    assert (found != expected).any(axis=1).mean() <= 0.002  # float ties of the cumulative sum at top_p


def test_draws_follow_the_kept_distribution():
    logits = np.array([[2.0, 1.0, 0.5, -1.0]], np.float32)
    tokens = np.array([[3, 0, 9, 1]])
    noise = uniforms(0, 0, 0, 40_000)
    drawn = choose(
        np.repeat(logits, len(noise), 0), np.repeat(tokens, len(noise), 0), noise, Sampling(top_k=4, top_p=0.9)
    )
    kept = softmax(logits[:, :3])[0]
    for token, probability in zip(tokens[0, :3], kept, strict=True):
        assert abs((drawn == token).mean() - probability) < 0.01
    assert not (drawn == 1).any()


def test_near_ties_that_change_places_do_not_change_the_draw():
    noise = uniforms(1, 2, 3, 2000)
    one = np.repeat(np.array([[1.0, 1.0 - 1e-7, 0.0]]), len(noise), 0)
    first = choose(one, np.repeat(np.array([[7, 2, 5]]), len(noise), 0), noise, Sampling())
    second = choose(one, np.repeat(np.array([[2, 7, 5]]), len(noise), 0), noise, Sampling())
    np.testing.assert_array_equal(first, second)


def test_noise_is_keyed_and_fixed():
    np.testing.assert_array_equal(uniforms(1, 2, 3, 4), uniforms(1, 2, 3, 9)[:4])
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**64 - 1, 2**62, 9)]
    assert len({uniforms(*key, 4).tobytes() for key in keys}) == len(keys)
    # golden: other numbers would make other queries of every old run
    np.testing.assert_allclose(uniforms(42, 7, 1, 3), GOLDEN_NOISE, rtol=0, atol=0)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_transformers(bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-600, 601)
    expected = T5Attention._relative_position_bucket(
        torch.from_numpy(distances), bidirectional=bidirectional, num_buckets=32, max_distance=128
    )
    found = relative_buckets(distances, bidirectional=bidirectional, n_buckets=32, max_distance=128)
    np.testing.assert_array_equal(found, expected.numpy())
