"""Near duplicates: ours, and faiss, torch, NumPy and sentence-transformers finding the same pairs."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gplfast.bench import workloads
from gplfast.bench.harness import OURS, Peer, PeerError, System
from gplfast.bench.scores import pair_scores, rounding
from gplfast.ops import dedup, forced_isa

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gplfast.ops import Metric

    Ids = NDArray[np.int64]
    # (first rows, second rows), the first below the second, of the pairs that reach a threshold
    Pairs = tuple[Ids, Ids]

Rule = Literal["components", "greedy", "any-earlier"]
BLOCKS = (256, 2048)  # rows of a block of scores; both are tried
PARAPHRASE_TOP_K = 100  # sentence-transformers keeps this many neighbours of a row at most


@dataclasses.dataclass(frozen=True)
class Problem:
    """One search for near duplicates.

    Attributes:
        docs: (n_docs, dim) float32.
        threshold: A score.
        metric: "cosine" or "ip".
        rule: As `gplfast.dedup` takes it.
        threads: Of every system.
    """

    docs: NDArray[np.float32]
    threshold: float
    metric: Metric
    rule: Rule
    threads: int

    @property
    def shape(self) -> dict[str, int | float | str]:
        """As the result names it."""
        n_docs, dim = self.docs.shape
        return {"n_docs": n_docs, "dim": dim, "threshold": self.threshold, "rule": self.rule}

    @property
    def flop(self) -> float:
        """Of comparing every pair once, a multiply-add counting two."""
        n_docs, dim = map(int, self.docs.shape)
        return float(n_docs) * (n_docs - 1) * dim

    def normalised(self) -> Problem:
        """The same pairs by inner product, for peers that have no cosine; the time of this is not counted."""
        if self.metric == "ip":
            return self
        return dataclasses.replace(self, docs=workloads.unit(self.docs), metric="ip")


@dataclasses.dataclass(frozen=True)
class Found:
    """A result: who stays for each row, of how many pairs; and a peer's pairs at any threshold, for the check."""

    representative: Ids
    n_pairs: int
    pairs: Callable[[float], Pairs] | None = None


def ours(problem: Problem, isa: str = "") -> System:
    """Our dedup; with `isa` on that instruction set."""

    def call() -> Found:
        with forced_isa(isa):
            found = dedup(
                problem.docs,
                problem.threshold,
                metric=problem.metric,
                rule=problem.rule,
                threads=problem.threads,
            )
        return Found(found.representative, found.n_pairs)

    return System(f"{OURS} {isa}".strip(), {isa: call})


def _system(
    name: str, problem: Problem, settings: dict[str, Callable[[float], Pairs]], *, exact: bool = True
) -> System:
    """A peer finds pairs; the rule is applied to them with NumPy."""

    def call(pairs: Callable[[float], Pairs]) -> Found:
        first, second = pairs(float(np.float32(problem.threshold)))
        return Found(representatives(len(problem.docs), first, second, problem.rule), len(first), pairs)

    return System(name, {setting: partial(call, pairs) for setting, pairs in settings.items()}, exact=exact)


def _faiss(problem: Problem) -> System:
    import faiss

    index = faiss.IndexFlatIP(problem.docs.shape[1])
    index.add(problem.docs)

    def pairs(threshold: float) -> Pairs:
        above = float(np.nextafter(np.float32(threshold), np.float32(-np.inf)))  # it takes what is above
        limits, _, found = index.range_search(problem.docs, above)
        rows = np.repeat(np.arange(len(problem.docs)), np.diff(limits).astype(np.int64))
        later = found > rows
        return rows[later], found[later]

    return _system("faiss", problem, {"range_search": pairs})


def _torch(problem: Problem) -> System:
    import torch

    docs = workloads.as_tensor(problem.docs)

    @torch.inference_mode()
    def pairs(block: int, threshold: float) -> Pairs:
        parts = []
        for start in range(0, len(docs), block):
            part = docs[start : start + block]
            near = torch.nonzero(torch.triu(part @ docs[start:].T >= threshold, diagonal=1))
            parts.append(near + start)
        found = torch.cat(parts).numpy()
        return found[:, 0], found[:, 1]

    return _system("torch", problem, _blocks(pairs))


def _numpy(problem: Problem) -> System:
    docs = problem.docs

    def pairs(block: int, threshold: float) -> Pairs:
        rows, columns = [], []
        for start in range(0, len(docs), block):
            near = docs[start : start + block] @ docs[start:].T >= np.float32(threshold)
            row, column = np.nonzero(near)
            later = column > row
            rows.append(row[later] + start)
            columns.append(column[later] + start)
        return np.concatenate(rows), np.concatenate(columns)

    return _system("numpy", problem, _blocks(pairs))


def _blocks(pairs: Callable[[int, float], Pairs]) -> dict[str, Callable[[float], Pairs]]:
    return {f"{block} rows a block": partial(pairs, block) for block in BLOCKS}


def _sentence_transformers(problem: Problem) -> System:
    from sentence_transformers import util

    docs = workloads.as_tensor(problem.docs)

    def pairs(threshold: float) -> Pairs:
        found = util.paraphrase_mining_embeddings(
            docs,
            query_chunk_size=BLOCKS[1],
            corpus_chunk_size=max(len(docs), 1),
            max_pairs=PARAPHRASE_TOP_K * len(docs),
            top_k=min(PARAPHRASE_TOP_K, len(docs) - 1),
            score_function=util.dot_score,
        )
        rows = np.array([sorted(pair) for score, *pair in found if score >= threshold], np.int64).reshape(-1, 2)
        return rows[:, 0], rows[:, 1]

    return _system("sentence-transformers", problem, {"paraphrase_mining": pairs}, exact=False)


PEERS: Sequence[Peer] = (
    Peer("faiss", ("faiss", "threadpoolctl"), _faiss, copies=1.0),
    Peer("torch", ("torch",), _torch),
    Peer("sentence-transformers", ("sentence_transformers",), _sentence_transformers),
    Peer("numpy", ("threadpoolctl",), _numpy),
)


def representatives(n_docs: int, first: Ids, second: Ids, rule: Rule) -> Ids:
    """(n_docs,) int64: who stays for each row, from the similar pairs (first < second), as `gplfast.dedup` has it."""
    if rule == "components":
        return _components(n_docs, first, second)
    order = np.lexsort((first, second))
    first, second = first[order], second[order]
    if rule == "any-earlier":
        result = np.arange(n_docs)
        later, at = np.unique(second, return_index=True)
        result[later] = first[at]
        while not np.array_equal(result, result[result]):
            result = result[result]
        return result
    return _greedy(n_docs, first, second)


def _components(n_docs: int, first: Ids, second: Ids) -> Ids:
    """The lowest row of each component: roots of pairs are joined, and paths shortened, until both ends agree."""
    label = np.arange(n_docs)
    while True:
        one, other = label[first], label[second]  # the roots of what is found so far
        if np.array_equal(one, other):
            return label
        np.minimum.at(label, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(label, label[label]):
            label = label[label]


def _greedy(n_docs: int, first: Ids, second: Ids) -> Ids:
    """Rounds: a row stays once all similar rows before it have gone, and goes once one of them stays."""
    stays, goes = np.zeros(n_docs, bool), np.zeros(n_docs, bool)
    while not (stays | goes).all():
        waits = np.zeros(n_docs, bool)
        waits[second[~goes[first]]] = True
        stays |= ~waits & ~goes
        goes[second[stays[first]]] = True
    result = np.arange(n_docs)
    of_staying = stays[first] & goes[second]
    later, at = np.unique(second[of_staying], return_index=True)
    result[later] = first[of_staying][at]
    return result


def check(problem: Problem) -> Callable[[System, Any, Any], dict[str, float]]:
    """What another's result has in common with ours.

    A peer's pairs just below the threshold are scored again in float64: those that reach it must give our answer, and
    the peer's own number of pairs may differ by those that rounding can move. An approximate peer shows its recall.
    """
    peers = problem.normalised()
    threshold, slack = float(np.float32(problem.threshold)), rounding(problem.docs.shape[1])
    if problem.metric == "ip":
        slack *= float(np.linalg.norm(problem.docs, axis=1).max(initial=0.0)) ** 2

    def compare(system: System, expected: Found, found: Found) -> dict[str, float]:
        if found.pairs is None:
            if found.n_pairs != expected.n_pairs or (found.representative != expected.representative).any():
                raise PeerError(f"{system.name}: its answer differs from {OURS}, which must be the same; report this")
            return {"pairs_that_differ": 0}
        if not system.exact:
            return {"recall": found.n_pairs / expected.n_pairs if expected.n_pairs else 1.0}
        first, second = found.pairs(threshold - 2 * slack)
        scores = pair_scores(problem.docs, problem.docs, first, second, problem.metric)[0]
        near = int((np.abs(scores - threshold) <= 2 * slack).sum())
        reach = scores.astype(np.float32) >= np.float32(threshold)
        wanted = representatives(len(peers.docs), first[reach], second[reach], problem.rule)
        if int(reach.sum()) != expected.n_pairs or (wanted != expected.representative).any():
            raise PeerError(
                f"{system.name}: finds {int(reach.sum())} pairs that reach {threshold:.7g} in float64 but {OURS} finds "
                f"{expected.n_pairs}, or other rows stay"
            )
        differs = abs(found.n_pairs - expected.n_pairs)
        if differs > near or (not near and (found.representative != expected.representative).any()):
            raise PeerError(f"{system.name}: {differs} pairs differ from {OURS} but rounding can move {near}")
        return {"pairs_that_differ": differs}

    return compare
