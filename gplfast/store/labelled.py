"""Queries whose positives are known: what mining asks of them, and those that a user labelled."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gplfast.errors import DTypeError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Positives(Protocol):
    """Queries and the rows of their positive passages (`GeneratedQueries` and `LabelledQueries` are such)."""

    @property
    def ids(self) -> Sequence[str]:
        """n_queries different ids."""

    @property
    def texts(self) -> Sequence[str]:
        """n_queries texts."""

    @property
    def positives(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """CSR (indptr int64 (n_queries + 1,), rows int64 (n,)): passage rows, each once per query."""

    @property
    def never_negative(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """CSR as `positives`: these, and what else must not be a negative."""

    def __len__(self) -> int:
        """How many queries."""


@dataclass(frozen=True, eq=False)
class LabelledQueries:
    """Queries with any number of positives each.

    Attributes:
        ids: n_queries different ids.
        texts: n_queries texts.
        indptr: int64 (n_queries + 1,); the positives of query i are `rows[indptr[i]:indptr[i + 1]]`.
        rows: int64 (n,), passage rows, each once per query.
    """

    ids: list[str]
    texts: list[str]
    indptr: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check that the parts fit each other.

        Raises:
            DTypeError: indptr or rows is not int64 (n,).
            ShapeError: The lengths differ, indptr falls, or a query names a passage twice.
        """
        for what, array in (("indptr", self.indptr), ("rows", self.rows)):
            if array.dtype != np.int64 or array.ndim != 1:
                raise DTypeError(f"labelled queries: {what} is {array.dtype} {array.shape} but int64 (n,) is needed")
        n = len(self.texts)
        if len(self.ids) != n or len(self.indptr) != n + 1:
            raise ShapeError(
                f"labelled queries: {n} texts but {len(self.ids)} ids and indptr of {len(self.indptr)}; "
                f"give {n} ids and indptr of {n + 1}"
            )
        if self.indptr[0] != 0 or self.indptr[-1] != len(self.rows) or (np.diff(self.indptr) < 0).any():
            raise ShapeError(f"labelled queries: indptr must rise from 0 to {len(self.rows)}")
        owners = np.repeat(np.arange(n), np.diff(self.indptr))
        order = np.lexsort((self.rows, owners))
        again = (np.diff(self.rows[order]) == 0) & (np.diff(owners[order]) == 0)
        if again.any():
            raise ShapeError("labelled queries: a query names the same passage twice; give each once")

    def __len__(self) -> int:
        """How many queries."""
        return len(self.texts)

    @property
    def positives(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """CSR (indptr, rows)."""
        return self.indptr, self.rows

    @property
    def never_negative(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """CSR (indptr, rows): the positives."""
        return self.positives

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over ids, texts and positives: what a manifest names them by."""
        digest = hashlib.sha256(b"gplfast-labelled-1")
        for part in (*self.ids, *self.texts):
            content = part.encode("utf-8")
            digest.update(len(content).to_bytes(8, "little") + content)
        for array in (self.indptr, self.rows):
            digest.update(len(array).to_bytes(8, "little") + array.astype("<i8").tobytes())
        return digest.hexdigest()
