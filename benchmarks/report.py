"""Write the tables of README and of the model card from results/*.json, between `<!-- NAME:begin -->`
and `<!-- NAME:end -->`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
SYSTEMS = {"bm25": "BM25", "zero-shot": "zero-shot", "genq": "GenQ", "gpl": "**GPL**", "bm25+teacher": "BM25 + teacher"}


def made_on(place: dict[str, Any]) -> str:
    """One sentence about the machine and the commit of a result."""
    return f"Made on {place['cores']} cores of {place['cpu']} at commit {place['commit'][:10]}."


def adapt(result: dict[str, Any]) -> str:
    """One row a collection and system: nDCG@10, Recall@100, p against zero-shot."""
    lines = ["| collection | system | nDCG@10 | Recall@100 | p against zero-shot |", "|---|---|---|---|---|"]
    for report in result["collections"]:
        for system, label in SYSTEMS.items():
            means = report["systems"][system]
            pair = [report["p_values"].get(f"{a} vs {b}") for a, b in ((system, "zero-shot"), ("zero-shot", system))]
            p = next((value for value in pair if value is not None), None)
            shown = "" if p is None else ("<0.0001" if p < 1e-4 else f"{p:.4f}")
            name = report["collection"] if system == "bm25" else ""
            lines.append(f"| {name} | {label} | {means['nDCG@10']:.3f} | {means['Recall@100']:.3f} | {shown} |")
    total = result["summary"]
    lines += [
        "",
        f"Mean over {len(result['collections'])} collections: zero-shot {total['mean']['zero-shot']:.3f}, "
        f"GenQ {total['mean']['genq']:.3f}, GPL {total['mean']['gpl']:.3f}, BM25 + teacher "
        f"{total['mean']['bm25+teacher']:.3f}: GPL gains {100 * total['gpl_gain']:.1f} points and closes "
        f"{100 * total['gap_closed']:.0f} % of the gap. {made_on(result['machine'])}",
    ]
    return "\n".join(lines)


def demo(result: dict[str, Any]) -> str:
    """One sentence: every system's nDCG@10 on the demo's collection."""
    made = result["systems"]
    shown = ", ".join(f"{label} {made[name]['nDCG@10']:.3f}" for name, label in SYSTEMS.items() if name in made)
    minutes = sum(result["seconds"].values()) / 60
    return f"`make demo`, {minutes:.1f} minutes on two cores after installation, nDCG@10: {shown}."


def nano(result: dict[str, Any]) -> str:
    """The bars of the bundled models: the generator's queries under BM25, reranking, zero-shot."""
    made = result["generator"]
    lines = ["| collection | queries | BM25 | BM25 + teacher | p | student, zero-shot |", "|---|---|---|---|---|---|"]
    for name, row in result["collections"].items():
        means = row["nDCG@10"]
        pair = [row["p_values"].get(key) for key in ("bm25+teacher vs bm25", "bm25 vs bm25+teacher")]
        p = next(value for value in pair if value is not None)
        lines.append(
            f"| {name} | {row['queries']} | {means['bm25']:.3f} | {means['bm25+teacher']:.3f} | "
            f"{'<0.0001' if p < 1e-4 else f'{p:.4f}'} | {means['zero-shot']:.3f} |"
        )
    found = ", ".join(f"{100 * share:.1f} % among {name}" for name, share in made["found_in_top_10"].items())
    return "\n".join(
        [
            f"Generator: {made['queries']} queries for SQuAD test passages; BM25 finds a query's passage in its top 10 "
            f"for {found}; {100 * made['empty_or_duplicate']:.1f} % empty or duplicate.",
            "",
            "nDCG@10 (SQuAD's test queries are a sample; the teacher reranks BM25's top 50):",
            "",
            *lines,
            "",
            f"{result['megabytes']:.1f} MB in all. {made_on(result['machine'])}",
        ]
    )


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "demo": ("README.md", demo),
    "adapt": ("README.md", adapt),
    "nano": ("gplfast/presets/nano/README.md", nano),
}


UNMEASURED = "not measured yet"


def rendered(text: str, name: str) -> str:
    """The text with the table `name` replaced by what its result says now; without a result, by words that say so."""
    if len(re.findall(f"<!-- {name}:begin -->.*?<!-- {name}:end -->", text, flags=re.DOTALL)) != 1:
        raise SystemExit(f"the table {name} needs one pair of <!-- {name}:begin --> and <!-- {name}:end -->")
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return _replaced(text, name, UNMEASURED)
    body = TABLES[name][1](json.loads(path.read_text(encoding="utf-8")))
    return _replaced(text, name, body)


def _replaced(text: str, name: str, body: str) -> str:
    block = f"<!-- {name}:begin -->\n{body}\n<!-- {name}:end -->"
    return re.sub(f"<!-- {name}:begin -->.*?<!-- {name}:end -->", lambda _: block, text, flags=re.DOTALL)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a table is not up to date")
    args = parser.parse_args()
    for name, (file, _) in TABLES.items():
        path = ROOT / file
        before = path.read_text(encoding="utf-8")
        after = rendered(before, name)
        if args.check and before != after:
            sys.exit(f"{file} is not what benchmarks/results say; run: python benchmarks/report.py")
        if before != after:
            path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
