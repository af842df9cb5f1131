"""Search of an index that is larger than the memory it may use: seconds against the same rate in memory, and RSS.

Makes clustered float32 documents on disk (kept in --work for the next run; 8.84 M x 384 are 17 GB, and 31 GB while the
index is made), opens the index in a fresh process and searches it. The rate in memory is that of an Index of the first
--memory-docs of them, in another process. The answers are compared where both have them.

    python benchmarks/bench_disk.py --work /tmp/disk
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import numpy as np

import gplfast
from gplfast.bench import memory
from gplfast.bench.workloads import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESULT = Path(__file__).parent / "results" / "disk.json"
ROWS_AT_ONCE = 20_000
N_CENTRES = 20_000


def make_queries(path: Path, n: int) -> NDArray[np.float32]:
    """Queries near documents that are spread over all of the index."""
    rng = np.random.default_rng(1)
    docs = np.load(path / "rows.npy", mmap_mode="r")
    rows = docs[np.sort(rng.integers(0, len(docs), n))]
    noise = rng.standard_normal(rows.shape, dtype=np.float32)
    return unit(np.asarray(rows + 0.5 / rows.shape[1] ** 0.5 * noise))


def make_index(path: Path, n_docs: int, dim: int) -> None:
    """Write the documents, and an index of them; nothing when it is there."""
    if path.exists():
        return
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((N_CENTRES, dim), dtype=np.float32)
    raw = path.with_suffix(".npy")
    raw.parent.mkdir(parents=True, exist_ok=True)
    rows = np.lib.format.open_memmap(raw, mode="w+", dtype=np.float32, shape=(n_docs, dim))
    for start in range(0, n_docs, ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        noise = rng.standard_normal(part.shape, dtype=np.float32)
        part[:] = unit(centres[rng.integers(0, N_CENTRES, len(part))] + 0.7 * noise)
    rows.flush()
    del rows
    index = gplfast.Index(dim)
    index.add(np.load(raw, mmap_mode="r"))
    index.save(path)
    raw.unlink()


def search(path: Path, n_queries: int, k: int, n_in_memory: int) -> dict[str, Any]:
    """Time one search in this process: of the files, or of the first `n_in_memory` documents in memory."""
    index = gplfast.Index.open(path)
    queries = make_queries(path, n_queries)
    if n_in_memory:
        docs = np.array(np.load(path / "rows.npy", mmap_mode="r")[:n_in_memory])
        index = gplfast.Index(docs.shape[1])
        index.add(docs)
    started = time.perf_counter()
    hits = index.search(queries, k)
    seconds = time.perf_counter() - started
    name = path.with_suffix(f".{n_in_memory}.npz")
    np.savez(name, scores=hits.scores, ids=hits.ids)
    return {"seconds": seconds, "peak_rss_gb": memory.peak_bytes() / 2**30, "n_docs": len(index), "hits": str(name)}


def check(whole: dict[str, Any], part: dict[str, Any]) -> int:
    """Compare what both searches say of the documents that both have; how many hits that are."""
    a, b = np.load(whole["hits"]), np.load(part["hits"])
    compared = 0
    for query in range(len(a["ids"])):
        common = a["ids"][query] < part["n_docs"]
        n = int(common.sum())
        if not (
            np.array_equal(a["ids"][query][common], b["ids"][query][:n])
            and np.array_equal(a["scores"][query][common], b["scores"][query][:n])
        ):
            raise RuntimeError(f"query {query}: the search of the files and the search in memory disagree")
        compared += n
    if not compared:
        raise RuntimeError("the two searches have no hit in common: nothing was checked")
    return compared


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--docs", type=int, default=8_841_823)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--memory-docs", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # a search in a process of its own
    args = parser.parse_args()
    path = args.work / f"{args.docs}x{args.dim}"
    if args.one is not None:
        sys.stdout.write(json.dumps(search(path, args.queries, args.k, args.one)))
        return
    make_index(path, args.docs, args.dim)

    def measure(n_in_memory: int) -> dict[str, Any]:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", str(n_in_memory)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    n_in_memory = min(args.memory_docs, args.docs)
    before, disk, after = measure(n_in_memory), measure(0), measure(n_in_memory)  # the machine is shared
    in_memory = [before, after]
    scaled = (before["seconds"] + after["seconds"]) / 2 * args.docs / n_in_memory
    result = {
        "machine": machine.describe(),
        "shape": {"n_docs": args.docs, "dim": args.dim, "n_queries": args.queries, "k": args.k},
        "hits_compared": check(disk, in_memory[0]),
        "seconds": disk["seconds"],
        "peak_rss_gb": disk["peak_rss_gb"],
        "in_memory": in_memory,
        "times_in_memory_rate": disk["seconds"] / scaled,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
