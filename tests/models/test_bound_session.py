"""The path that keeps caches on a device, with the CPU as the device: what CUDA runs, but for CUDA."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from gplfast.models import QueryGenerator, Sampling, decoding, query_generator, runtime
from gplfast.models.bound_session import BoundSession, BoundStates
from gplfast.models.query_generator import Runtimes
from gplfast.models.runtime import REFERENCE, Runtime
from gplfast.models.session import cuda_options
from gplfast.models.states import HostStates

onnxruntime = pytest.importorskip("onnxruntime", reason="graphs run on onnxruntime")

from models.test_encoder_parity import TEXTS  # noqa: E402  (needs torch)

FP16 = Runtime("cpu", "fp16")
PASSAGES = [*TEXTS, TEXTS[3] + " " + TEXTS[2]] * 2
OPTIONS = {"sampling": Sampling(top_k=0, top_p=1.0, temperature=3.0, max_new_tokens=20), "seed": 3}
LIMITS = [
    {},
    {"MAX_ROWS": 5, "_REFILL_SHARE": 1e-9, "_TRIM_POSITIONS": 1, "_SHRINK_SHARE": 1e-9},
    {"MAX_ROWS": 9, "_REFILL_SHARE": 0.5, "_TRIM_POSITIONS": 3, "_PASSAGES_PER_FULL_ONE": 0.5},
]


def opened(folder, cache, precision, monkeypatch, *, bound):
    """A generator of that precision on the CPU provider, whose caches are arrays or OrtValues."""
    one = FP16 if precision == "fp16" else REFERENCE
    with monkeypatch.context() as patch:
        patch.setattr(query_generator, "runtimes", lambda *_: [Runtimes(one, one)])
        if bound:
            patch.setattr(runtime, "Session", BoundSession)
        return QueryGenerator.open(folder, cache_dir=cache, threads=1)


@pytest.mark.parametrize("limits", LIMITS, ids=["one batch", "every step", "gaps"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_queries_are_those_of_the_host_bit_for_bit(  # noqa: PLR0917
    kind, precision, limits, t5s, model_cache, monkeypatch
):
    host, bound = (opened(t5s[kind], model_cache, precision, monkeypatch, bound=bound) for bound in (False, True))
    for name, value in limits.items():
        monkeypatch.setattr(decoding, name, value)
    seen: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for is_bound, model in ((False, host), (True, bound)):
        run = model._decoder.run

        def spied(feed, outputs, kept, run=run, is_bound=is_bound):
            states = [value for name, value in feed.items() if name.startswith(("past_", "cross_"))]
            assert all(isinstance(value, onnxruntime.OrtValue) is is_bound for value in states)
            found = run(feed, outputs, kept)
            assert all(isinstance(value, np.ndarray) for value in found[:2]), "the host gets the best tokens"
            assert all(isinstance(value, onnxruntime.OrtValue) is is_bound for value in found[2:])
            seen[is_bound] += found[:2]
            return found

        monkeypatch.setattr(model._decoder, "run", spied)
    found = [
        model.generate_ids(PASSAGES, 3, items=range(len(PASSAGES)), batch_size=2, **OPTIONS) for model in (host, bound)
    ]
    assert found[0] == found[1]
    assert len({len(tokens) for samples in found[0] for tokens in samples}) > 3, "rows must end at different steps"
    assert len(seen[False]) == len(seen[True]) > 20
    alive = 0
    for a, b in zip(seen[False], seen[True], strict=True):
        assert a.shape == b.shape
        alive += int((a == b).all(axis=1).sum())
    # Rows that have ended read keys of places without a passage, which hold other things here; they are not used.
    assert alive > 0.5 * sum(len(a) for a in seen[False])


def test_a_batch_that_does_not_fit_on_the_device_is_halved(t5s, model_cache, monkeypatch, caplog):
    model = opened(t5s["v1.0"], model_cache, "fp32", monkeypatch, bound=True)
    expected = model.generate_ids(PASSAGES, 3, items=range(len(PASSAGES)), **OPTIONS)
    run = model._decoder.run

    def small_memory(feed, outputs, kept):
        if len(feed["tokens"]) > 6:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);")
        return run(feed, outputs, kept)

    monkeypatch.setattr(model._decoder, "run", small_memory)
    assert model.generate_ids(PASSAGES, 3, items=range(len(PASSAGES)), **OPTIONS) == expected
    assert "going on with at most 4 rows at a time" in caplog.text


def test_encoders_take_and_give_arrays(encoders, model_cache, monkeypatch):
    from gplfast.models import BiEncoder, CrossEncoder

    options = {"cache_dir": model_cache, "provider": "cpu", "precision": "fp32"}
    expected = BiEncoder.open(encoders("bert"), **options).encode(TEXTS)
    scores = CrossEncoder.open(encoders("bert", 1), **options).score(TEXTS, TEXTS[::-1])
    monkeypatch.setattr(runtime, "Session", BoundSession)
    np.testing.assert_array_equal(BiEncoder.open(encoders("bert"), **options).encode(TEXTS), expected)
    np.testing.assert_array_equal(CrossEncoder.open(encoders("bert", 1), **options).score(TEXTS, TEXTS[::-1]), scores)


# ---- what is rearranged on the device, against arrays

ELEMENTS = {"fp32": (1, np.float32), "fp16": (10, np.float16), "bf16": (16, np.uint16)}  # the last as its bits


def handle(values: np.ndarray, element: str):
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(values, ELEMENTS[element][0])


def array(value, element: str) -> np.ndarray:
    assert value.element_type() == ELEMENTS[element][0]
    dtype = np.dtype(ELEMENTS[element][1])
    content = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(content, dtype).reshape(value.shape())


def random_values(rng, element, *shape):
    if element == "bf16":
        return rng.integers(0, 2**15, shape).astype(np.uint16)
    return rng.standard_normal(shape).astype(ELEMENTS[element][1])


@pytest.mark.parametrize("element", ELEMENTS)
def test_caches_are_rearranged_as_arrays_are(element):
    rng = np.random.default_rng(0)
    host, bound = HostStates(2, 3, 4, ELEMENTS[element][1]), BoundStates("cpu", element, 2, (3, 4))
    assert host.item_bytes == bound.item_bytes
    for one in bound.empty(5):
        assert one.shape() == [5, 3, 0, 4]
        assert one.element_type() == ELEMENTS[element][0]
    cache = [random_values(rng, element, 6, 3, 7, 4) for _ in range(2)]
    handles = [handle(values, element) for values in cache]
    kept = np.array([4, 0, 5])
    for expected, found in zip(host.rows(cache, kept), bound.rows(handles, kept), strict=True):
        np.testing.assert_array_equal(array(found, element), expected)
    for expected, found in zip(host.cut(cache, 3), bound.cut(handles, 3), strict=True):
        np.testing.assert_array_equal(array(found, element), expected)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("seed", range(5))
def test_places_hold_what_was_put_there(element, seed):
    """Passages that come, go and move, as `_Passages` lets them, until nothing is left to compare."""
    rng = np.random.default_rng(seed)
    n_places, n_tokens, dtype = 6, 9, ELEMENTS[element][1]
    host = HostStates(2, 3, 4, dtype).places(n_places, n_tokens)
    bound = BoundStates("cpu", element, 2, (3, 4)).places(n_places, n_tokens)
    lengths = np.zeros(n_places, int)  # tokens of the passage at each place; 0: none
    for _ in range(12):
        free = np.flatnonzero(lengths == 0)
        if len(free):
            places = np.sort(rng.permutation(free)[: rng.integers(1, len(free) + 1)])
            length = int(rng.integers(1, n_tokens + 1))
            new = [random_values(rng, element, len(places), 3, length, 4) for _ in range(2)]
            host.put(places, new)
            bound.put(places, [handle(values, element) for values in new])
            lengths[places] = length
        check(host, bound, lengths, element)
        lengths[rng.random(n_places) < 0.4] = 0
        used = np.flatnonzero(lengths)
        if len(used) and rng.random() < 0.5:
            free = np.flatnonzero(lengths == 0)
            to, of = free[free < len(used)], used[used >= len(used)]
            host.move(to, of)
            bound.move(to, of)
            lengths[to], lengths[of] = lengths[of], 0
            check(host, bound, lengths, element)
        if len(used) and n_tokens > 2 and rng.random() < 0.4:
            n_tokens = max(2, int(lengths.max()), n_tokens - 2)
            used = np.flatnonzero(lengths)
            host, bound = host.narrowed(used, n_tokens), bound.narrowed(used, n_tokens)
            check(host, bound, lengths, element)


def check(host, bound, lengths, element):
    used = np.flatnonzero(lengths)
    if not len(used):
        return
    for expected, found in zip(host.first(used[-1] + 1), bound.first(used[-1] + 1), strict=True):
        values = array(found, element)
        assert values.shape == expected.shape
        for place in used:
            np.testing.assert_array_equal(values[place, :, : lengths[place]], expected[place, :, : lengths[place]])


def test_options_of_cuda_say_float32_is_float32():
    assert cuda_options(growing=False) == {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    assert cuda_options(growing=True) == {"use_tf32": "0", "arena_extend_strategy": "kNextPowerOfTwo"}
