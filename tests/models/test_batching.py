"""Batches by tokens, texts tokenised ahead, equal texts once, and what happens when memory does not suffice."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from gplfast.errors import ConfigError, ModelError, ResourceError
from gplfast.models import BiEncoder, CrossEncoder, batching, runtime
from gplfast.models.out_of_memory import is_out_of_memory

RNG = np.random.Generator(np.random.Philox(3))
TEXTS = [("the king of the sea " * 40)[:n] for n in RNG.integers(1, 400, 60)]


@dataclass
class Encoded:
    """Texts whose tokens are their characters."""

    texts: list[str]

    @property
    def lengths(self):
        return np.array([len(text) for text in self.texts])


class Recorder:
    """A model without a model: the value of a text is its length; remembers what it was asked."""

    def __init__(self, fits=lambda rows, longest: True, streams=1):
        self.fits, self.streams, self.shapes, self.texts, self.threads = fits, streams, [], [], set()

    def encode(self, texts):
        self.threads.add(threading.current_thread().name)
        self.texts += texts
        return Encoded(texts)

    def run(self, encoded, batch):
        longest = int(encoded.lengths[batch].max())
        self.shapes.append((len(batch), longest))
        if not self.fits(len(batch), longest):
            raise MemoryError("std::bad_alloc")
        return encoded.lengths[batch].astype(np.float32)[:, None]

    def map(self, texts, batch_size=0, progress=None):
        work = batching.Work("embed", len, self.encode, self.run, 1, self.streams)
        return batching.map_unique(texts, work, batch_size=batch_size, progress=progress)


def lengths(texts):
    return np.array([[len(text)] for text in texts], np.float32)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(batching, "CHUNK_ROWS", 16)
    monkeypatch.setattr(batching, "BATCH_TOKENS", 1000)


def ahead_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("gplfast-")]


@pytest.mark.parametrize("batch_size", [0, 1, 5])
def test_batches_hold_so_many_tokens_and_rows(batch_size, small_chunks):
    model = Recorder()
    np.testing.assert_array_equal(model.map(TEXTS, batch_size), lengths(TEXTS))
    assert all(rows * longest <= 1000 for rows, longest in model.shapes)
    assert not batch_size or all(rows <= batch_size for rows, _ in model.shapes)
    assert batch_size or max(rows for rows, _ in model.shapes) > 5
    longest = [length for _, length in model.shapes]
    assert longest == sorted(longest, reverse=True)
    assert sum(rows * length for rows, length in model.shapes) < 1.2 * sum(len(text) for text in TEXTS)


def test_a_row_longer_than_the_budget_goes_alone(small_chunks):
    model = Recorder()
    model.map(["a" * 3000, "b" * 2000, "c" * 500, "d" * 500])
    assert model.shapes == [(1, 3000), (1, 2000), (2, 500)]


def test_equal_texts_are_computed_once_and_counted(small_chunks):
    texts, seen = TEXTS * 2 + TEXTS[:7], []
    model = Recorder()
    np.testing.assert_array_equal(model.map(texts, progress=lambda *counts: seen.append(counts)), lengths(texts))
    assert Counter(model.texts) == Counter(set(texts))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(texts), len(texts))


def test_equal_pairs_are_scored_once(encoders, model_cache, monkeypatch):
    teacher = CrossEncoder.open(encoders("bert", 1), cache_dir=model_cache, threads=1)
    queries, docs = ["king", "ship", "king", "king"], ["the war", "the sea", "the war", "the sea"]
    once = teacher.score(queries, docs)
    rows, run = [], teacher._session.run
    monkeypatch.setattr(teacher._session, "run", lambda feed: (rows.append(len(feed["input_ids"])), run(feed))[1])
    np.testing.assert_array_equal(teacher.score(queries, docs), once)
    assert sum(rows) == 3
    assert once[0] == once[2]


def test_nothing(small_chunks):
    assert Recorder().map([]).shape == (0, 1)


def test_batch_size_below_zero():
    with pytest.raises(ConfigError, match=r"embed: batch_size is -1 but must be at least 1, or 0 for as many as fit"):
        Recorder().map(TEXTS, -1)


# --- streams ---


def test_batches_run_at_a_time_and_are_the_same(small_chunks):
    """Each of three threads waits for the two others, so fewer at a time would never end."""
    alone, together, barrier, lock = Recorder(), Recorder(streams=3), threading.Barrier(3, timeout=60), threading.Lock()
    running, most = 0, 0
    texts = ["x" * 500] * 24  # equal lengths, but different texts: 12 batches of two
    texts = [f"{number:03}{text}" for number, text in enumerate(texts)]
    original = together.run

    def run(encoded, batch):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait()
        with lock:
            running -= 1
        return original(encoded, batch)

    together.run = run
    np.testing.assert_array_equal(together.map(texts), lengths(texts))
    alone.map(texts)
    assert most == 3
    assert sorted(together.shapes) == sorted(alone.shapes)
    assert not ahead_threads()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_values_do_not_depend_on_threads(encoders, model_cache, precision):
    """Every batch is run by one thread."""
    provider = "cpu" if precision == "fp32" else "openvino"
    if precision == "bf16" and runtime.Runtime(provider, precision) not in runtime.available():
        pytest.skip("this machine does not multiply in bfloat16, or openvino is not installed")
    found = []
    for threads in (1, 2, 7):
        model = BiEncoder.open(
            encoders("bert", 1), cache_dir=model_cache, threads=threads, provider=provider, precision=precision
        )
        assert model._session.streams == threads
        found.append(model.encode(TEXTS * 3 + [f"{number} king" for number in range(150)]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_batches_that_do_not_fit_are_halved_in_every_stream(small_chunks):
    model = Recorder(fits=lambda rows, longest: rows * longest <= 300 or rows == 1, streams=3)
    np.testing.assert_array_equal(model.map(TEXTS), lengths(TEXTS))


# --- ahead ---


def test_one_chunk_is_made_ahead_and_no_more():
    made, seen = [], []
    ready = threading.Event()

    def make(part):
        made.append(part)
        if part == 1:
            ready.set()
        return part * 10

    for part, value in batching.ahead(make, range(6)):
        if part == 0:
            assert ready.wait(60), "the next part is made while the first one is used"
        seen.append(value)
        assert len(made) <= part + 2
    assert seen == [0, 10, 20, 30, 40, 50]
    assert not ahead_threads()


@pytest.mark.parametrize("error", [ValueError("tokens"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("where", ["encode", "run", "progress"])
def test_errors_arrive_and_leave_no_thread(where, error, small_chunks, monkeypatch):
    model, calls = Recorder(), itertools.count()
    original = getattr(model, where, lambda *_: None)

    def fail(*arguments):
        if next(calls) == 1:
            raise error
        return original(*arguments)

    if where != "progress":
        monkeypatch.setattr(model, where, fail)
    with pytest.raises(type(error)) as caught:
        model.map(TEXTS, progress=fail if where == "progress" else None)
    assert not ahead_threads(), "while the traceback still holds the frames"
    assert caught.value is error


def test_tokenised_in_another_thread(small_chunks):
    model = Recorder()
    model.map(TEXTS)
    assert all(name.startswith("gplfast-ahead") for name in model.threads)


def test_two_threads_may_use_one_model(encoders, model_cache):
    """Truncation is a state of the tokenizer, so one call's must not reach into another's."""
    teacher = CrossEncoder.open(encoders("bert", 1), cache_dir=model_cache, threads=1)
    docs = ["the king of the sea " * 30] * 40
    expected, wrong = teacher._tokenizer.encode(docs, 20).lengths, []

    def cut():
        wrong.extend(text for _ in range(20) for text in teacher.cut(docs, 200) if len(text.split()) != 150)

    threads = [threading.Thread(target=cut) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        np.testing.assert_array_equal(teacher._tokenizer.encode(docs, 20).lengths, expected)
    for thread in threads:
        thread.join()
    assert not wrong


# --- memory ---


def test_batches_that_do_not_fit_are_halved_and_the_size_is_remembered(small_chunks, caplog):
    model = Recorder(fits=lambda rows, longest: rows * longest <= 300 or rows == 1)
    np.testing.assert_array_equal(model.map(TEXTS), lengths(TEXTS))
    assert caplog.text.count("does not fit into memory (std::bad_alloc); going on with at most") <= 2
    failed = [shape for shape in model.shapes if not model.fits(*shape)]
    assert 1 <= len(failed) <= 2


def test_one_row_that_does_not_fit_is_an_error_with_its_size(small_chunks):
    model = Recorder(fits=lambda rows, longest: longest < 100)
    with pytest.raises(ResourceError, match=r"embed: a batch of 1 row x 250 tokens does not fit into memory \(std"):
        model.map(["a" * 250, "b" * 240, "c" * 230])
    assert model.shapes == [(3, 250), (1, 250)]
    assert issubclass(ResourceError, MemoryError)


def test_session_out_of_memory_changes_no_score(encoders, model_cache, monkeypatch):
    """A stand-in for a device that is too small, which cannot be had here."""
    from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

    teacher = CrossEncoder.open(encoders("bert", 1), cache_dir=model_cache, threads=1)
    queries = [f"the king {word}" for word in ("war", "peace", "law", "ship", "sea")]
    expected, run = teacher.score(queries, queries), teacher._session.run

    def small(feed):
        if len(feed["input_ids"]) > 1:
            raise RuntimeException("BFCArena: Failed to allocate memory for requested buffer of size 123\nat line 5")
        return run(feed)

    monkeypatch.setattr(teacher._session, "run", small)
    np.testing.assert_allclose(teacher.score(queries, queries), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 9", True),
        ("Available memory of 5 is smaller than requested bytes of 9", True),
        ("CUDA failure 2: out of memory ; GPU=0", True),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", True),
        ("CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0", True),
        ("CudaMempoolArena::Alloc: cudaMallocFromPoolAsync failed: cudaErrorMemoryAllocation", True),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", False),
        ("CUBLAS failure 15: CUBLAS_STATUS_NOT_SUPPORTED", False),
        ("std::bad_alloc", True),
        ("[GPU] CL_OUT_OF_HOST_MEMORY", True),
        ("Invalid input name: memory", False),
        ("Got invalid dimensions for input: input_ids", False),
    ],
)
def test_what_is_out_of_memory(message, expected):
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

    assert is_out_of_memory(RuntimeException(message)) is expected
    assert is_out_of_memory(Fail(message)) is expected
    assert is_out_of_memory(RuntimeError(message)) is expected
    assert not is_out_of_memory(ModelError(message))


def test_other_errors_of_a_session_are_not_retried(small_chunks, monkeypatch):
    model, calls = Recorder(), []

    def fail(*arguments):
        calls.append(arguments)
        raise RuntimeError("wrong shape")

    monkeypatch.setattr(model, "run", fail)
    with pytest.raises(RuntimeError, match="wrong shape"):
        model.map(TEXTS)
    assert len(calls) == 1


LIMITED = """
import logging, resource, sys
import numpy as np
from gplfast.models import BiEncoder, batching

def limited(feed, run):
    if resource.getrlimit(resource.RLIMIT_AS)[0] == -1:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 48 * 2**20, -1))
    return run(feed)

logging.basicConfig(level=logging.WARNING)
encoder = BiEncoder.open(sys.argv[1], cache_dir=sys.argv[2], threads=1)
texts = [str(number) + " the king of the sea" * 20 for number in range(2000)]
expected = encoder.encode(texts)
batching.CHUNK_ROWS, batching.BATCH_TOKENS = len(texts), 10**9
run = encoder._session.run
encoder._session.run = lambda feed: limited(feed, run)
found = encoder.encode(texts)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
def test_a_process_that_is_really_out_of_memory(encoders, model_cache):
    """2000 rows at once need 131 MB for the attention scores of a layer alone, and may take 48."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path}
    arguments = [sys.executable, "-c", LIMITED, str(encoders("bert")), str(model_cache)]
    process = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stderr
    assert "encode: a batch of 2000 rows x 64 tokens does not fit into memory" in process.stderr


def test_memory_of_tokens_does_not_grow_with_the_texts(encoders, model_cache, monkeypatch):
    """At most what is used, and what was made ahead, is alive."""
    encoder = BiEncoder.open(encoders("bert"), cache_dir=model_cache, threads=1)
    monkeypatch.setattr(batching, "CHUNK_ROWS", 10)
    alive, most, original = [0], [0], encoder._tokenizer.encode

    class Counted:
        def __init__(self, encoded):
            self.ids, self.type_ids, self.lengths = encoded.ids, encoded.type_ids, encoded.lengths
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= 1

    monkeypatch.setattr(encoder._tokenizer, "encode", lambda texts, limit: Counted(original(texts, limit)))
    encoder.encode([f"the king {number}" for number in range(200)])
    assert 2 <= most[0] <= 3
    assert alive[0] == 0
