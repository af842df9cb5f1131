"""Exact search against peers on this machine: seconds, TFLOP/s and the ratio to `faiss.knn` in the same run.

Results are compared before anything is timed; then all systems take turns, and medians are written. Documents are
clustered vectors, or with --embeddings the rows of an .npy file, tiled with noise up to --docs rows.

    python benchmarks/bench_search.py --docs 200000 --dim 384
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import numpy as np

import gplfast
from gplfast.ops import _core

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results"
ROWS_AT_ONCE = 20_000
TORCH_BLOCK_QUERIES = 128


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def collection(
    n_docs: int, dim: int, n_queries: int, embeddings: Path | None, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Documents, and queries near some of them."""
    rng = np.random.default_rng(seed)
    if embeddings is None:
        centres, spread = rng.standard_normal((2000, dim), dtype=np.float32), 0.7
    else:
        centres = np.load(embeddings, mmap_mode="r")
        spread = 0.3 * float(np.abs(centres[:100]).mean())
    docs = np.empty((n_docs, centres.shape[1]), np.float32)
    for start in range(0, n_docs, ROWS_AT_ONCE):
        part = docs[start : start + ROWS_AT_ONCE]
        noise = rng.standard_normal(part.shape, dtype=np.float32)
        part[:] = unit(centres[rng.integers(0, len(centres), len(part))] + spread * noise)
    near = docs[rng.integers(0, n_docs, n_queries)]
    return docs, unit(near + 0.5 / near.shape[1] ** 0.5 * rng.standard_normal(near.shape, dtype=np.float32))


def systems(
    queries: NDArray[np.float32], docs: NDArray[np.float32], k: int, isas: list[str]
) -> dict[str, Callable[[], NDArray[np.int64]]]:
    """Name to a function that gives (n_queries, k) ids."""
    import faiss
    import torch

    tensors = torch.from_numpy(queries), torch.from_numpy(docs)

    def torch_blocks() -> NDArray[np.int64]:
        parts = [torch.topk(part @ tensors[1].T, k).indices for part in tensors[0].split(TORCH_BLOCK_QUERIES)]
        return torch.cat(parts).numpy()

    def ours(isa: str) -> Callable[[], NDArray[np.int64]]:
        def run() -> NDArray[np.int64]:
            _core.force_isa(isa)
            try:
                return gplfast.search(queries, docs, k).ids
            finally:
                _core.force_isa("")

        return run

    return {
        "faiss.knn": lambda: faiss.knn(queries, docs, k, metric=faiss.METRIC_INNER_PRODUCT)[1],
        "torch fp32 blocks + topk": torch_blocks,
        "gplfast": ours(""),
        **{f"gplfast {isa}": ours(isa) for isa in isas},
    }


def check(queries: NDArray[np.float32], docs: NDArray[np.float32], expected: NDArray, found: NDArray) -> int:
    """How many places name another document; raises where that is more than a tie of float32 rounding."""
    rows, places = np.nonzero(expected != found)
    score = np.einsum("ij,ij->i", queries[rows].astype(np.float64), docs[found[rows, places]].astype(np.float64))
    other = np.einsum("ij,ij->i", queries[rows].astype(np.float64), docs[expected[rows, places]].astype(np.float64))
    if len(rows) and float(np.abs(score - other).max()) > 1e-5:
        raise RuntimeError("two systems disagree by more than rounding")
    return len(rows)


def measure(
    queries: NDArray[np.float32], docs: NDArray[np.float32], k: int, isas: list[str], repeats: int
) -> dict[str, Any]:
    """Medians of alternating runs."""
    runs = systems(queries, docs, k, isas)
    expected = runs["gplfast"]()
    differences = {name: check(queries, docs, expected, run()) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    flop = 2.0 * len(queries) * docs.shape[0] * docs.shape[1]
    peer = statistics.median(seconds["faiss.knn"])
    return {
        "shape": {"n_queries": len(queries), "n_docs": len(docs), "dim": docs.shape[1], "k": k},
        "systems": {
            name: {
                "seconds": [round(value, 4) for value in values],
                "tflops": flop / statistics.median(values) / 1e12,
                "times_faiss": peer / statistics.median(values),
                "places_that_differ": differences[name],
            }
            for name, values in seconds.items()
        },
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16, 4096])
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--embeddings", type=Path, help=".npy of real embeddings; --dim is then theirs")
    parser.add_argument("--isas", nargs="*", default=["avx2", "avx512", "avx512_vnni"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "search.json")
    args = parser.parse_args()
    docs, queries = collection(args.docs, args.dim, max(args.queries), args.embeddings)
    isas = [isa for isa in args.isas if isa in _core.available_isas()]
    rows = []
    for n in args.queries:
        rows.append(measure(np.ascontiguousarray(queries[:n]), docs, args.k, isas, args.repeats))
        sys.stdout.write(json.dumps(rows[-1], indent=1) + "\n")
    source = "clustered" if args.embeddings is None else args.embeddings.name
    result = {"machine": machine.describe(), "documents": source, "rows": rows}
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
