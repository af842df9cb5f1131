"""Systems that do the same work take turns: first compared, then timed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from gplfast.bench import memory
from gplfast.errors import ConfigError, GplfastError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Report = Callable[[str, int, int], None]
    # (our result, another's) to what they have in common, such as {"places_that_differ": 0}; raises PeerError.
    Check = Callable[["System", Any, Any], dict[str, float]]

OURS = "gplfast"
# A sample is at least this long, in as many calls as it takes: a call of a millisecond is mostly noise.
SAMPLE_SECONDS = 0.05
# Threads of other libraries spin for some milliseconds after their work; let them sleep before the next is timed.
PAUSE_SECONDS = 0.02
_DISTRIBUTIONS = {"faiss": "faiss-cpu", "sentence_transformers": "sentence-transformers"}


class PeerError(GplfastError, RuntimeError):
    """Two systems disagree by more than rounding."""


@dataclasses.dataclass(frozen=True)
class System:
    """Something that does the work.

    Attributes:
        name: As the table shows it.
        settings: Setting to a call that returns the result. The fastest setting of the warm-up is timed.
        exact: False where the result is approximate by design.
    """

    name: str
    settings: Mapping[str, Callable[[], Any]]
    exact: bool = True


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another library.

    Attributes:
        name: As `--peers` takes it.
        modules: What it imports.
        make: The system for a problem.
        copies: How many times the documents' bytes it keeps beside them.
    """

    name: str
    modules: tuple[str, ...]
    make: Callable[[Any], System]
    copies: float = 0.0


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one system took.

    Attributes:
        seconds: Of one call, for each repeat.
        setting: The fastest of its settings.
        agreement: What it has in common with our result.
        extra_bytes: By how much the resident set grew during one call, its result included; None where the system
            does not say.
    """

    seconds: list[float]
    setting: str
    agreement: dict[str, float]
    extra_bytes: int | None

    @property
    def median(self) -> float:
        """Of the repeats."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def choose(peers: Sequence[Peer], wanted: Sequence[str] | None) -> tuple[list[Peer], dict[str, list[str]]]:
    """The peers to compare with, and for those that are not there the packages they need.

    Args:
        peers: All there are.
        wanted: Names; None for every one that is importable; ["none"] for none.

    Raises:
        ConfigError: A name that is no peer.
        MissingExtraError: One that was named cannot be imported.
    """
    names = [peer.name for peer in peers]
    if wanted == ["none"]:
        return [], {}
    for name in wanted or ():
        if name not in names:
            raise ConfigError(f"bench: --peers names {name} but must be one of {', '.join([*names, 'none'])}")
    found, missing = [], {}
    for peer in peers:
        if wanted is not None and peer.name not in wanted:
            continue
        absent = [_DISTRIBUTIONS.get(name, name) for name in peer.modules if not _imports(name)]
        if not absent:
            found.append(peer)
            continue
        if wanted is not None:
            raise MissingExtraError(
                f"bench: --peers names {peer.name} but {', '.join(absent)} cannot be imported; "
                "install gplfast[bench] or leave it out"
            )
        missing[peer.name] = absent
    return found, missing


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, OSError):  # OSError: a shared library that it needs
        return False
    return True


@contextlib.contextmanager
def same_threads(threads: int) -> Iterator[None]:
    """Hold every library that is loaded to `threads` threads."""
    with contextlib.ExitStack() as stack:
        if _imports("threadpoolctl"):  # the BLAS and OpenMP of NumPy, faiss, torch
            from threadpoolctl import threadpool_limits

            stack.enter_context(threadpool_limits(threads))
        if torch := sys.modules.get("torch"):
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        if faiss := sys.modules.get("faiss"):
            stack.callback(faiss.omp_set_num_threads, faiss.omp_get_max_threads())
            faiss.omp_set_num_threads(threads)
        if numba := sys.modules.get("numba"):
            stack.callback(numba.set_num_threads, numba.get_num_threads())
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        yield


def compare_and_time(
    systems: Sequence[System],
    check: Check,
    repeats: int,
    *,
    reference: Callable[[], Any] | None = None,
    between: Callable[[], None] = lambda: None,
    report: Report = lambda *_: None,
    what: str = "bench",
) -> dict[str, Timing]:
    """Compare every system with the first, then let them take turns.

    Args:
        systems: The first is ours; its result is what the others are compared with.
        check: Says what two results have in common, or raises.
        repeats: Samples of each.
        reference: Gives the result to compare with, where that is not the first system's.
        between: Called once a repeat.
        report: Called with (what, done, all).
        what: Of the progress.

    Raises:
        PeerError: A result is wrong.
    """
    steps, done = len(systems) * (repeats + 1), 0
    report(what, done, steps)
    expected = (reference or next(iter(systems[0].settings.values())))()
    warm: dict[str, tuple[str, float, dict[str, float], int | None]] = {}
    for system in systems:
        warm[system.name] = _warm_up(system, expected, check)
        report(what, done := done + 1, steps)
    seconds: dict[str, list[float]] = {system.name: [] for system in systems}
    for repeat in range(repeats):
        for system in systems if repeat % 2 == 0 else reversed(systems):
            setting, one, _, _ = warm[system.name]
            seconds[system.name].append(_sample(system.settings[setting], one))
            report(what, done := done + 1, steps)
        between()
    return {
        name: Timing(seconds[name], setting, agreement, extra) for name, (setting, _, agreement, extra) in warm.items()
    }


def _warm_up(system: System, expected: Any, check: Check) -> tuple[str, float, dict[str, float], int | None]:
    """The fastest setting, its seconds, what its result has in common with ours, and the memory it takes."""
    best: tuple[str, float, dict[str, float], int | None] | None = None
    for setting, call in system.settings.items():
        resets, before = memory.forget_peak(), memory.resident_bytes()
        result = call()  # compiles, starts threads, touches memory
        extra = max(memory.peak_bytes() - before, 0) if resets else None
        agreement = check(system, expected, result)
        del result
        started = time.perf_counter()
        call()
        took = time.perf_counter() - started
        if best is None or took < best[1]:
            best = (setting, took, agreement, extra)
    if best is None:
        raise AssertionError(f"{system.name} has no settings")
    return best


def _sample(call: Callable[[], Any], one: float) -> float:
    n_calls = max(1, math.ceil(SAMPLE_SECONDS / max(one, 1e-6)))
    time.sleep(PAUSE_SECONDS)
    started = time.perf_counter()
    for _ in range(n_calls):
        call()
    return (time.perf_counter() - started) / n_calls
