"""The machine, and what it can do at most.

Peaks are measured, not read from a data sheet, with as many threads as the benchmark uses:

- float32, int8: multiply-adds on registers alone, two operations each, in the best instruction set that the extension
  has here (int8 where it has an integer scan). No kernel can be faster, whatever it does with memory.
- read: bytes a second of adding up 1 GiB, each thread its own part. What reads the documents once cannot be faster.
- gemm float32, gemm bfloat16: a product of two 2,048 x 2,048 matrices, what networks are made of, by torch or, in
  float32, by NumPy where that is faster (torch's library is slow on processors of other makers than its own); left out
  without torch.

Each is the best of samples that are taken between the timed runs, so that a machine that is busy or throttled is
so for both.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from gplfast.errors import UnavailableError
from gplfast.ops import available_threads, info, measure_peak
from gplfast.store.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGES = (
    "gplfast",
    "numpy",
    "faiss-cpu",
    "torch",
    "usearch",
    "numba",
    "sentence-transformers",
    "onnxruntime",
    "transformers",
    "ctranslate2",
)
READ_BYTES = 1 << 30  # above any cache of one machine
GEMM_ROWS = 2048  # 16 MiB a float32 matrix: large enough that starting threads and packing do not count


@dataclasses.dataclass
class Peaks:
    """The best rates seen, in operations or bytes a second.

    Attributes:
        threads: How many work at once.
        seconds: How long a sample takes; 0: nothing is measured.
        of_networks: Whether products of matrices are measured, in place of registers and reading.
        best: float32, int8 and read, or gemm float32 and gemm bfloat16; those of them that are there.
    """

    threads: int
    seconds: float
    of_networks: bool = False
    best: dict[str, float] = dataclasses.field(default_factory=dict)

    def sample(self) -> None:
        """Measure each once more."""
        if self.seconds <= 0:
            return
        for kind, rate in (
            _gemm_rates(self.seconds) if self.of_networks else _register_rates(self.threads, self.seconds)
        ):
            self.best[kind] = max(rate, self.best.get(kind, 0.0))

    def share(self, kind: str, rate: float) -> float | None:
        """`rate` over the peak; None where that was not measured."""
        return rate / self.best[kind] if kind in self.best else None


def _register_rates(threads: int, seconds: float) -> Iterator[tuple[str, float]]:
    n_bytes = min(READ_BYTES, available_bytes() // 8)
    kinds: tuple[Literal["float32", "int8", "read"], ...] = ("float32", "int8", "read")
    for kind in kinds:
        try:
            yield kind, measure_peak(kind, threads, seconds, n_bytes=n_bytes)
        except UnavailableError:  # this instruction set has no int8
            continue


def _gemm_rates(seconds: float) -> Iterator[tuple[str, float]]:
    """The fastest product within `seconds` each, on the threads that the libraries have; one at least."""
    try:
        import torch
    except ImportError:  # not installed
        return
    # Ones: the arithmetic takes as long whatever the numbers are.
    ones = {name: torch.ones(GEMM_ROWS, GEMM_ROWS, dtype=getattr(torch, name)) for name in ("float32", "bfloat16")}
    products = [(name, functools.partial(torch.mm, one, one, out=torch.mm(one, one))) for name, one in ones.items()]
    array = np.ones((GEMM_ROWS, GEMM_ROWS), np.float32)
    products.append(("float32", functools.partial(np.matmul, array, array, out=array @ array)))
    best: dict[str, float] = {}
    for name, product in products:
        until = time.perf_counter() + seconds
        while name not in best or time.perf_counter() < until:
            started = time.perf_counter()
            product()
            rate = 2.0 * GEMM_ROWS**3 / (time.perf_counter() - started)
            best[name] = max(rate, best.get(name, 0.0))
    yield from ((f"gemm {name}", rate) for name, rate in best.items())


def machine(packages: Iterable[str] = PACKAGES) -> dict[str, object]:
    """CPU model, usable CPUs, instruction set, Python and the versions of what is compared."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu_name(),
        "cores": available_threads(),
        "isa": info()["isa"],
        "python": platform.python_version(),
        "versions": versions,
    }


def cpu_name() -> str:
    """As the system calls it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
