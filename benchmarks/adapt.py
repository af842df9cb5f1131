"""What adaptation brings, on real collections: BM25, zero-shot, GenQ, GPL, R-GPL and BM25 reranked by the teacher.

Every collection is adapted from its documents alone (its queries and judgements are read only to evaluate). Goes on
where it was interrupted; what is already made with the same settings and models is not made again.

    python benchmarks/adapt.py --data ../shared/data --work /tmp/adapt
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import machine

from gplfast.config import load_config
from gplfast.pipeline import Pipeline
from gplfast.report import table

COLLECTIONS = ("scifact", "cranfield", "medquad_liveqa")
STUDENTS = ("gpl", "rgpl", "genq")
SYSTEMS = ("bm25", "zero-shot", "genq", "gpl", "rgpl", "bm25+teacher")  # those of students only where trained
RESULT = Path(__file__).parent / "results" / "adapt.json"
METRIC = "nDCG@10"


def run(collection: Path, work: Path, config_file: Path | None, students: list[str]) -> dict[str, Any]:
    """Adapt to one collection and evaluate every system; the pipeline's report."""
    overrides = {"students": students, "evaluate": {"systems": SYSTEMS}}
    config = load_config(config_file, preset="nano", overrides=overrides)
    last = 0.0

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 20 or done == total:
            last = time.monotonic()
            logging.info("%s: %s %d/%d", collection.name, what, done, total)

    pipeline = Pipeline(collection, work / collection.name, config, report=show)
    with pipeline.work:
        report = pipeline.run(evaluate=True).report
    if report is None:
        raise RuntimeError("the pipeline gave no report")
    if "rgpl" in students:
        report["refreshes"] = pipeline.refreshes_log()
    sys.stdout.write(table(report) + "\n\n")
    return report


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the collections, the students' gains over zero-shot, and R-GPL's over GPL.

    Where GPL was trained, with the share of the gap to BM25 + teacher that it closes.
    """
    systems = [name for name in SYSTEMS if all(name in report["systems"] for report in reports)]
    means = {
        metric: {name: sum(r["systems"][name][metric] for r in reports) / len(reports) for name in systems}
        for metric in (METRIC, "Recall@100")
    }
    mean, recall = means.values()
    found: dict[str, Any] = {"mean": mean, "mean_recall": recall}
    found |= {f"{name}_gain": mean[name] - mean["zero-shot"] for name in STUDENTS if name in mean}
    if "gpl" in mean:
        found["gap_closed"] = found["gpl_gain"] / (mean["bm25+teacher"] - mean["zero-shot"])
    if {"gpl", "rgpl"} <= set(mean):
        found["rgpl_over_gpl"] = mean["rgpl"] - mean["gpl"]
        found["rgpl_over_gpl_recall"] = recall["rgpl"] - recall["gpl"]
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of collections in BEIR layout")
    parser.add_argument("--work", type=Path, required=True, help="folder for the work directories")
    parser.add_argument("--config", type=Path, help="TOML over the preset nano")
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("collections", nargs="*", default=list(COLLECTIONS))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    reports = []
    for name in args.collections:
        reports.append(run(args.data / name, args.work, args.config, args.students))
        result = {"machine": machine.describe(), "collections": reports, "summary": summary(reports)}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result["summary"], indent=1) + "\n")


if __name__ == "__main__":
    main()
