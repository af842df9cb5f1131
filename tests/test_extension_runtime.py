"""What the extension does besides computing: threads, signals, memory, the environment."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import gplfast
from gplfast import ops
from gplfast.ops import _core

IS_SANITIZED = "GPLFAST_SANITIZED" in os.environ


def python(code, **environment):
    """Runs code in a fresh interpreter, from a folder that is not the source tree."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=os.environ | environment,
    )


def output(code, **environment):
    process = python(code, **environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip()


def test_info():
    info = ops.info()
    assert info["isa"] == info["isas"][-1] or "GPLFAST_ISA" in os.environ
    assert info["isas"][0] == "scalar"
    assert 1 <= info["threads"] <= os.cpu_count()


@pytest.mark.gpu
def test_cuda_info():
    cuda = ops.info()["cuda"]
    if cuda is None:
        pytest.skip("gplfast was built without CUDA (GPLFAST_CUDA=ON builds it)")
    if not cuda["devices"]:
        pytest.skip(f"no GPU here: {cuda['error']}")
    assert cuda["driver"] >= cuda["runtime"] // 1000 * 1000


@pytest.mark.parametrize("name", _core.available_isas())
def test_environment_forces_the_instruction_set(name):
    assert output("from gplfast import ops; print(ops.info()['isa'])", GPLFAST_ISA=name) == name


def test_unavailable_instruction_set(monkeypatch):
    monkeypatch.setenv("GPLFAST_ISA", "avx1024")
    one = np.ones((1, 1), np.float32)
    for call in (ops.info, lambda: gplfast.search(one, one, 1), lambda: gplfast.dedup(one, 0.5)):
        with pytest.raises(gplfast.errors.UnavailableError, match=r"'avx1024' is not available here; .* scalar"):
            call()


@pytest.mark.skipif(IS_SANITIZED, reason="emulated tiles take 6 s as it is")
def test_peaks_of_each_instruction_set(isa):
    assert 1e6 < ops.measure_peak("float32", 2, 0.01, n_bytes=0) < 1e15
    if isa in ("scalar", "avx2", "avx512"):
        with pytest.raises(gplfast.errors.UnavailableError, match=f"instruction set {isa} has no int8"):
            ops.measure_peak("int8", 1, 0.01, n_bytes=0)
    else:
        assert 1e6 < ops.measure_peak("int8", 2, 0.01, n_bytes=0) < 1e16
    with pytest.raises(gplfast.errors.ConfigError, match="kind is 'write'; use 'float32', 'int8' or 'read'"):
        ops.measure_peak("write", 1, 0.01, n_bytes=0)


def test_threads_follow_the_affinity():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    assert output(code + "from gplfast import ops; print(ops.info()['threads'])") == "1"


@pytest.fixture
def work():
    """A search of about a second on one slow core."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((2000, 64)).astype("f4"), rng.standard_normal((40_000, 64)).astype("f4")


def test_gil_is_released(work):
    """This thread goes on counting while another one searches."""
    queries, docs = work
    _core.force_isa("scalar")
    try:
        searching = threading.Thread(target=lambda: gplfast.search(queries, docs, 5, threads=1))
        searching.start()
        count = 0
        while searching.is_alive():
            count += 1
            time.sleep(0.001)
    finally:
        _core.force_isa("")
    assert count > 20


ROWS = "rows = np.random.default_rng(0).standard_normal((100_000, 128), dtype=np.float32)"
LONG_CALLS = {  # set-up, call, instruction set
    # Ascending scores: each document is among the best so far.
    "direct": (
        "rows = np.arange(10_000_000, dtype=np.float32)[:, None]",
        "gplfast.search(rows[-4:], rows, 1000, threads=1)",
        "",
    ),
    "float": (ROWS, "gplfast.search(rows, rows, 5, threads=2)", "scalar"),
    # In turns that each end before signals are looked at.
    "dedup": (ROWS, "gplfast.dedup(rows, 0.9, threads=2)", "scalar"),
    "dedup-turns": (ROWS, "ops._core.dedup(rows, 0.9, 'ip', False, 'greedy', 2, block_rows=64)", "scalar"),
    "dedup-copies": (
        f"rows = np.random.default_rng(0).standard_normal(({500_000 if IS_SANITIZED else 5_000_000}, 2), dtype='f4')",
        "gplfast.dedup(rows, 1e30, metric='ip', threads=2)",
        "",
    ),
    "margins": (
        "rows = np.random.default_rng(0).standard_normal(30_000_000, dtype=np.float32); one = np.arange(600_001)",
        "gplfast.margins(rows[:600_000], one, rows, one * 50, quota=9, sampling='weighted', threads=2)",
        "",
    ),
}
for name in ("avx512_vnni", "amx_int8"):
    if name in _core.available_isas():
        LONG_CALLS[name] = (ROWS, "gplfast.search(rows, rows, 5, threads=2)", name)
        turns = "ops._core.search(rows, rows, 5, 'ip', None, 2, block_queries=1000, block_docs=500)"
        LONG_CALLS[f"{name}-turns"] = (ROWS, turns, name)


@pytest.mark.parametrize("case", LONG_CALLS)
def test_interrupt_works_within_a_second_and_leaves_nothing_behind(case):
    prepare, call, isa = LONG_CALLS[case]
    code = f"""
import os, signal, time, numpy as np, gplfast
from gplfast import ops
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
{prepare}
threads = len(os.listdir("/proc/self/task"))
print("ready", flush=True)
try:
    {call}
    print("not interrupted")
except KeyboardInterrupt:
    print(time.monotonic())
assert len(os.listdir("/proc/self/task")) == threads
unit = np.eye(50, dtype=np.float32)
np.testing.assert_array_equal(gplfast.search(unit, unit, 1).ids[:, 0], np.arange(50))
"""
    process = python(code, GPLFAST_ISA=isa)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    time.sleep(0.3)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert float(out) - sent < 1.0


def test_the_process_may_end_while_a_daemon_thread_works():
    """Python ends threads that ask for its lock then by unwinding them, which C++ answers with an abort."""
    code = f"""
import threading, time, numpy as np, gplfast
{ROWS}
threading.Thread(target=gplfast.search, args=(rows, rows, 5), daemon=True).start()
time.sleep(0.3)
print("end")
"""
    assert output(code, GPLFAST_ISA="scalar") == "end"


def test_concurrent_calls(work):
    """Several Python threads search at once; each gets the answer of a lone call."""
    queries, docs = work[0][:50], work[1][:3000]
    expected = gplfast.search(queries, docs, 10)
    answers = [None] * 4

    def run(i):
        answers[i] = gplfast.search(queries, docs, 10, threads=2)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(answers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers:
        np.testing.assert_array_equal(answer.ids, expected.ids)
        np.testing.assert_array_equal(answer.scores, expected.scores)


@pytest.mark.skipif(IS_SANITIZED, reason="sanitizers have memory of their own")
def test_no_score_matrix():
    """20,000 x 20,000 scores would be 1.6 GB."""
    code = """
import resource, numpy as np, gplfast
rows = np.random.default_rng(0).standard_normal((20_000, 8), dtype=np.float32)
gplfast.search(rows[:10], rows, 5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
gplfast.search(rows, rows, 5)
gplfast.dedup(rows, 0.9999, rule="greedy")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    assert int(output(code)) < 150_000  # KiB


@pytest.mark.skipif(sys.platform != "linux", reason="sets the rounding mode through glibc")
def test_rounding_mode_of_the_process_does_not_matter():
    """Some libraries leave the floating-point unit in a mode of their own."""
    libm = ctypes.CDLL("libm.so.6")
    upward, nearest = 0x800, 0
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((300, 33)).astype(np.float32)
    positives, negatives = rows[:, 0].copy(), rows[:, 1].copy()
    indptr = np.arange(301)
    calls = (
        lambda: gplfast.search(rows, rows, 9, metric="cosine"),
        lambda: gplfast.dedup(rows, 0.3)[::2],
        lambda: gplfast.margins(positives, indptr, negatives, indptr)[:2],
    )
    expected = [call() for call in calls]
    libm.fesetround(upward)
    try:
        found = [call() for call in calls]
    finally:
        libm.fesetround(nearest)
    for one, other in zip(expected, found, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_flushed_subnormals_do_not_matter():
    """What torch.set_flush_denormal does to the calling thread: scores that are subnormal would all compare equal."""
    torch = pytest.importorskip("torch")
    docs = np.zeros((20_000, 8), np.float32)
    docs[:, 0] = (1 + np.random.default_rng(0).permutation(20_000)) * 2.0**-149
    queries = np.zeros((6, 8), np.float32)
    queries[:, 0] = 1
    best = np.argsort(-docs[:, 0].astype(np.float64))[:5]
    for n, threads in itertools.product((3, 6), (1, 2)):
        if not torch.set_flush_denormal(True):
            pytest.skip("this CPU cannot flush subnormal numbers")
        try:
            found = gplfast.search(queries[:n], docs, 5, threads=threads).ids
        finally:
            torch.set_flush_denormal(False)
        np.testing.assert_array_equal(found, np.tile(best, (n, 1)))


def test_works_in_a_forked_child(work):
    queries, docs = work[0][:20], work[1][:2000]
    expected = gplfast.search(queries, docs, 3, threads=2)
    code = """
import os, sys, numpy as np, gplfast
rows = np.random.default_rng(0).standard_normal((500, 16), dtype=np.float32)
first = gplfast.search(rows, rows, 3, threads=2)
child = os.fork()
if child == 0:
    again = gplfast.search(rows, rows, 3, threads=2)
    os._exit(0 if (again.ids == first.ids).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    output(code)
    np.testing.assert_array_equal(gplfast.search(queries, docs, 3, threads=2).ids, expected.ids)
