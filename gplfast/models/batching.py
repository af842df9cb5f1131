"""Batches of rows of like length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gplfast.errors import ConfigError

Progress = Callable[[int, int], None]

# Texts tokenised at a time: sorting by length pays within such a chunk, and memory stays flat however many texts come.
CHUNK_TEXTS = 16_384


def chunks(n_texts: int) -> Iterator[slice]:
    """Consecutive slices of at most CHUNK_TEXTS."""
    for start in range(0, n_texts, CHUNK_TEXTS):
        yield slice(start, min(start + CHUNK_TEXTS, n_texts))


def length_sorted(lengths: np.ndarray[Any, Any], batch_size: int) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    """Row numbers in batches, longest first (what does not fit into memory shows at once), ties in input order.

    Raises:
        ConfigError: batch_size below 1.
    """
    if batch_size < 1:
        message = f"batch_size is {batch_size} but must be at least 1"
        raise ConfigError(message)
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def pad(rows: Sequence[np.ndarray[Any, np.dtype[np.int32]]], value: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """(n_rows, longest) int32, padded on the right."""
    padded = np.full((len(rows), max(len(row) for row in rows)), value, np.int32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def mask_of(rows: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """(n_rows, longest) int32: 1 for tokens, 0 for padding."""
    lengths = np.array([len(row) for row in rows])
    return (np.arange(lengths.max())[None, :] < lengths[:, None]).astype(np.int32)
