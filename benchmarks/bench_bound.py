"""How many documents the proven bound of the integer scan leaves to rescore, on real embeddings.

    python benchmarks/bench_bound.py --collections ../shared/data/scifact ... --models nano:student DIRECTORY

Embeds each collection's documents and queries with each model, searches, and counts the pairs that the scan could not
rule out (candidates) and those whose canonical score was computed (rescored), per query. Synthetic documents of the
same shape, clustered as in `bench_search.py`, stand beside them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import numpy as np

from gplfast.bench.workloads import clustered, queries_near
from gplfast.models import BiEncoder
from gplfast.ops import _core, available_threads
from gplfast.store.corpus import load_corpus

if TYPE_CHECKING:
    from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
METRICS = ("ip", "cosine")


def query_texts(collection: Path, limit: int) -> list[str]:
    """The texts of queries.jsonl, the first `limit`."""
    with (collection / "queries.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(limit), strict=False)]


def embedded(model: str, collection: Path, args: argparse.Namespace) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(queries, documents), from the cache when they are there."""
    encoder = BiEncoder.open(model)
    cached = args.cache / f"{collection.name}-{encoder.fingerprint[:16]}.npz"
    if not cached.exists():
        corpus = load_corpus(collection)
        docs = encoder.encode(corpus.texts(range(len(corpus))))
        queries = encoder.encode(query_texts(collection, args.queries), kind="query")
        args.cache.mkdir(parents=True, exist_ok=True)
        np.savez(cached, docs=docs, queries=queries)
    found = np.load(cached)
    return found["queries"], found["docs"]


def count(
    name: str, model: str, queries: NDArray[np.float32], docs: NDArray[np.float32], k: int
) -> list[dict[str, Any]]:
    """One row for each metric."""
    rows = []
    for metric in METRICS:
        counts = _core.count_survivors(queries, docs, k, metric, available_threads())
        if counts["rescored"] < k * len(queries):
            raise RuntimeError(f"{name}: {counts['rescored']} rescored for {len(queries)} queries: no int8 scan?")
        row = {"collection": name, "model": model, "metric": metric, "n_queries": len(queries), "n_docs": len(docs)}
        per_query = {f"{what}_per_query": round(n / len(queries), 1) for what, n in counts.items()}
        rows.append({**row, "dim": docs.shape[1], "k": k, **per_query})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collections", nargs="+", type=Path, required=True, help="BEIR directories")
    parser.add_argument("--models", nargs="+", required=True, help="bi-encoders: directories or nano:student")
    parser.add_argument("--queries", type=int, default=4096, help="queries of each collection, at most")
    parser.add_argument("-k", type=int, default=50)
    parser.add_argument("--cache", type=Path, default=Path("embeddings"), help="where embeddings are kept")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "bound.json")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for collection in args.collections:
        for model in args.models:
            folder = Path(model).resolve()
            name = model if model.startswith("nano:") else (folder.parent if folder.name == "model" else folder).name
            queries, docs = embedded(model, collection, args)
            rows += count(collection.name, name, queries, docs, args.k)
    for shape in sorted({(row["n_queries"], row["n_docs"], row["dim"]) for row in rows}):
        n_queries, n_docs, dim = shape
        docs = clustered(n_docs, dim, seed=0)
        rows += count("synthetic clusters", "", queries_near(docs, n_queries, seed=0), docs, args.k)
    isa = _core.current_isa()
    args.out.write_text(json.dumps({"machine": machine.describe(), "isa": isa, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
