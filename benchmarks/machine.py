"""Where a result was made: what each JSON under results/ says of its machine, versions and commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = (
    "gplfast",
    "numpy",
    "onnxruntime",
    "torch",
    "sentence-transformers",
    "transformers",
    "bm25s",
    "ir-measures",
    "faiss-cpu",
)


def describe() -> dict[str, object]:
    """CPU model, usable cores, Python, package versions, commit and whether the tree differs from it."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    root = Path(__file__).parent.parent

    def git(*args: str) -> str:
        """What git says."""
        command = ["git", *args]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }
