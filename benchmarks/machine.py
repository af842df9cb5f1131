"""Where a result was made: what each JSON under results/ says of its machine, versions and commit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gplfast.bench import hardware

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
    "usearch",
    "numba",
)


def describe() -> dict[str, object]:
    """CPU model, usable cores, Python, package versions, commit and whether the tree differs from it."""
    root = Path(__file__).parent.parent

    def git(*args: str) -> str:
        """What git says."""
        command = ["git", *args]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    return {
        **hardware.machine(PACKAGES),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }


def bench(operation: str, *runs: list[str]) -> None:
    """`gplfast bench` with each list of flags, then the flags of the command line; prints the tables and writes
    results/OPERATION.json (or --json): as the command does, with this machine, and the rows of all runs."""
    from gplfast import cli
    from gplfast.bench import report
    from gplfast.bench import run as bench_run
    from gplfast.progress import Bars

    target = Path(__file__).parent / "results" / f"{operation}.json"
    rows: list[dict[str, object]] = []
    for flags in runs:
        arguments = cli.parser().parse_args(["bench", operation, *flags, *sys.argv[1:]])
        report.check_files(arguments.json, arguments.plot)
        with Bars() as bars:
            result = bench_run.run(arguments, bars)
        sys.stdout.write(report.table(result) + "\n\n")
        sys.stdout.flush()
        # Peaks are each run's own: the shares beside them were made from those.
        rows += [{**row, "peaks": result["peaks"]} for row in result["rows"]]
        made = {**result, "machine": {**result["machine"], **describe()}, "rows": rows}
        del made["peaks"]
        # After each run: what was measured is kept when a later run fails.
        (arguments.json or target).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
