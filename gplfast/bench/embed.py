"""Embedding texts: our bi-encoder, and that of sentence-transformers on the same texts, tokenising included."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.bench.agreement import cosines, neighbour_overlap
from gplfast.bench.checkpoints import FP32, system_name
from gplfast.bench.harness import Peer, PeerError, System
from gplfast.bench.score import sizes
from gplfast.config import EvaluateConfig
from gplfast.mining import dense
from gplfast.stages import evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gplfast.bench.checkpoints import Served
    from gplfast.stages.evaluate import Judged

    Vectors = NDArray[np.float32]

# Cosine of two float32 networks' embeddings of a text, at least.
ROUNDING = 1e-4


@dataclasses.dataclass(frozen=True)
class Problem:
    """Texts to embed.

    Attributes:
        served: The checkpoint.
        texts: n texts.
        lengths: (n,) tokens of each, as the network reads them.
        similarity: The model's, "cosine" or "dot".
        judged: Queries with judgements that quality is measured on, or None.
    """

    served: Served
    texts: Sequence[str]
    lengths: NDArray[np.int64]
    similarity: str
    judged: Judged | None

    @property
    def shape(self) -> dict[str, Any]:
        """As the result names it."""
        return {"model": self.served.name, "n_texts": len(self.texts), "mean_tokens": float(self.lengths.mean())}


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A result, and what gave it: of (texts, "query" or "document") their vectors."""

    vectors: Vectors
    embed: Callable[[Sequence[str], str], Vectors]


def ours(problem: Problem, precision: str) -> System:
    """Our bi-encoder in one precision."""
    model = problem.served.open(precision)

    def embed(texts: Sequence[str], kind: str) -> Vectors:
        vectors: Vectors = model.encode(texts, kind=kind)
        return vectors

    name = system_name(precision)
    return System(name, {precision: lambda: Embedded(embed(problem.texts, "document"), embed)}, exact=precision == FP32)


def _fp32(problem: Problem) -> System:
    return _system("sentence-transformers", problem, "float32")


def _bf16(problem: Problem) -> System:
    return _system("sentence-transformers-bf16", problem, "bfloat16")


def _system(name: str, problem: Problem, dtype: str) -> System:
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(problem.served.directory), device="cpu").to(getattr(torch, dtype))

    def embed(batch_size: int, texts: Sequence[str], kind: str) -> Vectors:
        encode = model.encode_query if kind == "query" else model.encode_document
        vectors = encode(list(texts), batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
        return np.ascontiguousarray(vectors.float().numpy())

    def call(batch_size: int) -> Embedded:
        own = partial(embed, batch_size)
        return Embedded(own(problem.texts, "document"), own)

    settings = {f"{size} texts a batch": partial(call, size) for size in sizes(len(problem.texts))}
    return System(name, settings, exact=dtype == "float32")


PEERS: Sequence[Peer] = (
    Peer("sentence-transformers", ("sentence_transformers", "torch"), _fp32),
    Peer("sentence-transformers-bf16", ("sentence_transformers", "torch"), _bf16),
)


def check(problem: Problem) -> Callable[[System, Any, Any], dict[str, float]]:
    """Cosines with our vectors in float32 and neighbours in common; with judgements nDCG@10 of each system."""
    quality: dict[str, float] = {}

    def compare(system: System, expected: Embedded, found: Embedded) -> dict[str, float]:
        if found.vectors.shape != expected.vectors.shape:
            raise PeerError(
                f"{system.name}: vectors have shape {found.vectors.shape} but {expected.vectors.shape} is expected"
            )
        near = cosines(expected.vectors, found.vectors)
        if system.exact and not near.min() >= 1 - ROUNDING:
            raise PeerError(
                f"{system.name}: the vector of text {int(near.argmin())} has a cosine of {near.min():.6f} with ours in "
                "float32, which is more than rounding"
            )
        overlap = neighbour_overlap(expected.vectors, found.vectors, problem.served.threads)
        agreement = {"cosine_min": float(near.min()), "cosine_mean": float(near.mean()), "top_10_overlap": overlap}
        if problem.judged is not None:
            if system.name not in quality:  # once, not for each setting
                quality[system.name] = ndcg(problem, problem.judged, found.embed)
            agreement["nDCG@10"] = quality[system.name]
        return agreement

    return compare


def ndcg(problem: Problem, judged: Judged, embed: Callable[[Sequence[str], str], Vectors]) -> float:
    """nDCG@10 of the judged queries over the whole corpus.

    Raises:
        MissingExtraError: ir-measures is not installed.
    """
    config, threads = EvaluateConfig(), problem.served.threads
    docs, queries = embed(judged.corpus.texts(), "document"), embed(judged.texts, "query")
    depth, exclude = evaluate.depth(judged, config), evaluate.same_id(judged, config)
    ranking = dense.search(queries, docs, depth, metric=problem.similarity, exclude=exclude, threads=threads)
    run = evaluate.to_run(judged, ranking, config.top_k)
    return evaluate.measure(judged.qrels, run, judged.ids).means[evaluate.MAIN_METRIC]
