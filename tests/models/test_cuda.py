"""Models on CUDA in float32, float16 and bfloat16; skips where there is none. Never run on hardware so far."""

from __future__ import annotations

import numpy as np
import pytest

from gplfast.models import BiEncoder, CrossEncoder, QueryGenerator, Sampling
from gplfast.models.export.graph import Graph
from gplfast.models.runtime import PRECISIONS, Runtime, available, open_session

pytest.importorskip("onnxruntime", reason="graphs run on onnxruntime")
torch = pytest.importorskip("torch", reason="parity is measured against torch")

from models.test_encoder_parity import QUERIES, TEXTS  # noqa: E402  (needs torch)

pytestmark = pytest.mark.gpu

# Largest difference from float32 on the CPU, as a share of the range of values: twice what the CPU tests of these types
# allow, for sums in another order.
CLOSE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
# Queries that are the same: draws near a boundary fall to another token, and all that follow with it.
SAME = {"fp32": 0.95, "fp16": 0.5, "bf16": 0.1}


@pytest.fixture(scope="module", params=PRECISIONS["cuda"])
def precision(request, tmp_path_factory):
    """Each precision that this device computes in."""
    if Runtime("cuda", request.param) not in available("cuda"):
        pytest.skip("this onnxruntime has no CUDAExecutionProvider")
    graph = Graph("product", request.param)
    value = graph.narrow(graph.input("x", np.float32, ("rows", 8)))
    graph.output(graph.widen(graph.linear(value, "layer", np.eye(8, dtype=np.float32))), "y", np.float32, ("rows", 8))
    path = tmp_path_factory.mktemp("probe") / "model.onnx"
    graph.save(path)
    try:
        open_session(path, Runtime("cuda", request.param)).run({"x": np.ones((2, 8), np.float32)})
    except Exception as error:
        if request.param == "fp32" and torch.cuda.is_available():
            raise
        pytest.skip(f"CUDA does not multiply in {request.param} here: {error}")
    return request.param


def pair(kind, folder, cache, precision):
    """On CUDA, and the reference."""
    return (
        kind.open(folder, cache_dir=cache, provider="cuda", precision=precision),
        kind.open(folder, cache_dir=cache, provider="cpu", precision="fp32"),
    )


@pytest.mark.parametrize("name", ["bert", "minilm", "distilbert", "mpnet", "xlm-roberta"])
def test_embeddings_and_scores(name, precision, encoders, model_cache):
    model, reference = pair(BiEncoder, encoders(name), model_cache, precision)
    found, expected = model.encode(TEXTS), reference.encode(TEXTS)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < CLOSE[precision] * np.ptp(expected)
    assert model.fingerprint == reference.fingerprint + ("" if precision == "fp32" else f"-{precision}")
    teacher, exact = pair(CrossEncoder, encoders(name, 1), model_cache, precision)
    found, expected = teacher.score(QUERIES, TEXTS), exact.score(QUERIES, TEXTS)
    assert np.abs(found - expected).max() < CLOSE[precision] * max(np.ptp(expected), 1e-3)


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_queries(kind, precision, t5s, model_cache, monkeypatch):
    from gplfast.models import decoding

    model, reference = pair(QueryGenerator, t5s[kind], model_cache, precision)
    passages = [f"{text} {i}" for i in range(6) for text in TEXTS]
    options = {"sampling": Sampling(max_new_tokens=12), "seed": 3, "items": range(len(passages)), "batch_size": 4}
    expected = reference.generate_ids(passages, 3, **options)
    model._decoder.batch_rows = 16  # rows leave and passages enter all the time
    monkeypatch.setattr(decoding, "_TRIM_POSITIONS", 1)
    found = model.generate_ids(passages, 3, **options)
    pairs = [both for one, other in zip(found, expected, strict=True) for both in zip(one, other, strict=True)]
    assert np.mean([a == b for a, b in pairs]) >= SAME[precision]
    # The first token depends on no other draw.
    assert np.mean([a[:1] == b[:1] for a, b in pairs]) >= {"fp32": 0.98, "fp16": 0.7, "bf16": 0.4}[precision]
    first = model.generate_ids(passages[:5], 3, **(options | {"items": range(5)}))
    if precision == "fp32":
        assert np.mean([a == b for a, b in zip(first, found, strict=False)]) >= 0.8, "batches do not matter"


def test_caches_stay_on_the_device(precision, t5s, model_cache):
    model, _ = pair(QueryGenerator, t5s["v1.0"], model_cache, precision)
    run, devices = model._decoder.run, set()

    def spied(feed, outputs, kept):
        found = run(feed, outputs, kept)
        devices.update(value.device_name() for value in found[2:])
        devices.update(value.device_name() for name, value in feed.items() if name.startswith(("past_", "cross_")))
        return found

    model._decoder.run = spied
    model.generate_ids(TEXTS, 2, seed=0, items=range(len(TEXTS)), sampling=Sampling(max_new_tokens=6))
    assert {name.lower() for name in devices} <= {"cuda", "gpu"}
    assert devices
