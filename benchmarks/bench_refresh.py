"""What a refresh of R-GPL costs beside mining and labelling from scratch: teacher calls and seconds.

Trains R-GPL on a collection with the bundled models. Then, for every refresh, the same rows are made from scratch in an
empty work directory: `gplfast mine` with the preset's retrievers, and the teacher's scores of the rows of that segment
and, where `label.keep_share` needs them, of every query with its passage. No embedding and no score is known there.

    python benchmarks/bench_refresh.py --data ../shared/data/scifact --work /tmp/refresh
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import machine

from gplfast.config import RunConfig, load_config
from gplfast.pipeline import Pipeline

RESULT = Path(__file__).parent / "results" / "refresh.json"
BAR = 0.35


def from_scratch(made: Pipeline, number: int, work: Path) -> dict[str, float]:
    """Seconds and teacher calls of mining, and of labelling the rows of one segment, with nothing known."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(made.work.root / "generate", work / "generate")
    fresh = Pipeline(made._source, work, made.config)
    refreshes = made.refreshes()
    refreshes.first()
    lists = refreshes._folders.finished(number)["lists"]
    with fresh.work:
        start = time.perf_counter()
        fresh.mine()
        mined = time.perf_counter()
        steps = fresh._refresh_steps()
        manifest = refreshes._label_manifest(number, lists)
        rows = steps.label(
            work / "rows", manifest, refreshes._pool(refreshes._fold(lists)), refreshes._rows_of(number), None
        )
        end = time.perf_counter()
    same = refreshes._steps.load(refreshes._folders.path(number, "label"), manifest)
    if rows.queries.tolist() != same.queries.tolist() or rows.negatives.tolist() != same.negatives.tolist():
        raise RuntimeError(f"the rows of segment {number} are others from scratch")
    return {"mine": mined - start, "label": end - mined, "calls": steps.pairs_stored()}


def compare(log: dict[str, Any], scratch: dict[str, float]) -> dict[str, Any]:
    """One refresh beside the same from scratch."""
    seconds, whole = sum(log["seconds"].values()), scratch["mine"] + scratch["label"]
    return {
        **log,
        "from_scratch": {name: round(value, 3) for name, value in scratch.items()},
        "share_of_calls": round(log["pairs_scored"] / scratch["calls"], 4),
        "share_of_seconds": round(seconds / whole, 4),
    }


def run(collection: Path, work: Path, config: RunConfig) -> list[dict[str, Any]]:
    """Train, then compare each refresh."""
    made = Pipeline(collection, work / "rgpl", config)
    with made.work:
        made.run()
        log = made.refreshes_log()
        return [
            compare(entry, from_scratch(made, number, work / "scratch")) for number, entry in enumerate(log, start=1)
        ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a collection in BEIR layout")
    parser.add_argument("--work", type=Path, required=True, help="folder for the work directories")
    parser.add_argument("--config", type=Path, help="TOML over the preset nano")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = load_config(args.config, preset="nano", overrides={"students": ["rgpl"]})
    found = run(args.data, args.work, config)
    later = found[1:]
    worst = {name: max(entry[f"share_of_{name}"] for entry in later) for name in ("calls", "seconds")} if later else {}
    result = {
        "machine": machine.describe(),
        "collection": args.data.name,
        "refreshes": found,
        "after_the_first": worst,
        "bar": BAR,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
