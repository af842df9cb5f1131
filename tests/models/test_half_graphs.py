"""Graphs of float16 and bfloat16, which CUDA runs: here by ONNX Runtime on the CPU and by their definition.

ONNX Runtime's CPU provider runs float16 by casts, and no bfloat16; `half_reference` runs both and checks every type.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gplfast.errors import ModelError, UnavailableError
from gplfast.models import BiEncoder, CrossEncoder, QueryGenerator, Sampling, query_generator, runtime
from gplfast.models.checkpoint import Checkpoint
from gplfast.models.export.encoder import cross_encoder_graph
from gplfast.models.export.graph import Graph, bf16_bits
from gplfast.models.export.sentence import bi_encoder_graph
from gplfast.models.export.t5 import T5, t5_decoder_graph, t5_encoder_graph
from gplfast.models.query_generator import Runtimes
from gplfast.models.runtime import REFERENCE, Runtime, candidates
from gplfast.models.session import Session

torch = pytest.importorskip("torch", reason="parity is measured against torch")
transformers = pytest.importorskip("transformers", reason="parity is measured against transformers")
pytest.importorskip("onnxruntime", reason="graphs run on onnxruntime")

from models.half_reference import checked, evaluate  # noqa: E402  (needs onnx)
from models.test_encoder_parity import QUERIES, TEXTS, hidden_states, tokens  # noqa: E402  (needs torch)

ENCODERS = ("bert", "minilm", "distilbert", "mpnet", "roberta", "xlm-roberta")
HALVES = {"fp16": (np.float16, torch.float16), "bf16": (ml_dtypes.bfloat16, torch.bfloat16)}
FP16 = Runtime("cpu", "fp16")


@pytest.fixture
def fp16_on_cpu(monkeypatch):
    """As if ONNX Runtime's CPU provider were one that computes in float16: it casts."""
    monkeypatch.setattr(runtime, "available", lambda *_: [REFERENCE, FP16])
    monkeypatch.setitem(runtime.PRECISIONS, "cpu", ("fp32", "fp16", "int8"))
    return {"provider": "cpu", "precision": "fp16"}


# ---- encoders


def encoder_feed(folder, graph, *texts):
    found = {name: value.numpy().astype(np.int32) for name, value in tokens(folder, *texts).items()}
    return {each.name: found[each.name] for each in graph.graph.input}


@pytest.mark.parametrize("name", ENCODERS)
def test_fp16_embeddings_equal_torch(name, encoders, model_cache, fp16_on_cpu):
    hidden, mask = hidden_states(encoders(name), TEXTS)
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    encoder = BiEncoder.open(encoders(name), cache_dir=model_cache, **fp16_on_cpu)
    assert encoder.fingerprint.endswith("-fp16")
    found = encoder.encode(TEXTS)
    assert found.dtype == np.float32
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-6 < error < 3e-3, "of float16 and no worse"
    assert list(model_cache.rglob("bi-encoder-v*-fp16/model.onnx")), "in a folder of its own"


@pytest.mark.parametrize("name", ENCODERS)
def test_fp16_scores_equal_torch(name, encoders, model_cache, fp16_on_cpu):
    folder = encoders(name, 1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = model(**tokens(folder, QUERIES, TEXTS)).logits[:, 0].numpy()
    found = CrossEncoder.open(folder, cache_dir=model_cache, **fp16_on_cpu).score(QUERIES, TEXTS)
    assert 1e-6 * np.ptp(expected) < np.abs(found - expected).max() < 1e-2 * np.ptp(expected)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", ENCODERS)
def test_half_encoders_are_as_near_to_float32_as_torch_of_that_type(name, precision, encoders):
    folder = encoders(name, 1)
    graph = cross_encoder_graph(Checkpoint(folder), precision).model()
    found = evaluate(graph, encoder_feed(folder, graph, QUERIES, TEXTS))["logits"]
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model = load(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        batch = tokens(folder, QUERIES, TEXTS)
        expected = model(**batch).logits.numpy()
        rounded = model.to(HALVES[precision][1])(**batch).logits.float().numpy()
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).mean() < 2 * np.abs(rounded - expected).mean()


@pytest.mark.parametrize("precision", HALVES)
def test_dense_and_normalize_stay_float32(precision, encoders):
    folder = encoders("bert")
    graph = checked(bi_encoder_graph(Checkpoint(folder), "weightedmean", precision)[0].model())
    assert [each.type.tensor_type.elem_type for each in graph.graph.output] == [1]
    found = evaluate(graph, encoder_feed(folder, graph, TEXTS))["embedding"]
    exact = bi_encoder_graph(Checkpoint(folder), "weightedmean")[0].model()
    expected = evaluate(exact, encoder_feed(folder, exact, TEXTS))["embedding"]
    assert 0 < np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_the_reference_is_onnx_runtime(encoders, tmp_path):
    """Else it would prove nothing of bfloat16."""
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 5e-3)):
        graph = cross_encoder_graph(Checkpoint(encoders("mpnet", 1)), precision)
        graph.save(tmp_path / "model.onnx")
        feed = encoder_feed(encoders("mpnet", 1), graph.model(), QUERIES, TEXTS)
        expected = Session(tmp_path / "model.onnx").run(feed)[0]
        np.testing.assert_allclose(evaluate(graph.model(), feed)["logits"], expected, atol=tolerance * np.ptp(expected))


# ---- T5


def forced_logits(t5, precision, batch, forced, run):
    """Logits (rows, steps, vocabulary) of given tokens, step by step with the cache; `run` runs a graph."""
    dtype = np.float32 if precision == "fp32" else HALVES[precision][0]
    feed = {name: batch[name].numpy().astype(np.int32) for name in ("input_ids", "attention_mask")}
    mask = feed["attention_mask"]
    encoded = run(t5_encoder_graph(t5, precision), feed)
    decoder = t5_decoder_graph(t5, precision)
    rows = np.arange(len(mask), dtype=np.int32)
    feed = encoded | {"attention_mask": mask, "slots": rows[:, None], "row_slots": rows}
    names = [f"{part}_{i}" for i in range(t5.n_decoder_layers) for part in ("key", "value")]
    past = {f"past_{name}": np.zeros((len(rows), t5.n_heads, 0, t5.head_dim), dtype) for name in names}
    found = []
    for step in range(forced.shape[1]):
        distances = np.minimum(np.arange(step, -1, -1, dtype=np.int32), t5.max_distance)[None, :]
        given = {"tokens": forced[:, step].astype(np.int32), "distances": distances, "n_best": np.array([128])}
        outputs = run(decoder, feed | past | given)
        assert outputs["best_logits"].dtype == np.float32
        past = {f"past_{name}": outputs[name] for name in names}
        assert {value.dtype for value in past.values()} == {np.dtype(dtype)}
        found.append(np.take_along_axis(outputs["best_logits"], np.argsort(outputs["best_tokens"]), 1))
    return np.stack(found, 1)


@pytest.fixture
def by_onnxruntime(tmp_path):
    opened = {}

    def run(graph, feed):
        if id(graph) not in opened:
            path = tmp_path / f"{len(opened)}.onnx"
            graph.save(path)
            opened[id(graph)] = graph, Session(path)  # the graph too, so that no other gets its id
        session = opened[id(graph)][1]
        return dict(zip(session.outputs, session.run(feed), strict=True))

    return run


def by_definition(graph, feed):
    return evaluate(graph.model(), feed)


def t5_case(folder):
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    batch = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS[:4], padding=True, return_tensors="pt")
    forced = np.random.Generator(np.random.Philox(1)).integers(3, 100, (4, 6))
    forced[:, 0] = 0
    return model, batch, forced


def torch_logits(model, batch, forced):
    with torch.no_grad():
        return model(**batch, decoder_input_ids=torch.from_numpy(forced)).logits.float().numpy()


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
@pytest.mark.parametrize("precision", HALVES)
def test_half_t5_is_as_near_to_float32_as_torch_of_that_type(kind, precision, t5s, by_onnxruntime):
    model, batch, forced = t5_case(t5s[kind])
    expected = torch_logits(model, batch, forced)
    allowed = np.abs(torch_logits(model.to(HALVES[precision][1]), batch, forced) - expected).mean()
    t5 = T5(Checkpoint(t5s[kind]))
    runs = [by_definition, *([by_onnxruntime] if precision == "fp16" else [])]
    for run in runs:
        found = forced_logits(t5, precision, batch, forced, run)
        assert 0 < np.abs(found - expected).mean() < 2 * allowed


@pytest.fixture
def large_t5(copied):
    """A T5 whose feed-forward parts pass float16's range, as those of the real ones do."""
    from safetensors.numpy import load_file, save_file

    def make(folder):
        copy = copied(folder)
        tensors = load_file(copy / "model.safetensors")
        wide = {
            name: value * np.float32(2e4) if name.endswith(".wo.weight") else value for name, value in tensors.items()
        }
        save_file(wide, copy / "model.safetensors", metadata={"format": "pt"})
        return copy

    return make


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_fp16_does_not_overflow_where_torch_does(kind, t5s, large_t5, by_onnxruntime):
    folder = large_t5(t5s[kind])
    model, batch, forced = t5_case(folder)
    largest = []
    for block in [*model.encoder.block, *model.decoder.block]:
        block.layer[-1].DenseReluDense.wo.register_forward_hook(lambda *of: largest.append(float(of[2].abs().max())))
    expected = torch_logits(model, batch, forced)
    assert max(largest) > 65504 * 2, "the test needs values beyond float16"
    naive = model.half().encoder.block[-1].layer[-1].DenseReluDense
    assert naive.wo.weight.dtype == torch.float16
    largest.clear()
    torch_logits(model, batch, forced)
    assert not np.isfinite(largest).all(), "torch's float16 must overflow"
    t5 = T5(Checkpoint(folder))
    for run in (by_onnxruntime, by_definition):
        found = forced_logits(t5, "fp16", batch, forced, run)
        assert np.isfinite(found).all()
        assert np.abs(found - expected).mean() < 0.02 * np.ptp(expected)


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_most_queries_of_fp16_are_those_of_float32(kind, t5s, model_cache, fp16_on_cpu, monkeypatch):
    monkeypatch.setattr(query_generator, "runtimes", lambda *of: [Runtimes(one, one) for one in candidates(*of)])
    generator = QueryGenerator.open(t5s[kind], cache_dir=model_cache, **fp16_on_cpu)
    assert "fp16" in generator.fingerprint
    options = {"sampling": Sampling(max_new_tokens=8), "seed": 3, "items": range(len(TEXTS))}
    whole = generator.generate(TEXTS, 3, **options)
    exact = QueryGenerator.open(t5s[kind], cache_dir=model_cache, provider="cpu", precision="fp32")
    expected = exact.generate(TEXTS, 3, **options)
    same = np.mean(
        [a == b for one, other in zip(whole, expected, strict=True) for a, b in zip(one, other, strict=True)]
    )
    assert same > 0.6, "most draws are far from a boundary"


# ---- the writer


def test_bfloat16_rounds_to_nearest_even():
    rng = np.random.Generator(np.random.Philox(0))
    values = (rng.standard_normal(10_000) * 10.0 ** rng.integers(-30, 30, 10_000)).astype(np.float32)
    ties = (np.arange(0x3F80, 0x3F90, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    values = np.concatenate([values, ties, -ties, np.zeros(1, np.float32)])
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(bf16_bits(values[None])[0], expected)


def test_a_weight_beyond_float16_is_named():
    graph = Graph("linear", "fp16")
    value = graph.narrow(graph.input("x", np.float32, ("rows", 2)))
    with pytest.raises(ModelError, match=r"weight layer.weight.T has 70000 but float16 ends at 65504; use .* bf16"):
        graph.linear(value, "layer", np.full((1, 2), 7e4, np.float32))


def test_a_precision_that_the_runtime_lacks_is_a_clear_error(encoders, tmp_path):
    """Every type was right, else ONNX Runtime would have said so before it looked for kernels."""
    cross_encoder_graph(Checkpoint(encoders("bert", 1)), "bf16").save(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"NOT_IMPLEMENTED.*MatMul.*upgrade it, or use another precision"):
        Session(tmp_path / "model.onnx")


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_types_of_a_bfloat16_t5_are_right(kind, t5s, tmp_path):
    for graph in (
        t5_encoder_graph(T5(Checkpoint(t5s[kind])), "bf16"),
        t5_decoder_graph(T5(Checkpoint(t5s[kind])), "bf16"),
    ):
        graph.save(tmp_path / "model.onnx")
        with pytest.raises(ModelError, match=r"NOT_IMPLEMENTED"):
            Session(tmp_path / "model.onnx")


def test_fp16_without_cuda_is_a_clear_error(encoders, model_cache, monkeypatch):
    if "CUDAExecutionProvider" in runtime.import_onnxruntime().get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    monkeypatch.delenv("GPLFAST_PROVIDER")
    words = r"precision fp16 needs CUDAExecutionProvider but .*gplfast\[gpu\].* provider cpu with fp32 or int8"
    with pytest.raises(UnavailableError, match=words):
        candidates(precision="fp16")
    with pytest.raises(UnavailableError, match=words):
        BiEncoder.open(encoders("bert"), cache_dir=model_cache, precision="fp16")
    with pytest.raises(UnavailableError, match=r"provider cuda needs CUDA.* provider cpu with fp32 or int8"):
        candidates("cuda", "bf16")
