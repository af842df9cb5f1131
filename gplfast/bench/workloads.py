"""What is searched, deduplicated and subtracted: drawn, or the rows of the user's own .npy file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import DataError, DTypeError, ShapeError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

N_CENTRES = 2000
ROWS_AT_ONCE = 20_000  # noise and temporaries of a block, not of all documents


def read_rows(path: Path) -> NDArray[np.float32]:
    """Memory-map the rows of an .npy file.

    Raises:
        DataError: It is no .npy file.
        DTypeError: Not float32, or not in C order.
        ShapeError: Not a matrix with rows and columns.
    """
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: is no .npy file that can be mapped ({error}); write it with np.save") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or 0 in rows.shape:
        raise ShapeError(f"{path}: has shape {getattr(rows, 'shape', None)} but needs rows and columns of vectors")
    if rows.dtype != np.float32 or not rows.flags.c_contiguous:
        raise DTypeError(
            f"{path}: has dtype {rows.dtype} but float32 in C order is needed; "
            "call np.save(path, np.ascontiguousarray(rows, np.float32))"
        )
    return rows


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1, in a new array; zero rows stay."""
    result = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        norms = np.linalg.norm(part, axis=1, keepdims=True)
        np.divide(part, np.where(norms == 0, 1, norms), out=result[start : start + ROWS_AT_ONCE])
    return result


def as_tensor(rows: NDArray[np.float32]) -> Any:
    """The same memory as a torch tensor."""
    import warnings

    import torch

    with warnings.catch_warnings():  # a memory map cannot be written to, and is not
        warnings.simplefilter("ignore")
        return torch.from_numpy(rows)


def clustered(n_docs: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors around 2,000 centres, as embeddings of topics are: (n_docs, dim) float32."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((N_CENTRES, dim), dtype=np.float32)
    return _around(centres, 0.7, n_docs, rng)


def tiled(rows: NDArray[np.float32], n_docs: int, seed: int) -> NDArray[np.float32]:
    """Rows of a file, drawn again with noise where more are asked for than it has: (n_docs, dim) float32."""
    spread = 0.3 * float(np.abs(rows[:100]).mean())
    return _around(rows, spread, n_docs, np.random.default_rng(seed))


def _around(centres: NDArray[np.float32], spread: float, n_docs: int, rng: np.random.Generator) -> NDArray[np.float32]:
    docs = np.empty((n_docs, centres.shape[1]), np.float32)
    for start in range(0, n_docs, ROWS_AT_ONCE):
        part = docs[start : start + ROWS_AT_ONCE]
        noise = rng.standard_normal(part.shape, dtype=np.float32)
        part[:] = unit(centres[rng.integers(0, len(centres), len(part))] + np.float32(spread) * noise)
    return docs


def queries_near(docs: NDArray[np.float32], n_queries: int, seed: int) -> NDArray[np.float32]:
    """Unit queries, each near a document: (n_queries, dim) float32."""
    rng = np.random.default_rng([seed, 1])
    near = docs[np.sort(rng.integers(0, len(docs), n_queries))]
    noise = rng.standard_normal(near.shape, dtype=np.float32) * np.float32(0.5 / near.shape[1] ** 0.5)
    return unit(unit(near) + noise)


def plant_copies(docs: NDArray[np.float32], share: float, seed: int) -> None:
    """Make a share of the rows near copies (cosine about 0.98) of rows before them, in place."""
    rng = np.random.default_rng([seed, 2])
    n_copies = int(share * len(docs))
    places = np.sort(rng.choice(np.arange(1, len(docs)), min(n_copies, len(docs) - 1), replace=False))
    for start in range(0, len(places), ROWS_AT_ONCE):
        part = places[start : start + ROWS_AT_ONCE]
        originals = docs[(rng.random(len(part)) * part).astype(np.int64)]
        noise = rng.standard_normal(originals.shape, dtype=np.float32) * np.float32(0.2 / docs.shape[1] ** 0.5)
        docs[part] = unit(originals + noise)


@dataclasses.dataclass(frozen=True)
class Lists:
    """Scores of positives and negatives, as `gplfast.margins` takes them; lists of the same length each."""

    positive_scores: NDArray[np.float32]
    positive_indptr: NDArray[np.int64]
    negative_scores: NDArray[np.float32]
    negative_indptr: NDArray[np.int64]

    @property
    def n_bytes(self) -> int:
        """All four arrays."""
        return sum(getattr(self, field.name).nbytes for field in dataclasses.fields(self))


def ragged_scores(n_queries: int, n_negatives: int, n_positives: int, seed: int) -> Lists:
    """Positives' scores uniform in 0.5 to 1, negatives' in 0 to 0.9."""
    rng = np.random.default_rng(seed)
    positives = rng.random(n_queries * n_positives, dtype=np.float32)
    negatives = rng.random(n_queries * n_negatives, dtype=np.float32)
    positives *= np.float32(0.5)
    positives += np.float32(0.5)
    negatives *= np.float32(0.9)
    steps = np.arange(n_queries + 1, dtype=np.int64)
    return Lists(positives, steps * n_positives, negatives, steps * n_negatives)
