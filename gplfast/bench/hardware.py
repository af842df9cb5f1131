"""The machine, and what it can do at most.

Peaks are measured, not read from a data sheet, with as many threads as the benchmark uses:

- float32, int8: multiply-adds on registers alone, two operations each, in the best instruction set that the extension
  has here (int8 where it has an integer scan). No kernel can be faster, whatever it does with memory.
- read: bytes a second of adding up 1 GiB, each thread its own part. What reads the documents once cannot be faster.

Each is the best of samples that are taken between the timed runs, so that a machine that is busy or throttled is
so for both.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gplfast.bench import memory
from gplfast.errors import UnavailableError
from gplfast.ops import available_threads, info, measure_peak

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGES = ("gplfast", "numpy", "faiss-cpu", "torch", "usearch", "numba", "sentence-transformers")
READ_BYTES = 1 << 30  # above any cache of one machine


@dataclasses.dataclass
class Peaks:
    """The best rates seen, in operations or bytes a second.

    Attributes:
        threads: How many work at once.
        seconds: How long a sample takes; 0: nothing is measured.
        best: float32, int8 (where there is one) and read.
    """

    threads: int
    seconds: float
    best: dict[str, float] = dataclasses.field(default_factory=dict)

    def sample(self) -> None:
        """Measure each once more."""
        if self.seconds <= 0:
            return
        n_bytes = min(READ_BYTES, memory.available_bytes() // 8)
        kinds: tuple[Literal["float32", "int8", "read"], ...] = ("float32", "int8", "read")
        for kind in kinds:
            try:
                rate = measure_peak(kind, self.threads, self.seconds, n_bytes=n_bytes)
            except UnavailableError:  # this instruction set has no int8
                continue
            self.best[kind] = max(rate, self.best.get(kind, 0.0))

    def share(self, kind: str, rate: float) -> float | None:
        """`rate` over the peak; None where that was not measured."""
        return rate / self.best[kind] if kind in self.best else None


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
