"""Margins of 100 million negatives, without and with filters, against NumPy and numba: `gplfast bench margins` with our
shapes, written to results/margins.json. All flags of that command are taken, and go over those that are set here.

    python benchmarks/bench_margins.py
"""

from __future__ import annotations

import machine

FLAGS = ["--queries", "2000000", "--negatives", "50", "--repeats", "5"]
LIMITS = ["--min-score", "0.02", "--max-score", "0.85", "--absolute-margin", "0.1", "--relative-margin", "0.05"]

if __name__ == "__main__":
    machine.bench("margins", FLAGS, [*FLAGS, *LIMITS])
