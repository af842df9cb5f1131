"""Where a result was made: what each JSON under results/ says of its machine, versions and commit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gplfast.bench import hardware

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
    "ctranslate2",
    "onnxruntime-ep-openvino",
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


def measured(operation: str, runs: Iterable[list[str]]) -> Iterator[dict[str, Any]]:
    """`gplfast bench` with each list of flags; prints the tables and gives after each run what results/ keeps: as the
    command does, with this machine, and the rows of all runs so far."""
    from gplfast import cli
    from gplfast.bench import report
    from gplfast.bench import run as bench_run
    from gplfast.progress import Bars

    rows: list[dict[str, Any]] = []
    for flags in runs:
        arguments = cli.parser().parse_args(["bench", operation, *flags])
        report.check_files(arguments.json, arguments.plot)
        with Bars() as bars:
            result = bench_run.run(arguments, bars)
        sys.stdout.write(report.table(result) + "\n\n")
        sys.stdout.flush()
        # Peaks are each run's own: the shares beside them were made from those.
        rows += [{**row, "peaks": result["peaks"]} for row in result["rows"]]
        made = {**result, "machine": {**result["machine"], **describe()}, "rows": list(rows)}
        del made["peaks"]
        yield made


def bench(operation: str, *runs: list[str]) -> None:
    """`measured` with the flags of the command line after those of each run; writes results/OPERATION.json (--json)."""
    from gplfast import cli

    target = Path(__file__).parent / "results" / f"{operation}.json"
    given = sys.argv[1:]
    if runs:
        target = cli.parser().parse_args(["bench", operation, *runs[0], *given]).json or target
    for made in measured(operation, [[*flags, *given] for flags in runs]):
        # After each run: what was measured is kept when a later run fails.
        target.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
