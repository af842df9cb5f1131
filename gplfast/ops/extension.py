"""The compiled part, loaded once, and the checks of plain arguments that all operations share."""

from __future__ import annotations

import contextlib
import operator
from typing import TYPE_CHECKING, Literal

from gplfast.errors import ConfigError, MissingExtraError

__all__ = [
    "LARGEST",
    "_core",
    "available_threads",
    "forced_isa",
    "info",
    "integer",
    "measure_peak",
    "positive",
    "threads_of",
]

LARGEST = 2**63 - 1  # that the extension takes
_MOST_THREADS = 1 << 16  # more than a machine has; products with it stay in range

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    from gplfast import _core
except ImportError as error:
    _message = (
        f"gplfast._core, the compiled part, cannot be loaded ({error}); build it with `pip install .` in the source "
        "tree, and do not run Python from there unless gplfast is installed in editable mode"
    )
    raise MissingExtraError(_message) from error


def available_threads() -> int:
    """CPUs this process may use: its affinity, and the quota of its control group."""
    return _core.available_threads()


def available_isas() -> list[str]:
    """Instruction sets that this machine and build have, the best last."""
    return _core.available_isas()


@contextlib.contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Use one instruction set inside, in the whole process; for measurements. An empty name: the usual one.

    Raises:
        UnavailableError: This machine or build does not have it; the message names those that are there.
    """
    _core.force_isa(name)
    try:
        yield
    finally:
        _core.force_isa("")


def measure_peak(kind: Literal["float32", "int8", "read"], threads: int, seconds: float, *, n_bytes: int) -> float:
    """Measure what this machine does at most: the denominator of a share of the peak.

    Args:
        kind: "float32" or "int8": operations a second of multiply-adds on registers alone, two each, in the instruction
            set in use. "read": bytes a second of adding up `n_bytes` of memory, each thread its part.
        threads: How many work at once.
        seconds: How long each works.
        n_bytes: Of "read"; more than the caches hold.

    Raises:
        UnavailableError: The instruction set has no int8.
    """
    return _core.measure_peak(kind, threads, seconds, n_bytes=n_bytes)


def info() -> dict[str, object]:
    """Say what the compiled part uses on this machine.

    Returns:
        isa: The instruction set in use. isas: All that are available, the best last. threads: CPUs this process may
        use. cuda: None when the optional module `_cuda` was not built, else what it says about runtime, driver
        (version numbers, 1000 major + 10 minor), devices (names) and error (why there are none).

    Raises:
        UnavailableError: GPLFAST_ISA names an instruction set that is not available.
    """
    return {
        "isa": _core.current_isa(),
        "isas": _core.available_isas(),
        "threads": _core.available_threads(),
        "cuda": _cuda_info(),
    }


def _cuda_info() -> dict[str, object] | None:
    try:
        from gplfast import _cuda  # optional, and slow to load
    except ImportError:
        return None
    return _cuda.info()


def integer(op: str, name: str, value: int) -> int:
    """`value` as an int; raises ConfigError, naming the operation and the argument, where it is none."""
    try:
        return operator.index(value)
    except TypeError:
        message = f"{op}: {name} is {value!r} but must be an integer"
        raise ConfigError(message) from None


def positive(op: str, name: str, value: int, most: int | None = None) -> int:
    """`value` as an int of at least 1, and at most `most`; raises ConfigError otherwise."""
    number = integer(op, name, value)
    if number < 1:
        message = f"{op}: {name} is {number} but must be at least 1"
        raise ConfigError(message)
    if most is not None and number > most:
        message = f"{op}: {name} is {number} but must be at most {most}"
        raise ConfigError(message)
    return number


def threads_of(op: str, threads: int | None) -> int:
    """The number of threads to use: None is every CPU this process may use."""
    return _core.available_threads() if threads is None else min(positive(op, "threads", threads), _MOST_THREADS)
