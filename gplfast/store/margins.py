"""Training rows: a query, a positive, one or several negatives, and the teacher's margins over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import ArtifactError, ShapeError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_ROWS = ("query", "positive", "negative")


@dataclass(frozen=True, eq=False)
class Margins:
    """Rows in the order in which a student sees them.

    Attributes:
        queries: int64 (n,).
        positives: int64 (n,), passage rows.
        negatives: int64 (n,), passage rows; (n, n_negatives) where a row has several.
        margins: float32 of the same shape, score of (query, positive) minus score of (query, negative), raw logits.
    """

    queries: NDArray[np.int64]
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    margins: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Check that the columns fit together.

        Raises:
            ShapeError: They do not.
        """
        n, shapes = self.queries.shape, [self.positives.shape, self.negatives.shape[:1], self.margins.shape]
        if shapes != [n, n, self.negatives.shape] or len(n) != 1 or self.negatives.ndim > 2:
            raise ShapeError(
                f"margins: queries have shape {n}, positives {self.positives.shape}, negatives {self.negatives.shape} "
                f"and margins {self.margins.shape}; give (n,), (n,) and twice (n,) or (n, n_negatives)"
            )

    def __len__(self) -> int:
        """How many rows."""
        return len(self.queries)

    def one_negative_each(self) -> Margins:
        """The same rows with one negative each: a row of several becomes as many, one after the other."""
        if self.negatives.ndim == 1:
            return self
        n_negatives = self.negatives.shape[1]
        columns = np.repeat(self.queries, n_negatives), np.repeat(self.positives, n_negatives)
        return Margins(*columns, self.negatives.ravel(), self.margins.ravel())

    def table(self) -> pa.Table:
        """As Arrow: `query` and `positive` int64, `negative` int64 and `margin` float32, or lists of a fixed size."""
        import pyarrow as pa

        rows = [_column(values, pa.int64()) for values in (self.queries, self.positives, self.negatives)]
        return pa.table([*rows, _column(self.margins, pa.float32())], [*_ROWS, "margin"])

    @classmethod
    def from_table(cls, table: pa.Table, name: str, *, n_queries: int, n_passages: int) -> Margins:
        """Read what `table` gave.

        Raises:
            ArtifactError: when it is something else, or names rows that do not exist.
        """
        if table.column_names != [*_ROWS, "margin"]:
            raise ArtifactError(f"{name}: has columns {table.column_names} but must have {', '.join(_ROWS)}, margin")
        rows = [_values(table[column]).astype(np.int64) for column in _ROWS]
        for column, values, limit in zip(_ROWS, rows, (n_queries, n_passages, n_passages), strict=True):
            if values.size and not 0 <= values.min() <= values.max() < limit:
                raise ArtifactError(f"{name}: names {column} row {values.max()} but there are {limit}; delete it")
        return cls(rows[0], rows[1], rows[2], _values(table["margin"]).astype(np.float32))


def _column(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    flat = pa.array(values.ravel(), kind)
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _values(column: pa.ChunkedArray) -> NDArray[Any]:
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(column.type):
        values: NDArray[Any] = column.to_numpy()
        return values
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(parts or [np.empty(0)]).reshape(-1, column.type.list_size)
