"""How the time of our search grows with one variable: a geometric range, and the slope in log-log."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.bench import figures, harness, search
from gplfast.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from gplfast.bench.hardware import Peaks
    from gplfast.bench.harness import Report


def sweep(whole: search.Problem, arguments: argparse.Namespace, peaks: Peaks, report: Report) -> dict[str, Any]:
    """Time our search for each value of `arguments.sweep`, up to that of `whole`.

    Returns:
        sweep: variable, values, seconds (medians), slope and constant of seconds = constant value^slope; and rows, as
        a benchmark has them.

    Raises:
        ConfigError: Fewer than two values.
    """
    variable = arguments.sweep
    largest = whole.threads if variable == "threads" else whole.shape[variable]
    values = halves(largest, arguments.sweep_points, whole.k if variable == "n_docs" else 1)
    if len(values) < 2:
        raise ConfigError(
            f"bench: --sweep {variable} goes up to {largest} in {arguments.sweep_points} points, which leaves "
            f"{len(values)} value but needs 2; ask for more"
        )
    rows, seconds = [], []
    for value in values:
        problem = part_of(whole, variable, value)
        systems = [search.ours(problem)]
        timings = harness.compare_and_time(
            systems,
            search.check(problem),
            arguments.repeats,
            between=peaks.sample,
            report=report,
            what=f"{variable} {value}",
        )
        seconds.append(timings[harness.OURS].median)
        rows.append((problem, timings[harness.OURS]))
    slope, constant = growth(values, seconds)
    return {
        "metric": whole.metric,
        "sweep": {"variable": variable, "values": values, "seconds": seconds, "slope": slope, "constant": constant},
        "rows": [
            {
                "shape": {**problem.shape, "threads": problem.threads},
                "systems": {harness.OURS: figures.described(timing, _work(problem), peaks, timing.median)},
            }
            for problem, timing in rows
        ],
    }


def halves(largest: int, n_points: int, smallest: int = 1) -> list[int]:
    """`largest`, half of it, half of that ..., ascending, none below `smallest`."""
    values = {math.ceil(largest / 2**i) for i in range(n_points)}
    return sorted(value for value in values if value >= smallest)


def part_of(whole: search.Problem, variable: str, value: int) -> search.Problem:
    """The problem with one variable smaller."""
    if variable == "n_docs":
        return dataclasses.replace(whole, docs=whole.docs[:value])
    if variable == "n_queries":
        return dataclasses.replace(whole, queries=whole.queries[:value])
    if variable == "k":
        return dataclasses.replace(whole, k=value)
    if variable == "threads":
        return dataclasses.replace(whole, threads=value)
    queries, docs = (np.ascontiguousarray(rows[:, :value]) for rows in (whole.queries, whole.docs))
    return dataclasses.replace(whole, queries=queries, docs=docs)


def growth(values: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Slope and constant of the least-squares line through (log value, log seconds)."""
    slope, intercept = np.polyfit(np.log(values), np.log(seconds), 1)
    return float(slope), math.exp(intercept)


def _work(problem: search.Problem) -> dict[str, float]:
    return {"flop": problem.flop, "bytes": float(problem.docs.nbytes)}
