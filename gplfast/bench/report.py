"""A result as a table, and as a picture."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from gplfast.errors import ConfigError, MissingExtraError
from gplfast.store.memory import in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

PICTURES = (".png", ".svg", ".pdf")
_KINDS = {
    "float32": "of float32",
    "int8": "of int8",
    "read": "of reading",
    "gemm float32": "of GEMM float32",
    "gemm bfloat16": "of GEMM bfloat16",
}


# What a bar is: the figure, its scale and unit.
_BARS = {
    "margins": ("bytes_per_second", 1e9, "GB/s"),
    "generate": ("passages_per_second", 1.0, "passages a second"),
    "score": ("pairs_per_second", 1.0, "pairs a second"),
    "embed": ("texts_per_second", 1.0, "texts a second"),
}
# Peak, style of its line, and the work that it limits.
_LINES = (
    ("float32", "--", "flop"),
    ("int8", ":", "flop"),
    ("read", "-.", "bytes"),
    ("gemm float32", "--", "flop"),
    ("gemm bfloat16", ":", "flop"),
)


def table(result: Mapping[str, Any]) -> str:
    """One table a shape, one row a system; what the columns mean is in `gplfast bench OPERATION --help`."""
    lines = _head(result)
    if "sweep" in result:
        return "\n".join([*lines, "", *_sweep(result)])
    for row in result["rows"]:
        lines += ["", _shape(result["operation"], row["shape"]), *_systems(row["systems"])]
    for name, packages in result["missing"].items():
        lines.append(f"not compared: {name} (pip install {' '.join(packages)}, or 'gplfast[bench]')")
    return "\n".join(lines)


def _head(result: Mapping[str, Any]) -> list[str]:
    place = result["machine"]
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    metric = f", {result['metric']}" if "metric" in result else ""
    units = {"float32": ("TFLOP/s float32", 1e12), "int8": ("TOP/s int8", 1e12), "read": ("GB/s read", 1e9)}
    units |= {f"gemm {dtype}": (f"TFLOP/s {dtype} GEMM", 1e12) for dtype in ("float32", "bfloat16")}
    peaks = [
        f"{result['peaks'][kind] / scale:.4g} {unit}"
        for kind, (unit, scale) in units.items()
        if kind in result["peaks"]
    ]
    return [
        f"{result['operation']}: {result['documents']}{metric}, {threads} of {place['cpu']}, {place['isa']}",
        "measured peaks: " + (", ".join(peaks) or "none"),
    ]


def _shape(operation: str, shape: Mapping[str, Any]) -> str:
    if operation == "generate":
        return (
            f"{shape['model']}: {shape['n_passages']} passages of at most {shape['max_input_tokens']} tokens, "
            f"{shape['n_samples']} queries each of at most {shape['max_new_tokens']}"
        )
    if operation == "score":
        return (
            f"{shape['model']}: {shape['n_pairs']} pairs of {shape['mean_tokens']:.0f} tokens "
            f"(5 % have more than {shape['p95_tokens']:.0f})"
        )
    if operation == "embed":
        return f"{shape['model']}: {shape['n_texts']} texts of {shape['mean_tokens']:.0f} tokens"
    if operation == "search":
        queries = f"{shape['n_queries']} quer{'ies' if shape['n_queries'] > 1 else 'y'}"
        return f"{queries}, {shape['n_docs']} documents x {shape['dim']}, k {shape['k']}"
    if operation == "dedup":
        return f"{shape['n_docs']} documents x {shape['dim']}, threshold {shape['threshold']:g}, {shape['rule']}"
    filters = [f"{name} {value:g}" for name, value in shape.items() if isinstance(value, float)]
    if shape["ranks"] != [0, None]:
        filters.insert(0, f"ranks {shape['ranks'][0]} to {shape['ranks'][1]}")
    return (
        f"{shape['n_queries']} queries, {shape['n_negatives']} negatives, {shape['n_positives']} positives "
        f"({shape['reference']}); {', '.join(filters) or 'no filters'}"
    )


def _systems(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "seconds": lambda made: f"{made['median_seconds']:.4g} ({100 * made['spread']:.0f} %)",
        "x time": lambda made: f"{made['time_over_gplfast']:.2f}",
    }
    one = next(iter(systems.values()))
    for name in ("passages", "pairs", "texts"):
        if f"{name}_per_second" in one:
            columns[f"{name}/s"] = lambda made, name=name: f"{made[f'{name}_per_second']:.1f}"  # type: ignore[misc]
    if "tokens_per_second" in one:
        columns["tokens/s"] = lambda made: f"{made['tokens_per_second']:.0f}"
    if "query_tokens" in one:
        columns["tokens"] = lambda made: f"{made['query_tokens']:.1f}"
    if "flop_per_second" in one:
        columns["TFLOP/s"] = lambda made: f"{made['flop_per_second'] / 1e12:.4f}"
    if "entries_per_second" in one:
        columns["M/s"] = lambda made: f"{made['entries_per_second'] / 1e6:.1f}"
        columns["GB/s"] = lambda made: f"{made['bytes_per_second'] / 1e9:.2f}"
    for kind in one["share_of_peak"]:
        columns[_KINDS[kind]] = lambda made, kind=kind: f"{100 * made['share_of_peak'][kind]:.1f} %"  # type: ignore[misc]
    columns["memory"] = lambda made: "?" if made["extra_bytes"] is None else in_words(made["extra_bytes"])
    columns["agrees"] = _agreement
    if "nDCG@10" in one:
        columns["nDCG@10"] = lambda made: f"{made['nDCG@10']:.4f}"
    columns["setting"] = lambda made: made["setting"]
    rows = [[name, *(cell(made) for cell in columns.values())] for name, made in systems.items()]
    return aligned([["system", *columns], *rows])


def _agreement(made: Mapping[str, Any]) -> str:
    if "recall" in made:
        return f"recall {made['recall']:.4f}"
    if "greedy_that_differ" in made:
        return f"{made['greedy_compared'] - made['greedy_that_differ']} of {made['greedy_compared']}"
    if "spearman" in made:
        return f"{made['spearman']:.5f}, {made['largest_difference']:.1g}"
    if "cosine_min" in made:
        return f"{made['cosine_min']:.5f}, {made['top_10_overlap']:.3f}"
    differs = next((value for name, value in made.items() if name.endswith("that_differ")), 0)
    return "yes" if differs == 0 else f"{differs} ties"


def _sweep(result: Mapping[str, Any]) -> list[str]:
    made = result["sweep"]
    rows = [[made["variable"], "seconds", "TFLOP/s"]]
    for value, row in zip(made["values"], result["rows"], strict=True):
        ours = row["systems"]["gplfast"]
        seconds = f"{ours['median_seconds']:.4g} ({100 * ours['spread']:.0f} %)"
        rows.append([str(value), seconds, f"{ours['flop_per_second'] / 1e12:.4f}"])
    fixed = {name: value for name, value in result["rows"][-1]["shape"].items() if name != made["variable"]}
    return [
        ", ".join(f"{name} {value}" for name, value in fixed.items()),
        *aligned(rows),
        f"seconds grow as {made['variable']}^{made['slope']:.2f} (least squares in log-log)",
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, a rule below the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def check_files(json: Path | None, picture: Path | None) -> None:
    """Before anything is measured: can the result and the picture be written?

    Raises:
        ConfigError: No such folder, or a picture of another format.
        MissingExtraError: matplotlib is not installed.
    """
    for flag, file in (("--json", json), ("--plot", picture)):
        if file is not None and not file.absolute().parent.is_dir():
            raise ConfigError(f"bench: {flag} is {file} but there is no folder {file.parent}; make it first")
    if picture is not None:
        _check_picture(picture)


def _check_picture(path: Path) -> None:
    if path.suffix not in PICTURES:
        raise ConfigError(f"bench: --plot is {path} but must end in {', '.join(PICTURES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("bench: --plot needs matplotlib; install gplfast[bench]")


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Bars of what each system does in a second, with the measured peaks; for a sweep, seconds over its variable."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = result["rows"] if "sweep" not in result else [None]
    figure = Figure(figsize=(1.5 + 4.5 * len(rows), 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # no display, whatever the user's settings say
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        if row is None:
            _plot_sweep(axes, result)
        else:
            _plot_bars(axes, result, row)
    place = result["machine"]
    figure.suptitle(f"gplfast bench {result['operation']}: {place['cpu']}, {result['threads']} threads", fontsize=10)
    figure.savefig(path, dpi=150)


def _plot_bars(axes: Any, result: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    key, scale, unit = _BARS.get(result["operation"], ("flop_per_second", 1e12, "TFLOP/s"))
    names = list(row["systems"])
    rates = [row["systems"][name][key] / scale for name in names]
    bars = axes.barh(names, rates, color=["C0" if name.startswith("gplfast") else "C7" for name in names])
    axes.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
    one = row["systems"][names[0]]
    for kind, style, work in _LINES:
        if kind not in result["peaks"] or f"{work}_per_second" not in one:
            continue
        # What reaching the peak would be, in the unit of the bars.
        peak = result["peaks"][kind] * one[key] / one[f"{work}_per_second"] / scale
        if peak < 4 * max(rates):  # one that is far off would make the bars small
            axes.axvline(peak, color="C3", linestyle=style, linewidth=1, label=f"measured {kind} peak")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, loc="lower right")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(unit)
    axes.set_title(_shape(result["operation"], row["shape"]), fontsize=8)


def _plot_sweep(axes: Any, result: Mapping[str, Any]) -> None:
    made = result["sweep"]
    fitted = [made["constant"] * value ** made["slope"] for value in made["values"]]
    axes.loglog(made["values"], made["seconds"], "o", label="median")
    axes.loglog(made["values"], fitted, "--", linewidth=1, label=f"{made['variable']}^{made['slope']:.2f}")
    axes.set_xticks(made["values"], [str(value) for value in made["values"]], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel(made["variable"])
    axes.set_ylabel("seconds")
    axes.legend()
