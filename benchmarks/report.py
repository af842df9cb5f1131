"""Write README's tables from results/*.json, between the markers `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

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


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"adapt": adapt}


def rendered(readme: str) -> str:
    """README with each table replaced by what its result says now."""
    for name, render in TABLES.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            body = render(json.loads(path.read_text(encoding="utf-8")))
            block = f"<!-- {name}:begin -->\n{body}\n<!-- {name}:end -->"
            readme = re.sub(
                f"<!-- {name}:begin -->.*?<!-- {name}:end -->", lambda _, b=block: b, readme, flags=re.DOTALL
            )
    return readme


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where README is not up to date")
    args = parser.parse_args()
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = rendered(before)
    if args.check and before != after:
        sys.exit("README.md is not what benchmarks/results say; run: python benchmarks/report.py")
    path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
