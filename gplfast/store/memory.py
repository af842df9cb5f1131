"""How much memory there is."""

from __future__ import annotations

from pathlib import Path

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
    free = number_of("/proc/meminfo", "MemAvailable:") * 1024
    for limit_file, used_file, stat_file, reclaimable in _GROUPS:
        try:
            limit, used = Path(limit_file).read_text().strip(), int(Path(used_file).read_text())
        except (OSError, ValueError):
            continue
        if limit.isdecimal():
            free = min(free, max(int(limit) - used + number_of(stat_file, reclaimable), 0))
    return free


def in_words(n_bytes: float) -> str:
    """Such as "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"


def number_of(file: str, name: str) -> int:
    """The first number of the line that starts with `name`; 0 where there is none."""
    try:
        text = Path(file).read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.split()[:1] == [name]), 0)
