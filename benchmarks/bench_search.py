"""Exact search against peers on this machine: `gplfast bench search` with our shapes, written to results/search.json.

All flags of that command are taken, and go over those that are set here:

    python benchmarks/bench_search.py
    gplfast bench search --embeddings mine.npy --docs 200000 --queries 4096 --peers faiss --json mine.json
"""

from __future__ import annotations

import machine

from gplfast.ops import info

FEW = ["--docs", "200000", "--dim", "384", "--queries", "1", "16", "--repeats", "5"]
MANY = ["--queries", "4096", "--peers", "faiss", "torch", "torch-bf16"]  # the others take minutes
LARGE = ["--docs", "1000000", "--queries", "4096", "--peers", "faiss"]

if __name__ == "__main__":
    isas = ["--isas", *[isa for isa in info()["isas"] if isa != "scalar"]]
    machine.bench(
        "search",
        FEW,
        [*MANY, "--docs", "200000", "--dim", "384", *isas],
        [*MANY, "--docs", "200000", "--dim", "768", *isas],
        [*LARGE, "--dim", "384"],
        [*LARGE, "--dim", "768"],
    )
