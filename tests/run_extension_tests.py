"""The extension's tests with a given build: run_extension_tests.py SITE_FOLDER [address,undefined|thread]."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = [
    "test_search.py",
    "test_search_certificates.py",
    "test_index.py",
    "test_dedup.py",
    "test_gram.py",
    "test_margins.py",
    "test_extension_runtime.py",
]


WITHOUT_EDITABLE_FINDER = """
import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
"""


def library(name: str) -> str:
    command = ["g++", f"-print-file-name=lib{name}.so"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def sanitizer_environment(sanitizers: str) -> dict[str, str]:
    names = ["tsan"] if sanitizers == "thread" else ["asan", "ubsan"]
    return {
        "GPLFAST_SANITIZED": sanitizers,
        "GPLFAST_EXAMPLES": "20",
        "LD_PRELOAD": " ".join(library(name) for name in names),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter leaks by design
        "TSAN_OPTIONS": "report_signal_unsafe=0",
    }


def main(site: str, sanitizers: str = "") -> int:
    folder = Path(__file__).resolve().parent
    environment = os.environ | {"PYTHONPATH": str(Path(site).resolve())}
    if sanitizers:
        environment |= sanitizer_environment(sanitizers)
    # The finder of an editable install comes before PYTHONPATH: take it out, in child processes too.
    (Path(site) / "sitecustomize.py").write_text(WITHOUT_EDITABLE_FINDER)
    check = "import sys, gplfast.ops as o; f = o._core.__file__; sys.exit(0 if f.startswith(sys.argv[1]) else f)"
    program = ["-c", check, str(Path(site).resolve())]
    if (status := subprocess.run([sys.executable, *program], env=environment, cwd="/", check=False).returncode) != 0:
        return status
    tests = [str(folder / name) for name in TESTS]
    command = [sys.executable, "-c", "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))", "-q", *tests]
    return subprocess.run(command, env=environment, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
