"""Write the tables of README and of the model card from results/*.json, between `<!-- NAME:begin -->`
and `<!-- NAME:end -->`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report_mining import menu, p_value, refresh, refreshes, row_of, user_filter

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
SYSTEMS = {
    "bm25": "BM25",
    "zero-shot": "zero-shot",
    "genq": "GenQ",
    "gpl": "**GPL**",
    "rgpl": "**R-GPL**",
    "bm25+teacher": "BM25 + teacher",
}


def made_on(place: dict[str, Any]) -> str:
    """One sentence about the machine and the commit of a result."""
    return f"Made on {place['cores']} cores of {place['cpu']} at commit {place['commit'][:10]}."


def adapt(result: dict[str, Any]) -> str:
    """One row a collection and system: nDCG@10, Recall@100, p against zero-shot and of R-GPL also against GPL."""
    total = result["summary"]
    against = ["zero-shot", *(["gpl"] if "rgpl_over_gpl" in total else [])]
    head = [
        "collection",
        "system",
        "nDCG@10",
        "Recall@100",
        *(f"p against {SYSTEMS[name].strip('*')}" for name in against),
    ]
    lines = [row_of(head), "|---" * len(head) + "|"]
    for report in result["collections"]:
        for system, label in SYSTEMS.items():
            if system not in report["systems"]:
                continue
            means = report["systems"][system]
            shown = [_p_between(report, system, other) for other in against]
            name = report["collection"] if system == "bm25" else ""
            cells = [name, label, f"{means['nDCG@10']:.3f}", f"{means['Recall@100']:.3f}", *shown]
            lines.append(row_of(cells))
    students = {"genq": "GenQ", "gpl": "GPL", "rgpl": "R-GPL"}
    means = ", ".join(f"{label} {total['mean'][name]:.3f}" for name, label in students.items() if name in total["mean"])
    gains = []
    if "gap_closed" in total:
        gains.append(
            f"GPL gains {100 * total['gpl_gain']:.1f} points and closes {100 * total['gap_closed']:.0f} % of the gap"
        )
    if "rgpl_over_gpl" in total:
        gains.append(
            f"R-GPL against GPL: {100 * total['rgpl_over_gpl']:+.1f} points of nDCG@10, "
            f"{100 * total['rgpl_over_gpl_recall']:+.1f} of Recall@100"
        )
    lines += [
        "",
        f"Mean over {len(result['collections'])} collections: zero-shot {total['mean']['zero-shot']:.3f}, {means}, "
        f"BM25 + teacher {total['mean']['bm25+teacher']:.3f}{': ' if gains else ''}{'; '.join(gains)}. "
        f"{made_on(result['machine'])}",
    ]
    return "\n".join(lines)


def _p_between(report: dict[str, Any], first: str, second: str) -> str:
    pair = [report["p_values"].get(f"{a} vs {b}") for a, b in ((first, second), (second, first))]
    p = next((value for value in pair if value is not None), None)
    return "" if p is None else p_value(p)


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


def search(result: dict[str, Any]) -> str:
    """One row a shape: how many times gplfast's time each takes, and what share of the peak gplfast reaches."""
    peers = {"gplfast index": "an opened `Index`", "faiss": "faiss", "torch": "torch", "torch-bf16": "torch bf16"}
    lines = [
        "| queries x documents x dim | of the int8 peak | " + " | ".join(peers.values()) + " |",
        "|---|---|" + "---|" * len(peers),
    ]
    for row in result["rows"]:
        shape, systems = row["shape"], row["systems"]
        times = [_times(systems.get(name)) for name in peers]
        share = systems["gplfast"]["share_of_peak"].get("int8")
        lines.append(
            f"| {shape['n_queries']:,} x {shape['n_docs']:,} x {shape['dim']} "
            f"| {'' if share is None else f'{100 * share:.0f} %'} | {' | '.join(times)} |"
        )
    lines += ["", f"k = {result['rows'][0]['shape']['k']}, {result['threads']} threads. {made_on(result['machine'])}"]
    return "\n".join(lines)


def _times(system: dict[str, Any] | None) -> str:
    if system is None:
        return ""
    recall = f" (recall {system['recall']:.3f})" if "recall" in system else ""
    return f"{system['time_over_gplfast']:.2f}{recall}"


def disk(result: dict[str, Any]) -> str:
    """One sentence."""
    shape = result["shape"]
    return (
        f"{shape['n_queries']:,} queries against {shape['n_docs']:,} x {shape['dim']} float32 documents in files, k "
        f"{shape['k']}: {result['times_in_memory_rate']:.2f} times the time that the rate in memory gives, with "
        f"{result['peak_rss_gb']:.1f} GB of resident memory. {made_on(result['machine'])}"
    )


def dedup(result: dict[str, Any]) -> str:
    """One sentence for each case."""
    lines = []
    for row in result["rows"]:
        shape, systems = row["shape"], row["systems"]
        others = ", ".join(
            f"{name} {systems['gplfast']['times_faiss'] / system['times_faiss']:.1f}"
            for name, system in systems.items()
            if name != "gplfast"
        )
        lines.append(
            f"- {row['case']}, {shape['n_docs']:,} x {shape['dim']}, cosine {shape['threshold']}: times gplfast's "
            f"time: {others}; memory beside the documents: {systems['gplfast']['added_mb']:.0f} MB, faiss "
            f"{systems['faiss range_search']['added_mb']:.0f} MB."
        )
    return "\n".join([*lines, "", made_on(result["machine"])])


def margins(result: dict[str, Any]) -> str:
    """One sentence for each setting."""
    lines = []
    for row in result["rows"]:
        limits = sum(name in row["shape"] for name in ("min_score", "max_score", "absolute_margin", "relative_margin"))
        times = ", ".join(f"{n} {s['time_over_gplfast']:.1f}" for n, s in row["systems"].items() if n != "gplfast")
        lines.append(f"- {row['shape']['n_negatives']:,} negatives, {limits} limits: times gplfast's time: {times}.")
    return "\n".join([*lines, "", made_on(result["machine"])])


def serving(result: dict[str, Any]) -> str:
    """One row a checkpoint and a precision of ours: our rate, and how many times its time each peer takes."""
    lines = [
        "Models, tokenising included; times are of the time of gplfast in the same row:",
        "",
        "| model | gplfast | rate | quality against fp32 | others |",
        "|---|---|---|---|---|",
    ]
    for operation in ("generate", "score", "embed"):
        for row in result.get(operation, {"rows": []})["rows"]:
            systems = row["systems"]
            others = {name: made for name, made in systems.items() if not name.startswith("gplfast")}
            for name, made in systems.items():
                if name in others:
                    continue
                times = ", ".join(
                    f"{other} {found['median_seconds'] / made['median_seconds']:.1f}{_quality_of(found)}"
                    for other, found in others.items()
                )
                folder = Path(row["shape"]["model"])
                model = (folder.parent if folder.name == "model" else folder).name
                lines.append(f"| {model} | {name} | {_rate(made)} | {_quality(made)} | {times} |")
    made_by = next(result[operation] for operation in ("generate", "score", "embed") if operation in result)
    return "\n".join([*lines, "", f"{made_by['threads']} threads. {made_on(made_by['machine'])}"])


_PEAK = "gemm bfloat16"  # the most that networks reach here, in whatever precision a row is


def _rate(made: dict[str, Any]) -> str:
    if "passages_per_second" in made:
        return (
            f"{made['passages_per_second']:.1f} passages/s, {made['tokens_per_second']:,.0f} tokens/s "
            f"({made['query_tokens']:.1f} a query)"
        )
    unit = "pairs" if "pairs_per_second" in made else "texts"
    shares = [f"{100 * share:.0f} % of {kind}" for kind, share in made["share_of_peak"].items() if kind == _PEAK]
    return (
        f"{made[f'{unit}_per_second']:.0f} {unit}/s ({', '.join(shares)})"
        if shares
        else (f"{made[f'{unit}_per_second']:.0f} {unit}/s")
    )


def _quality(made: dict[str, Any]) -> str:
    if "greedy_compared" in made:
        return f"{made['greedy_compared'] - made['greedy_that_differ']} of {made['greedy_compared']} greedy queries"
    if "spearman" in made:
        return f"Spearman {made['spearman']:.5f}"
    ndcg = f", nDCG@10 {made['nDCG@10']:.4f}" if "nDCG@10" in made else ""
    return f"cosine {made['cosine_min']:.4f}, top 10 {made['top_10_overlap']:.3f}{ndcg}"


def _quality_of(made: dict[str, Any]) -> str:
    return f" (nDCG@10 {made['nDCG@10']:.4f})" if "nDCG@10" in made else ""


def memory(result: dict[str, Any]) -> str:
    """One sentence for each operation."""
    lines = []
    for operation, rows in result["operations"].items():
        sizes = ", ".join(
            f"{row['n']:,}: {row['peak_rss_bytes'] / 2**20:.0f} MiB "
            f"({row['peak_anonymous_bytes'] / 2**20:.0f} MiB without mapped files)"
            for row in rows
        )
        lines.append(f"- {operation}, bundled models, short passages, peak resident memory: {sizes}.")
    return "\n".join([*lines, "", made_on(result["machine"])])


def gpl(result: dict[str, Any]) -> str:
    """The parts of both sides, and the picture."""
    counts, seconds = result["counts"], result["seconds"]
    lines = [f"| seconds | {' | '.join(seconds['gplfast'])} | all |", "|---|" + "---|" * (len(seconds["gplfast"]) + 1)]
    for name, parts in seconds.items():
        lines.append(f"| {name} | {' | '.join(f'{s:.1f}' for s in parts.values())} | {sum(parts.values()):.1f} |")
    chosen = "; ".join(f"{part} {setting}" for part, setting in result["settings"].items())
    return "\n".join(
        [
            f"GPL outside training, {counts['passages']:,} passages of SciFact, bundled models, beside a reference "
            f"written with transformers, sentence-transformers and torch ({chosen}): {result['times_gplfast']:.1f} "
            "times gplfast's time.",
            "",
            *lines,
            "",
            "![seconds of each part](benchmarks/results/gpl.png)",
            "",
            f"{counts['queries']:,} queries, {counts['pairs']:,} pairs, {result['threads']} threads. "
            f"{made_on(result['machine'])}",
        ]
    )


# What appears only when it was measured.
OPTIONAL = ("serving", "memory", "gpl")
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "demo": ("README.md", demo),
    "adapt": ("README.md", adapt),
    "search": ("README.md", search),
    "disk": ("README.md", disk),
    "dedup": ("README.md", dedup),
    "margins": ("README.md", margins),
    "serving": ("README.md", serving),
    "memory": ("README.md", memory),
    "gpl": ("README.md", gpl),
    "nano": ("gplfast/presets/nano/README.md", nano),
    "menu": ("docs/menu.md", menu),
    "refresh": ("docs/rgpl.md", refresh),
    "refreshes": ("docs/rgpl.md", refreshes),
    "user_filter": ("docs/filters.md", user_filter),
}


# Of a table that has no result of its own: whose it shows a part of.
PART_OF = {"refreshes": "adapt"}
UNMEASURED = "not measured yet"


def rendered(text: str, name: str) -> str:
    """The text with the table `name` replaced by what its result says now; without a result, by words that say so."""
    if len(re.findall(f"<!-- {name}:begin -->.*?<!-- {name}:end -->", text, flags=re.DOTALL)) != 1:
        raise SystemExit(f"the table {name} needs one pair of <!-- {name}:begin --> and <!-- {name}:end -->")
    path = RESULTS / f"{PART_OF.get(name, name)}.json"
    if not path.is_file():
        return _replaced(text, name, "" if name in OPTIONAL else UNMEASURED)
    body = TABLES[name][1](json.loads(path.read_text(encoding="utf-8")))
    return _replaced(text, name, body)


def _replaced(text: str, name: str, body: str) -> str:
    block = "\n".join(part for part in (f"<!-- {name}:begin -->", body, f"<!-- {name}:end -->") if part)
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
