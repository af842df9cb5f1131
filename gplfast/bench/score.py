"""Scoring pairs: our cross-encoder, and that of sentence-transformers on the same pairs, tokenising included."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.bench.agreement import spearman
from gplfast.bench.checkpoints import FP32, system_name
from gplfast.bench.harness import Peer, PeerError, System

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gplfast.bench.checkpoints import Served

    Scores = NDArray[np.float32]

BATCHES = (32, 64, 128)  # pairs of a batch of a peer; all are tried
# Logits of two float32 networks may be this far apart, relative to the largest (or 1).
ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True)
class Problem:
    """Pairs to score.

    Attributes:
        served: The checkpoint.
        queries: n texts.
        passages: n texts.
        lengths: (n,) tokens of each pair, as the network reads them.
        max_tokens: Longer pairs are cut.
    """

    served: Served
    queries: Sequence[str]
    passages: Sequence[str]
    lengths: NDArray[np.int64]
    max_tokens: int

    @property
    def shape(self) -> dict[str, Any]:
        """As the result names it."""
        return {
            "model": self.served.name,
            "n_pairs": len(self.queries),
            "mean_tokens": float(self.lengths.mean()),
            "p95_tokens": float(np.percentile(self.lengths, 95)),
        }


def ours(problem: Problem, precision: str) -> System:
    """Our teacher in one precision."""
    model = problem.served.open(precision)
    name = system_name(precision)
    call = partial(model.score, problem.queries, problem.passages)
    return System(name, {precision: call}, exact=precision == FP32)


def _fp32(problem: Problem) -> System:
    return _system("sentence-transformers", problem, "float32")


def _bf16(problem: Problem) -> System:
    return _system("sentence-transformers-bf16", problem, "bfloat16")


def _system(name: str, problem: Problem, dtype: str) -> System:
    import torch
    from sentence_transformers import CrossEncoder

    directory = str(problem.served.directory)
    model = CrossEncoder(directory, device="cpu", max_length=problem.max_tokens, activation_fn=torch.nn.Identity())
    model.to(getattr(torch, dtype))
    pairs = list(zip(problem.queries, problem.passages, strict=True))

    def call(batch_size: int) -> Scores:
        scores = model.predict(pairs, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
        return np.asarray(scores.float().numpy(), np.float32).reshape(len(pairs))

    return System(
        name, {f"{size} pairs a batch": partial(call, size) for size in sizes(len(pairs))}, exact=dtype == "float32"
    )


def sizes(n: int) -> list[int]:
    """The sizes of batches that differ for n rows."""
    return [size for i, size in enumerate(BATCHES) if i == 0 or BATCHES[i - 1] < n]


PEERS: Sequence[Peer] = (
    Peer("sentence-transformers", ("sentence_transformers", "torch"), _fp32),
    Peer("sentence-transformers-bf16", ("sentence_transformers", "torch"), _bf16),
)


def check(system: System, expected: Any, found: Any) -> dict[str, float]:
    """Rank correlation with, and largest distance from, our scores in float32; of a float32 system rounding at most."""
    if found.shape != expected.shape:
        raise PeerError(f"{system.name}: scores have shape {found.shape} but {expected.shape} is expected")
    finite = np.isfinite(found)
    if not finite.all():
        raise PeerError(f"{system.name}: pair {int(finite.argmin())} has the score {found[finite.argmin()]}")
    differences = np.abs(found.astype(np.float64) - expected)
    largest = float(differences.max())
    if system.exact and largest > ROUNDING * max(1.0, float(np.abs(expected).max())):
        pair = int(differences.argmax())
        raise PeerError(
            f"{system.name}: pair {pair} has the score {found[pair]:.7g} but {expected[pair]:.7g} in float32 is ours, "
            "which is more than rounding"
        )
    return {"spearman": spearman(expected, found), "largest_difference": largest}
