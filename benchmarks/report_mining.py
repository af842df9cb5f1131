"""What `report.py` says of mining: every strategy of the menu, refreshes, a filter of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


def menu(result: dict[str, Any]) -> str:
    """One row a strategy, in the groups of the menu."""
    head = (
        "strategy",
        "nDCG@10",
        "Recall@100",
        "p",
        "teacher score of the negatives",
        "false negatives",
        "mine s",
        "label s",
        "train s",
    )
    lines = [row_of(head), "|---" * len(head) + "|"]
    group = ""
    for row in result["rows"]:
        if row["group"] != group:
            group = row["group"]
            lines.append(f"| *{group}* {'| ' * len(head)}|".replace("  |", " |"))
        if "not_run" in row:
            lines.append(f"| {row['name']} | not on this collection: {row['not_run']} {'| ' * (len(head) - 1)}|")
            continue
        score, false = row.get("negative_score"), row.get("false_negatives")
        seconds = [row.get("seconds", {}).get(step) for step in ("mine", "label", "train")]
        cells = [
            row["name"],
            f"{row['nDCG@10']:.3f}",
            f"{row['Recall@100']:.3f}",
            "" if row["p"] is None else p_value(row["p"]),
            "" if score is None else f"{score:.2f}",
            "" if false is None else f"{100 * false:.0f} %",
            *("" if took is None else f"{took:.0f}" for took in seconds),
        ]
        lines.append(row_of(cells))
    budget, commits = result["budget"], {row["commit"][:10] for row in result["rows"]}
    place = result["machine"]
    return "\n".join(
        [
            *lines,
            "",
            f"{result['collection']}, at most {budget['max_queries']:,} generated queries: {budget['steps']} steps of "
            f"{budget['batch_size']} rows, the student reads "
            f"{budget['max_seq_length']} tokens, bundled models. Made on {place['cores']} cores of {place['cpu']} at "
            f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(sorted(commits))}.",
        ]
    )


def row_of(cells: Iterable[Any]) -> str:
    """A row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def p_value(p: float) -> str:
    """As tables show it."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def refresh(result: dict[str, Any]) -> str:
    """What each refresh of a training cost, beside the same from scratch."""
    lines = [
        "| refresh at step | teacher's pairs | from scratch | seconds: embed, search, label | mine, label from scratch "
        "| share of pairs | of seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in result["refreshes"]:
        took, scratch = entry["seconds"], entry["from_scratch"]
        parts = ", ".join(f"{took[name]:.1f}" for name in ("embed", "search", "label"))
        whole, shares = (
            f"{scratch['mine']:.1f}, {scratch['label']:.1f}",
            (entry["share_of_calls"], entry["share_of_seconds"]),
        )
        cells = [
            entry["step"],
            entry["pairs_scored"],
            scratch["calls"],
            parts,
            whole,
            *(f"{100 * s:.0f} %" for s in shares),
        ]
        lines.append(row_of(cells))
    place = f"{result['machine']['cores']} cores of {result['machine']['cpu']}"
    return "\n".join(
        [*lines, "", f"{result['collection']}, made on {place} at commit {result['machine']['commit'][:10]}."]
    )


def refreshes(result: dict[str, Any]) -> str:
    """What the refreshes of R-GPL changed on each collection that was adapted to."""
    lines = [
        "| collection | step | overlap@50 | new documents | teacher score of the negatives before, after "
        "| pairs scored, known |",
        "|---|---|---|---|---|---|",
    ]
    for report in result["collections"]:
        name = report["collection"]
        for entry in report.get("refreshes", []):
            cells = [
                name,
                entry["step"],
                f"{entry['overlap@50']:.2f}",
                f"{entry['new_documents']:.2f}",
                f"{entry['teacher_score_before']:.2f}, {entry['teacher_score']:.2f}",
                f"{entry['pairs_scored']}, {entry['pairs_saved']}",
            ]
            lines.append(row_of(cells))
            name = ""
    return "\n".join(lines)


def user_filter(result: dict[str, Any]) -> str:
    """One sentence: a function of the user's against the built-in limits."""
    made, n = result["systems"], result["shape"]["n_negatives"] / 1e6
    ratios = f"{made['arrays']['ratio']:.1f} (NumPy's words) and {made['loop']['ratio']:.1f} (a loop)"
    return f"Over {n:.0f} million negatives a function takes {ratios} times as long as the same limits built in."
