"""Choosing the next token: temperature, top-k, top-p, with noise from a counter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gplfast.errors import ConfigError

_STAGE_GENERATE = 0x67656E6572617465  # "generate", the second half of the Philox key
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Sampling:
    """How queries are drawn. The defaults are GPL's (top-k 25, top-p 0.95)."""

    top_k: int = 25
    top_p: float = 0.95
    temperature: float = 1.0
    max_new_tokens: int = 64
    greedy: bool = False

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: a value out of range.
        """
        checks = (
            (self.top_k >= 0, "top_k", "at least 0 (0: no limit)"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1"),
            (self.temperature > 0, "temperature", "above 0 (use greedy for the most likely token)"),
            (self.max_new_tokens >= 1, "max_new_tokens", "at least 1"),
        )
        for fine, name, rule in checks:
            if not fine:
                message = f"sampling: {name} is {getattr(self, name)} but must be {rule}"
                raise ConfigError(message)


def uniforms(seed: int, item: int, sample: int, n_steps: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One number in [0, 1) per step, from Philox keyed by (seed, stage) with (item, sample) in its counter.

    They depend on nothing else, so the same queries come in any batch and any order.

    Args:
        seed: 0 <= seed < 2**64.
        item: number of the passage, as the caller counts them.
        sample: number of the query within the passage.
        n_steps: tokens at most.
    """
    key, counter = np.array([seed, _STAGE_GENERATE], np.uint64), np.array([0, sample, item, 0], np.uint64)
    bits = np.random.Philox(key=key, counter=counter)
    raw = np.asarray(bits.random_raw(n_steps), np.uint64)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def keep_mask(logits: Floats, top_p: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of the best logits nucleus sampling keeps (Holtzman et al. 2020, as transformers' warper does it).

    The smallest set of most likely tokens with a total probability of at least `top_p`.

    Args:
        logits: (n_rows, n_best), descending, after temperature; probabilities are taken among these alone.
        top_p: 1 keeps everything.

    Returns:
        (n_rows, n_best) bool; the first column is always kept.
    """
    probabilities = softmax(logits)
    before = np.cumsum(probabilities, axis=1) - probabilities
    kept = before < top_p if top_p < 1 else np.ones(logits.shape, bool)
    kept[:, 0] = True
    return kept


def softmax(logits: Floats) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Row-wise softmax in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    result: np.ndarray[Any, np.dtype[np.float64]] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result


def choose(
    logits: Floats, tokens: np.ndarray[Any, np.dtype[np.int64]], noise: Floats, sampling: Sampling
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The next token of each row.

    Args:
        logits: (n_rows, n_best) float32, descending; n_best is sampling.top_k, or the whole vocabulary for top_k 0.
        tokens: (n_rows, n_best) int64, whose logits they are.
        noise: (n_rows,) float64 in [0, 1), the inverse-CDF draw.
        sampling: the rule.

    Returns:
        (n_rows,) int64. Kept tokens are laid out by token id, not by rank: two near-equal logits that change places in
        rounding then move the draw by their difference, not by their probability.
    """
    if sampling.greedy:
        return tokens[:, 0]
    warm = logits.astype(np.float64) / sampling.temperature
    weights = np.where(keep_mask(warm, sampling.top_p), softmax(warm), 0.0)
    order = np.argsort(tokens, axis=1)
    cumulative = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    index = (cumulative <= (noise * cumulative[:, -1])[:, None]).sum(axis=1)
    chosen: np.ndarray[Any, np.dtype[np.int64]] = np.take_along_axis(
        tokens, np.take_along_axis(order, index[:, None], 1), 1
    )
    return chosen[:, 0]
