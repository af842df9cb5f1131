"""Exact search against peers on this machine: `gplfast bench search` with our shapes, written to results/search.json.

All flags of that command are taken, and go over those that are set here:

    python benchmarks/bench_search.py
    python benchmarks/bench_search.py --embeddings mine.npy --json mine.json
"""

from __future__ import annotations

import machine

from gplfast.ops import info

FLAGS = ["--docs", "200000", "--dim", "384", "--queries", "1", "16", "4096", "--k", "50"]

if __name__ == "__main__":
    isas = [isa for isa in info()["isas"] if isa != "scalar"]
    machine.bench("search", [*FLAGS, "--isas", *isas] if isas else FLAGS)
