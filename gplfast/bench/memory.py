"""How much memory there is, whether what is asked for fits, and what a call takes."""

from __future__ import annotations

import resource
from pathlib import Path

from gplfast.errors import ConfigError

_GROUPS = (  # limit, used, and the line of memory.stat that can be given back: version 2, version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)


def available_bytes() -> int:
    """What this process may still take: of the machine's memory, and of its control group's."""
    free = _line("/proc/meminfo", "MemAvailable:") * 1024
    for limit_file, used_file, stat_file, reclaimable in _GROUPS:
        try:
            limit, used = Path(limit_file).read_text().strip(), int(Path(used_file).read_text())
        except (OSError, ValueError):
            continue
        if limit.isdecimal():
            free = min(free, max(int(limit) - used + _line(stat_file, reclaimable), 0))
    return free


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


def in_words(n_bytes: float) -> str:
    """Such as "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"


def resident_bytes() -> int:
    """Resident set of this process now."""
    return _line("/proc/self/status", "VmRSS:") * 1024


def peak_bytes() -> int:
    """Largest resident set since the start or the last `forget_peak`."""
    peak = _line("/proc/self/status", "VmHWM:") * 1024
    return peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> bool:
    """Start `peak_bytes` again from now; False where the system does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _line(file: str, name: str) -> int:
    """The first number of the line that starts with `name`; 0 where there is none."""
    try:
        text = Path(file).read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.split()[:1] == [name]), 0)
