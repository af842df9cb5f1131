"""Near duplicates against peers on this machine: seconds, peak memory, and the ratio to faiss in the same run.

Each run is a process of its own, so that its peak memory is its own; systems take turns, and medians are written. The
first turn is checked before the others: every peer's pairs are scored again in float64, and those of torch, taken a
little below the threshold, are the truth that the number of pairs and of rows that stay must equal exactly.

    python benchmarks/bench_dedup.py --cases near:50000:3 narrow:50000:3 near:200000:1
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import numpy as np

import gplfast
from gplfast.bench import memory
from gplfast.bench.workloads import clustered, unit
from gplfast.ops import _core

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results"
MARGIN = 1e-5  # more than float32 sums of 384 products are wrong
BLOCK_ROWS = 1024
CASES = ["near:50000:3", "narrow:50000:3", "near:200000:1"]
COMMUNITIES = "sentence-transformers community_detection"


def documents(case: str, n: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    """Unit rows: "near": clustered, a tenth within cosine .95 to 1 of another; "narrow": all cosines above .9."""
    rng = np.random.default_rng(seed)
    if case == "narrow":
        docs = 0.96 * unit(rng.standard_normal((1, dim), dtype=np.float32))
        docs = unit(docs + 0.28 * unit(rng.standard_normal((n, dim), dtype=np.float32)))
    else:
        docs = clustered(n, dim, seed)
    copies, originals = rng.integers(0, n, n // 10), rng.integers(0, n, n // 10)
    length = 0.32 * rng.random((n // 10, 1), dtype=np.float32)
    docs[copies] = unit(docs[originals] + length * unit(rng.standard_normal((n // 10, dim), dtype=np.float32)))
    return docs


def exact(docs: NDArray[np.float32], pairs: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    """Those of the pairs whose float64 cosine reaches the threshold."""
    parts = [np.empty((0, 2), np.int64)]
    for start in range(0, len(pairs), 100_000):
        part = pairs[start : start + 100_000]
        a, b = (docs[part[:, side]].astype(np.float64) for side in (0, 1))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        scores = (np.einsum("ij,ij->i", a, b) / norms).astype(np.float32)
        parts.append(part[scores >= np.float32(threshold)])
    return np.concatenate(parts)


def by_faiss(docs: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Pairs by range search of all rows."""
    import faiss

    index = faiss.IndexFlatIP(docs.shape[1])
    index.add(docs)
    limits, _, ids = index.range_search(docs, threshold)
    rows = np.repeat(np.arange(len(docs)), np.diff(limits.astype(np.int64)))
    return np.stack([rows, ids], 1)[rows < ids]


def by_torch(docs: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Pairs by float32 products of blocks, the upper triangle only, decided in float64."""
    import torch

    tensor = torch.from_numpy(docs)
    parts = []
    for start in range(0, len(docs), BLOCK_ROWS):
        found = (tensor[start : start + BLOCK_ROWS] @ tensor[start:].T >= threshold - MARGIN).nonzero().numpy() + start
        parts.append(found[found[:, 0] < found[:, 1]])
    return exact(docs, np.concatenate(parts), threshold)


def by_communities(docs: NDArray[np.float32], threshold: float) -> int:
    """How many communities sentence-transformers finds; not the same thing as pairs or components."""
    import torch
    from sentence_transformers.util import community_detection

    return len(community_detection(torch.from_numpy(docs), threshold, min_community_size=2, batch_size=BLOCK_ROWS))


PEERS: dict[str, Callable[[NDArray[np.float32], float], Any]] = {
    "faiss range_search": by_faiss,
    "torch fp32 blocks": by_torch,
    COMMUNITIES: by_communities,
}


def run_here(system: str, path: Path, threshold: float) -> dict[str, Any]:
    """One run in this process; what is found is counted after the clock has stopped."""
    docs = np.load(path)
    if system in PEERS:
        __import__("faiss" if "faiss" in system else "torch" if "torch" in system else "sentence_transformers")
    else:
        _core.force_isa(system.removeprefix("gplfast").strip())
    memory.forget_peak()
    before = memory.peak_bytes()
    started = time.perf_counter()
    found: Any = PEERS[system](docs, threshold) if system in PEERS else gplfast.dedup(docs, threshold)
    result: dict[str, Any] = {"seconds": time.perf_counter() - started}
    peak = memory.peak_bytes()
    result["peak_mb"] = round(peak / 2**20, 1)
    result["added_mb"] = round((peak - before) / 2**20, 1)
    if isinstance(found, gplfast.Dedup):
        return {**result, "n_pairs": found.n_pairs, "n_kept": int(found.kept.sum())}
    if isinstance(found, int):
        return {**result, "n_communities": found}
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(found), bool), (found[:, 0], found[:, 1])), shape=(len(docs), len(docs)))
    right = exact(docs, found, threshold)
    n_kept = int(connected_components(edges, directed=False)[0])
    return {**result, "n_pairs": len(found), "n_kept": n_kept, "n_wrong": len(found) - len(right)}


def run(system: str, path: Path, threshold: float) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--run", system, "--docs", str(path), "--threshold", str(threshold)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    sys.stderr.write(f"{system}: {result}\n")
    return result


def check(runs: dict[str, dict[str, Any]]) -> None:
    """Raise where gplfast differs from the pairs of torch that were decided in float64."""
    truth = runs["torch fp32 blocks"]
    for name, found in runs.items():
        if name.startswith("gplfast") and any(found[key] != truth[key] for key in ("n_pairs", "n_kept")):
            message = f"{name} found {found} but float64 says {truth}"
            raise RuntimeError(message)


def measure(case: str, docs: NDArray[np.float32], threshold: float, systems: list[str], repeats: int) -> dict[str, Any]:
    """Medians of alternating runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "docs.npy"
        np.save(path, docs)
        first = {system: run(system, path, threshold) for system in systems}
        check(first)
        turns = [first, *({system: run(system, path, threshold) for system in systems} for _ in range(repeats - 1))]
    seconds = {system: [turn[system]["seconds"] for turn in turns] for system in systems}
    peer = statistics.median(seconds["faiss range_search"])
    return {
        "case": case,
        "shape": {"n_docs": len(docs), "dim": docs.shape[1], "threshold": threshold},
        "inputs_mb": docs.nbytes / 2**20,
        "systems": {
            system: {
                **first[system],
                "seconds": [round(value, 3) for value in seconds[system]],
                "times_faiss": peer / statistics.median(seconds[system]),
            }
            for system in systems
        },
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="CASE:ROWS:REPEATS")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--isas", nargs="*", default=["avx512"])
    parser.add_argument("--community-rows", type=int, default=50_000, help="the most that community_detection is given")
    parser.add_argument("--out", type=Path, default=RESULTS / "dedup.json")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--docs", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        sys.stdout.write(json.dumps(run_here(args.run, args.docs, args.threshold)) + "\n")
        return
    isas = [isa for isa in args.isas if isa in _core.available_isas()]
    systems = ["gplfast", *(f"gplfast {isa}" for isa in isas), "faiss range_search", "torch fp32 blocks"]
    rows = []
    for case, n, repeats in (text.split(":") for text in args.cases):
        docs = documents(case, int(n), args.dim)
        extra = [COMMUNITIES] if len(docs) <= args.community_rows else []
        rows.append(measure(case, docs, args.threshold, systems + extra, int(repeats)))
        sys.stdout.write(json.dumps(rows[-1], indent=1) + "\n")
        result = {"machine": machine.describe(), "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
