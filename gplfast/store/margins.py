"""Training rows: a query, a positive, a negative, and the teacher's margin between the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gplfast.errors import ArtifactError

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
        negatives: int64 (n,), passage rows.
        margins: float32 (n,), score of (query, positive) minus score of (query, negative), raw logits.
    """

    queries: NDArray[np.int64]
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    margins: NDArray[np.float32]

    def __len__(self) -> int:
        """How many rows."""
        return len(self.queries)

    def table(self) -> pa.Table:
        """As Arrow: `query`, `positive`, `negative` int64 and `margin` float32."""
        import pyarrow as pa

        columns = dict(zip(_ROWS, (self.queries, self.positives, self.negatives), strict=True))
        return pa.table({**columns, "margin": pa.array(self.margins, pa.float32())})

    @classmethod
    def from_table(cls, table: pa.Table, name: str, *, n_queries: int, n_passages: int) -> Margins:
        """Read what `table` gave.

        Raises:
            ArtifactError: when it is something else, or names rows that do not exist.
        """
        if table.column_names != [*_ROWS, "margin"]:
            raise ArtifactError(f"{name}: has columns {table.column_names} but must have {', '.join(_ROWS)}, margin")
        rows = [table[column].to_numpy().astype(np.int64) for column in _ROWS]
        for column, values, limit in zip(_ROWS, rows, (n_queries, n_passages, n_passages), strict=True):
            if len(values) and not 0 <= values.min() <= values.max() < limit:
                raise ArtifactError(f"{name}: names {column} row {values.max()} but there are {limit}; delete it")
        return cls(rows[0], rows[1], rows[2], table["margin"].to_numpy().astype(np.float32))
