"""Whether what is asked for fits in memory, and what a call takes."""

from __future__ import annotations

import resource
from pathlib import Path

from gplfast.errors import ConfigError
from gplfast.store.memory import available_bytes, in_words, number_of


def refuse_too_large(what: str, needed_bytes: int, remedy: str) -> None:
    """Say so before memory runs out.

    Raises:
        ConfigError: More is needed than is there.
    """
    free = available_bytes()
    if needed_bytes > free:
        raise ConfigError(
            f"bench: {what} need {in_words(needed_bytes)} of memory but {in_words(free)} are available; {remedy}"
        )


def resident_bytes() -> int:
    """Resident set of this process now."""
    return number_of("/proc/self/status", "VmRSS:") * 1024


def peak_bytes() -> int:
    """Largest resident set since the start or the last `forget_peak`."""
    peak = number_of("/proc/self/status", "VmHWM:") * 1024
    return peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> bool:
    """Start `peak_bytes` again from now; False where the system does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
