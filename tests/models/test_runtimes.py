"""What models run on: providers, precisions, and the trial that chooses among them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gplfast.errors import ConfigError, MissingExtraError, ModelError, UnavailableError
from gplfast.models import BiEncoder, CrossEncoder, QueryGenerator, Sampling, calibration, query_generator, runtime
from gplfast.models.export.graph import Graph, quantized
from gplfast.models.query_generator import Runtimes, runtimes
from gplfast.models.runtime import REFERENCE, Runtime, available, candidates, is_open, open_session

pytest.importorskip("onnxruntime", reason="graphs run on onnxruntime")


INT8 = Runtime("cpu", "int8")


HAS_INT8 = INT8 in available()


TEXTS = ["the norman king of england", "light wave energy " * 9, "cell", "who was the first king of france in the war"]


@pytest.fixture
def free_choice(monkeypatch):
    """Without what tests/conftest.py sets."""
    monkeypatch.delenv("GPLFAST_PROVIDER")
    monkeypatch.delenv("GPLFAST_PRECISION")


def openvino_or_skip() -> None:
    pytest.importorskip("openvino", reason="the extra [openvino] is not installed")


@pytest.mark.usefixtures("free_choice")
def test_candidates_are_those_that_the_choice_leaves():
    here = available()
    assert here[0] == REFERENCE
    assert candidates() == here
    assert is_open("auto")
    assert not is_open("fp32")
    assert candidates("cpu", "fp32") == [REFERENCE]
    assert all(one.precision == "fp32" for one in candidates(precision="fp32"))
    assert all(one.provider == "cpu" for one in candidates("cpu"))


@pytest.mark.usefixtures("free_choice")
def test_the_environment_fills_what_is_left_open(monkeypatch):
    monkeypatch.setenv("GPLFAST_PROVIDER", "cpu")
    monkeypatch.setenv("GPLFAST_PRECISION", "fp32")
    assert candidates() == [REFERENCE]
    if HAS_INT8:
        assert candidates(precision="int8") == [INT8]
    assert not is_open("auto")
    monkeypatch.setenv("GPLFAST_PRECISION", "fp64")
    with pytest.raises(ConfigError, match="precision is 'fp64' but must be auto or one of bf16, fp16, fp32, int8"):
        candidates()


@pytest.mark.usefixtures("free_choice")
@pytest.mark.parametrize(
    ("provider", "precision", "error", "words"),
    [
        ("tpu", "auto", ConfigError, "provider is 'tpu' but must be auto or one of cpu, openvino, cuda"),
        ("auto", "fp8", ConfigError, "precision is 'fp8' but must be"),
        ("openvino", "int8", ConfigError, "provider openvino computes in fp32 or bf16 but precision is 'int8'"),
        ("cpu", "bf16", ConfigError, "provider cpu computes in fp32 or int8"),
        ("openvino", "fp16", ConfigError, "provider openvino computes in fp32 or bf16 but precision is 'fp16'"),
        ("cuda", "int8", ConfigError, "provider cuda computes in fp32 or fp16 or bf16 but precision is 'int8'"),
    ],
)
def test_what_is_no_choice_is_refused(provider, precision, error, words):
    with pytest.raises(error, match=words):
        candidates(provider, precision)


@pytest.mark.usefixtures("free_choice")
def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(runtime, "available", lambda *_: [REFERENCE])
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    for choice in (("openvino", "auto"), ("auto", "bf16")):
        with pytest.raises(MissingExtraError, match=r"needs openvino, which is not installed.*gplfast\[openvino\]"):
            candidates(*choice)
    with pytest.raises(UnavailableError, match=r"provider cuda needs CUDAExecutionProvider.*gplfast\[gpu\]"):
        candidates("cuda")
    with pytest.raises(UnavailableError, match=r"provider cuda needs CUDA.* or use provider cpu with fp32 or int8"):
        candidates("cuda", "bf16")
    with pytest.raises(UnavailableError, match="this machine has cpu-fp32 but provider auto with precision int8"):
        candidates(precision="int8")


@pytest.mark.usefixtures("free_choice")
def test_a_generator_decodes_on_onnxruntime(monkeypatch):
    bf16, ov = Runtime("openvino", "bf16"), Runtime("openvino", "fp32")
    for module in (runtime, query_generator):
        monkeypatch.setattr(module, "available", lambda *_: [REFERENCE, ov, bf16, INT8])
    names = [str(one) for one in runtimes("auto", "auto")]
    assert names == [
        "cpu-fp32", "openvino-fp32+cpu-fp32", "openvino-bf16+cpu-fp32", "openvino-bf16+cpu-int8", "cpu-int8",
    ]  # fmt: skip
    assert [str(one) for one in runtimes("auto", "fp32")] == ["cpu-fp32", "openvino-fp32+cpu-fp32"]
    assert [str(one) for one in runtimes("auto", "int8")] == ["openvino-bf16+cpu-int8", "cpu-int8"]
    assert [str(one) for one in runtimes("cpu", "int8")] == ["cpu-int8"]
    assert Runtimes(ov, REFERENCE).suffix == ""
    assert Runtimes(bf16, INT8).suffix == "-openvino-bf16+cpu-int8"
    cuda = Runtime("cuda", "fp32")
    for module in (runtime, query_generator):
        monkeypatch.setattr(module, "available", lambda *_: [REFERENCE, cuda, INT8])
    assert [str(one) for one in runtimes("auto", "auto")] == ["cpu-fp32", "cuda-fp32", "cpu-int8"]
    assert runtimes("cuda", "auto") == [Runtimes(cuda, cuda)]
    fp16, cuda_bf16 = Runtime("cuda", "fp16"), Runtime("cuda", "bf16")
    for module in (runtime, query_generator):
        monkeypatch.setattr(module, "available", lambda *_: [REFERENCE, cuda, fp16, cuda_bf16, ov, bf16, INT8])
    names = ["cpu-fp32", "cuda-fp32", "cuda-fp16", "cuda-bf16", "openvino-fp32+cpu-fp32", "openvino-bf16+cpu-fp32"]
    assert [str(one) for one in runtimes("auto", "auto")] == [*names, "openvino-bf16+cpu-int8", "cpu-int8"]
    assert [str(one) for one in runtimes("auto", "bf16")] == ["cuda-bf16", "openvino-bf16+cpu-fp32"]
    assert [str(one) for one in runtimes("auto", "fp16")] == ["cuda-fp16"]
    assert Runtimes(fp16, fp16).suffix == "-cuda-fp16"


@pytest.mark.usefixtures("free_choice")
def test_cuda_computes_in_three_types_where_onnxruntime_has_it(monkeypatch):
    class OfCuda:
        @staticmethod
        def get_available_providers():
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(runtime, "import_onnxruntime", lambda: OfCuda)
    here = [one for one in available() if one.provider == "cuda"]
    assert [one.precision for one in here] == ["fp32", "fp16", "bf16"]
    assert [one.graph for one in here] == ["fp32", "fp16", "bf16"]
    assert Runtime("openvino", "bf16").graph == "fp32"
    assert candidates(precision="fp16") == [Runtime("cuda", "fp16")]


def test_weights_as_integers_are_within_half_a_step():
    weight = np.random.default_rng(0).standard_normal((7, 33)).astype(np.float32)
    weight[3] = 0
    rounded, scales = quantized(weight)
    assert rounded.dtype == np.int8
    assert np.abs(rounded).max(axis=1).tolist() == [127, 127, 127, 0, 127, 127, 127]
    assert (np.abs(weight - rounded * scales[:, None]) <= 0.5001 * scales[:, None]).all()


@pytest.mark.skipif(not HAS_INT8, reason="this processor has no VNNI")
def test_a_product_of_integers_equals_its_definition(tmp_path):
    rng = np.random.default_rng(1)
    weight, bias = rng.standard_normal((24, 32)).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    graph = Graph("linear", "int8")
    value = graph.input("x", np.float32, ("rows", 32))
    graph.output(graph.linear(value, "layer", weight, bias), "y", np.float32, ("rows", 24))
    graph.output(graph.linear(value, "head", weight, bias, exact=True), "exact", np.float32, ("rows", 24))
    graph.save(tmp_path / "linear.onnx")
    x = rng.standard_normal((5, 32)).astype(np.float32)
    found, exact = open_session(tmp_path / "linear.onnx", INT8).run({"x": x})
    # Values are rounded to 0..255 with one scale and one zero point, as ONNX defines DynamicQuantizeLinear.
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    levels = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    rounded, scales = quantized(weight)
    np.testing.assert_allclose(found, levels @ rounded.T.astype(np.float64) * scale * scales + bias, atol=1e-4)
    np.testing.assert_allclose(exact, x @ weight.T + bias, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "distilbert", "mpnet", "roberta"])
def test_openvino_in_float32_equals_onnxruntime(name, encoders, model_cache):
    openvino_or_skip()
    options = {"cache_dir": model_cache, "precision": "fp32"}
    embedded = [BiEncoder.open(encoders(name), provider=p, **options).encode(TEXTS) for p in ("cpu", "openvino")]
    np.testing.assert_allclose(embedded[1], embedded[0], atol=1e-5)
    scored = [
        CrossEncoder.open(encoders(name, 1), provider=p, **options).score(TEXTS, TEXTS[::-1])
        for p in ("cpu", "openvino")
    ]
    np.testing.assert_allclose(scored[1], scored[0], atol=1e-5)


FIRST_RUN_IN_TWO_THREADS = """
import os, pathlib, sys, threading, time, types
import numpy as np
import openvino
from gplfast.models.openvino_session import OpenVinoSession

class SlowNumPy(types.ModuleType):  # what the bindings look up at the first array; while it takes, other threads run
    def __getattr__(self, name):
        time.sleep(1)
        return getattr(real, name)

real = sys.modules["numpy._core.multiarray"]
sys.modules["numpy._core.multiarray"] = SlowNumPy("numpy._core.multiarray")
session = OpenVinoSession(pathlib.Path(sys.argv[1]), threads=2, streams=True)
done = []
threads = [
    threading.Thread(target=lambda: done.append(session.run({"x": np.zeros((2, 8), np.float32)})), daemon=True)
    for _ in range(2)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(60)
os._exit(0 if len(done) == 2 else 1)
"""


def test_the_first_run_may_be_two_at_once(tmp_path):
    """OpenVINO's bindings hang for good when two threads bring the process's first arrays at once."""
    openvino_or_skip()
    graph = Graph("linear")
    value = graph.input("x", np.float32, ("rows", 8))
    graph.output(graph.linear(value, "layer", np.eye(8, dtype=np.float32), None), "y", np.float32, ("rows", 8))
    graph.save(tmp_path / "model.onnx")
    command = [sys.executable, "-c", FIRST_RUN_IN_TWO_THREADS, str(tmp_path / "model.onnx")]
    assert subprocess.run(command, check=False, timeout=120).returncode == 0  # hanging, it never ends


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_a_t5_encoded_by_openvino_writes_the_same_queries(kind, t5s, model_cache):
    openvino_or_skip()
    options = {"seed": 5, "items": range(len(TEXTS)), "sampling": Sampling(max_new_tokens=10)}
    found = [
        QueryGenerator.open(t5s[kind], cache_dir=model_cache, provider=p, precision="fp32").generate(
            TEXTS, 3, **options
        )
        for p in ("cpu", "openvino")
    ]
    assert found[0] == found[1]


def low_precisions() -> list[Runtime]:
    return [one for one in available() if one.precision != "fp32"]


@pytest.mark.parametrize("low", low_precisions() or [None], ids=str)
def test_low_precision_is_close_and_says_so(low, encoders, t5s, model_cache):
    if low is None:
        pytest.skip("this machine computes in float32 alone")
    if low.provider == "cuda":
        pytest.skip("see test_cuda.py")
    named = {"cache_dir": model_cache, "provider": low.provider, "precision": low.precision}
    exact = {"cache_dir": model_cache, "provider": "cpu", "precision": "fp32"}
    encoder, expected = BiEncoder.open(encoders("bert"), **named), BiEncoder.open(encoders("bert"), **exact)
    assert encoder.fingerprint == f"{expected.fingerprint}-{low.precision}"
    a, b = encoder.encode(TEXTS), expected.encode(TEXTS)
    assert not np.array_equal(a, b)
    assert (np.einsum("nd,nd->n", a, b) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.98
    teacher, reference = (CrossEncoder.open(encoders("bert", 1), **options) for options in (named, exact))
    assert teacher.fingerprint == f"{reference.fingerprint}-{low.precision}"
    scores = [one.score(TEXTS, TEXTS[::-1]) for one in (teacher, reference)]
    assert np.abs(scores[0] - scores[1]).max() < 0.1 * np.ptp(scores[1])
    generator = QueryGenerator.open(t5s["v1.0"], **named)
    assert low.precision in generator.fingerprint
    queries = generator.generate(TEXTS, 2, seed=0, items=range(len(TEXTS)), sampling=Sampling(max_new_tokens=5))
    assert [len(each) for each in queries] == [2] * len(TEXTS)


def test_a_graph_that_openvino_cannot_read_is_named(tmp_path):
    openvino_or_skip()
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"model.onnx cannot be loaded by openvino.*use provider cpu"):
        open_session(path, Runtime("openvino", "fp32"))


@pytest.mark.usefixtures("free_choice")
def test_models_are_tried_once_and_say_what_they_run_on(encoders, t5s, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(calibration, "FEWEST_ITEMS", 4)
    monkeypatch.setattr(calibration, "MOST_ITEMS", 8)
    monkey = {"cache_dir": tmp_path, "threads": 1}
    with caplog.at_level("INFO"):
        encoder = BiEncoder.open(encoders("bert"), **monkey)
        teacher = CrossEncoder.open(encoders("bert", 1), **monkey)
        generator = QueryGenerator.open(t5s["v1.0"], **monkey)
    names = {str(one) for one in available()}
    for model in (encoder, teacher):
        assert set(model.choice.trials or {str(REFERENCE): 0}) == names
        assert model.choice.runtime in names
    assert generator.choice.runtime in {str(one) for one in runtimes("auto", "auto")}
    if len(names) > 1:
        assert caplog.text.count("on a sample, once") == 3
        records = sorted(path.name for path in tmp_path.rglob("calibration-*.json"))
        assert [name.rsplit("-", 1)[0] for name in records] == [
            "calibration-bi-encoder", "calibration-cross-encoder", "calibration-query-generator",
        ]  # fmt: skip
        caplog.clear()
        with caplog.at_level("INFO"):
            assert BiEncoder.open(encoders("bert"), **monkey).choice == encoder.choice
        assert "on a sample" not in caplog.text


def test_a_model_on_another_provider_does_not_load_openvino():
    import subprocess

    code = (
        "import sys; from gplfast.models.runtime import candidates; candidates('cpu'); print('openvino' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_importing_gplfast_loads_no_provider():
    import subprocess

    code = "import sys, gplfast; print([m for m in ('openvino', 'onnxruntime') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
