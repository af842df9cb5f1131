"""A user's own filter against the built-in ones over the same 100 million negatives: the same limits, as a function in
NumPy's words and as a loop, alternating in one process; written to results/user_filter.json.

    python benchmarks/bench_user_filter.py [--queries 2000000 --negatives 50 --repeats 5 --threads 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import machine
import numpy as np

from gplfast import UserFilter, filter_negatives, margins

LIMITS = {"min_score": 0.02, "max_score": 0.85, "absolute_margin": 0.1, "relative_margin": 0.05}


def in_arrays(scores, positive_scores):
    """The four limits, in float64 as the built-in filters have them."""
    lowest = np.float64(positive_scores.min())
    return (scores >= 0.02) & (scores <= 0.85) & (scores + 0.1 <= lowest) & (scores <= lowest - abs(lowest) * 0.05)


def in_a_loop(scores, positive_scores):
    """The same."""
    lowest = np.float64(positive_scores.min())
    kept = np.empty(len(scores), np.bool_)
    for i in range(len(scores)):
        score = np.float64(scores[i])
        kept[i] = (score >= 0.02) & (score <= 0.85) & (score + 0.1 <= lowest) & (score <= lowest - abs(lowest) * 0.05)
    return kept


def _ratio(values: list[float], base: list[float]) -> float:
    """Median over the rounds of a system's time over the built-in's in the same round."""
    return statistics.median(value / other for value, other in zip(values, base, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", type=int, default=2_000_000)
    parser.add_argument("--negatives", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "user_filter.json")
    given = parser.parse_args()
    draw = np.random.default_rng(0)
    indptr, own = np.arange(given.queries + 1) * given.negatives, np.arange(given.queries + 1)
    scores = draw.random(given.queries * given.negatives, np.float32)
    own_scores = 0.6 + 0.4 * draw.random(given.queries, np.float32)

    def built_in():
        return margins(own_scores, own, scores, indptr, threads=given.threads, **LIMITS).kept

    def of(function):
        made = UserFilter(function)
        return lambda: filter_negatives(made, scores, indptr, own_scores, own, threads=given.threads)

    systems = {"built in": built_in, "arrays": of(in_arrays), "loop": of(in_a_loop)}
    expected, first = built_in(), {}
    for name, call in systems.items():
        start = time.perf_counter()
        np.testing.assert_array_equal(call(), expected)
        first[name] = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    work: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(given.repeats):
        for name, call in systems.items():
            start, before = time.perf_counter(), time.process_time()
            call()
            seconds[name].append(time.perf_counter() - start)
            work[name].append(time.process_time() - before)  # of all threads: others on the machine weigh less
    rows = {}
    for name, values in seconds.items():
        rows[name] = {
            "seconds": values,
            "cpu_seconds": work[name],
            "median_seconds": statistics.median(values),
            "ratio": _ratio(values, seconds["built in"]),
            "cpu_ratio": _ratio(work[name], work["built in"]),
            "first_call_seconds": first[name],
        }
        shown = rows[name]
        print(
            f"{name:9} median {shown['median_seconds']:.3f} s, best {min(values):.3f} s; {shown['ratio']:.2f} x the "
            f"built-in, {shown['cpu_ratio']:.2f} x its CPU time"
        )
    shape = {"n_queries": given.queries, "n_negatives": len(scores), "threads": given.threads, **LIMITS}
    result = {"shape": shape, "kept": int(expected.sum()), "systems": rows, "machine": machine.describe()}
    given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{given.json}\n")


if __name__ == "__main__":
    main()
