"""Exact search: ours, and faiss, torch, usearch and NumPy on the same vectors."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.bench import workloads
from gplfast.bench.harness import OURS, Peer, PeerError, System
from gplfast.bench.scores import pair_scores, rounding
from gplfast.ops import Index, forced_isa, search

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gplfast.ops import Metric

    Ids = NDArray[np.int64]

# What peers that store scores may take for a block of queries; both are tried.
SCORE_BYTES = (64 << 20, 512 << 20)
# faiss scans fewer queries without BLAS by default; both ways are tried up to here, behind it BLAS wins by far.
FAISS_DIRECT_QUERIES = 256
USEARCH_PAIR_BYTES = 32  # it holds two copies of a distance and a key for each pair
NUMPY_PAIR_BYTES = 16  # a score, a number from argpartition, and what that works with


@dataclasses.dataclass(frozen=True)
class Problem:
    """One search.

    Attributes:
        queries: (n_queries, dim) float32.
        docs: (n_docs, dim) float32.
        k: Documents of each query.
        metric: "ip" or "cosine".
        threads: Of every system.
    """

    queries: NDArray[np.float32]
    docs: NDArray[np.float32]
    k: int
    metric: Metric
    threads: int

    @property
    def shape(self) -> dict[str, int]:
        """As the result names it."""
        return {"n_queries": len(self.queries), "n_docs": len(self.docs), "dim": self.docs.shape[1], "k": self.k}

    @property
    def flop(self) -> float:
        """Of comparing every pair, a multiply-add counting two."""
        n_docs, dim = map(int, self.docs.shape)
        return 2.0 * len(self.queries) * n_docs * dim

    def normalised(self) -> Problem:
        """The same search by inner product, for peers that have no cosine; the time of this is not counted."""
        if self.metric == "ip":
            return self
        return dataclasses.replace(
            self, queries=workloads.unit(self.queries), docs=workloads.unit(self.docs), metric="ip"
        )


def ours(problem: Problem, isa: str = "") -> System:
    """Our search; with `isa` on that instruction set."""

    def call() -> Ids:
        with forced_isa(isa):
            found = search(problem.queries, problem.docs, problem.k, metric=problem.metric, threads=problem.threads)
        return found.ids

    return System(f"{OURS} {isa}".strip(), {isa: call})


def indexed(problem: Problem) -> Index:
    """The documents as an index."""
    index = Index(problem.docs.shape[1], problem.metric)
    index.add(problem.docs, threads=problem.threads)
    return index


def ours_indexed(problem: Problem, index: Index) -> System:
    """Our search of an index that was made before: it packs no documents."""
    return System(f"{OURS} index", {"": lambda: index.search(problem.queries, problem.k, threads=problem.threads).ids})


def _block(problem: Problem, score_bytes: int, pair_bytes: int) -> int:
    return max(1, min(len(problem.queries), score_bytes // (pair_bytes * len(problem.docs))))


def _blocks(problem: Problem, run: Callable[[int], Ids], pair_bytes: int = 4) -> dict[str, Callable[[], Ids]]:
    """One setting for each size of block that differs."""
    sizes = sorted({_block(problem, n_bytes, pair_bytes) for n_bytes in SCORE_BYTES})
    return {_queries_a_block(size): partial(run, size) for size in sizes}


def _queries_a_block(size: int) -> str:
    return f"{size} quer{'ies' if size > 1 else 'y'} a block"


def _faiss(problem: Problem) -> System:
    import faiss

    def run(threshold: int) -> Ids:
        faiss.cvar.distance_compute_blas_threshold = threshold
        _, ids = faiss.knn(problem.queries, problem.docs, problem.k, metric=faiss.METRIC_INNER_PRODUCT)
        return np.asarray(ids)

    settings: dict[str, Callable[[], Ids]] = {"BLAS": lambda: run(0)}
    if len(problem.queries) <= FAISS_DIRECT_QUERIES:
        settings["no BLAS"] = lambda: run(1 << 30)
    return System("faiss", settings)


def _torch(problem: Problem) -> System:
    return _torch_system("torch", problem, "float32")


def _torch_bf16(problem: Problem) -> System:
    return _torch_system("torch-bf16", problem, "bfloat16")


def _torch_system(name: str, problem: Problem, dtype: str) -> System:
    import torch

    queries, docs = (workloads.as_tensor(rows).to(getattr(torch, dtype)) for rows in (problem.queries, problem.docs))

    @torch.inference_mode()
    def run(block: int) -> Ids:
        parts = [torch.topk(part @ docs.T, problem.k).indices for part in queries.split(block)]
        return np.asarray(torch.cat(parts).numpy())

    return System(name, _blocks(problem, run), exact=dtype == "float32")


def _usearch(problem: Problem) -> System:
    from usearch.compiled import MetricKind
    from usearch.index import search as exact

    block = _block(problem, SCORE_BYTES[1], USEARCH_PAIR_BYTES)

    def run() -> Ids:
        parts = []
        for start in range(0, len(problem.queries), block):
            part = problem.queries[start : start + block]
            found = exact(problem.docs, part, problem.k, MetricKind.IP, exact=True, threads=problem.threads)
            parts.append(np.asarray(found.keys).reshape(len(part), problem.k).astype(np.int64))
        return np.concatenate(parts)

    return System("usearch", {_queries_a_block(block): run})


def _numpy(problem: Problem) -> System:
    def run(block: int) -> Ids:
        parts = []
        for start in range(0, len(problem.queries), block):
            scores = problem.queries[start : start + block] @ problem.docs.T
            first = scores.shape[1] - problem.k
            ids = np.argpartition(scores, first, axis=1)[:, first:] if first else np.argsort(scores, axis=1)
            order = np.argsort(-np.take_along_axis(scores, ids, axis=1), axis=1, kind="stable")
            parts.append(np.take_along_axis(ids, order, axis=1))
        return np.concatenate(parts)

    return System("numpy", _blocks(problem, run, NUMPY_PAIR_BYTES))


# threadpoolctl holds their BLAS to the number of threads; without it they would use all cores.
PEERS: Sequence[Peer] = (
    Peer("faiss", ("faiss", "threadpoolctl"), _faiss),
    Peer("torch", ("torch",), _torch, copies=0.0),
    Peer("torch-bf16", ("torch",), _torch_bf16, copies=0.5),
    Peer("usearch", ("usearch",), _usearch),
    Peer("numpy", ("threadpoolctl",), _numpy),
)


def check(problem: Problem) -> Callable[[System, Any, Any], dict[str, float]]:
    """What another's ids have in common with ours.

    Ours on another instruction set must be the same. Exact peers may differ where the two documents' scores are
    nearer than float32 rounding. For what is approximate by design it is the recall.
    """

    def compare(system: System, expected: Ids, found: Ids) -> dict[str, float]:
        if found.shape != expected.shape:
            raise PeerError(f"{system.name}: ids have shape {found.shape} but {expected.shape} is expected")
        if not system.exact:
            return {"recall": _recall(expected, found)}
        differs = _differences(problem, system.name, expected, found)
        if system.name.startswith(OURS) and differs:
            raise PeerError(f"{system.name}: {differs} places differ from {OURS}, which must be the same; report this")
        return {"places_that_differ": differs}

    return compare


def _recall(expected: Ids, found: Ids) -> float:
    common = sum(len(np.intersect1d(*pair)) for pair in zip(expected, found, strict=True))
    return common / expected.size


def _differences(problem: Problem, name: str, expected: Ids, found: Ids) -> int:
    ordered = np.sort(found, axis=1)
    if found.size and (ordered[:, 0].min() < 0 or ordered[:, -1].max() >= len(problem.docs)):
        raise PeerError(f"{name}: names a document that is not one of the {len(problem.docs)}")
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        row = int((ordered[:, 1:] == ordered[:, :-1]).any(axis=1).argmax())
        raise PeerError(f"{name}: names a document twice for query {row}")
    rows, places = np.nonzero(expected != found)
    own, lengths = pair_scores(problem.queries, problem.docs, rows, expected[rows, places], problem.metric)
    other, other_lengths = pair_scores(problem.queries, problem.docs, rows, found[rows, places], problem.metric)
    far = np.abs(own - other) > rounding(problem.docs.shape[1]) * np.maximum(lengths, other_lengths)
    if far.any():
        i = int(far.argmax())
        row, place = rows[i], places[i]
        raise PeerError(
            f"{name}: query {row} place {place} names document {found[row, place]} of score {other[i]:.7g} "
            f"but {OURS} names {expected[row, place]} of score {own[i]:.7g}, which is more than rounding"
        )
    return len(rows)
