"""Generated queries: a text and the row of the passage it was made from; ids are GPL's, genQ1 and on, in order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from gplfast.errors import ArtifactError
from gplfast.store.corpus import Queries

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

PREFIX = "genQ"


@dataclass(frozen=True, eq=False)
class GeneratedQueries:
    """Queries in the order of their passages.

    Attributes:
        texts: n_queries texts.
        passages: int64 (n_queries,), the row of each query's passage, its only known positive.
    """

    texts: list[str]
    passages: NDArray[np.int64]

    def __len__(self) -> int:
        """How many queries."""
        return len(self.texts)

    @cached_property
    def ids(self) -> list[str]:
        """genQ1, genQ2, … as GPL numbers them."""
        return [f"{PREFIX}{number}" for number in range(1, len(self.texts) + 1)]

    @property
    def positives(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """CSR (indptr, rows): one positive per query, its passage."""
        return np.arange(len(self) + 1, dtype=np.int64), self.passages

    def as_queries(self) -> Queries:
        """The same as `Queries`, for writers of other formats."""
        return Queries.from_lists(self.ids, self.texts)

    def table(self) -> pa.Table:
        """As Arrow: `passage` int64, `text` large_string."""
        import pyarrow as pa

        return pa.table({"passage": pa.array(self.passages), "text": pa.array(self.texts, pa.large_string())})

    @classmethod
    def from_table(cls, table: pa.Table, name: str, *, n_passages: int) -> GeneratedQueries:
        """Read what `table` gave.

        Raises:
            ArtifactError: when it is something else, or names passages that do not exist.
        """
        if table.column_names != ["passage", "text"]:
            raise ArtifactError(f"{name}: has columns {table.column_names} but must have passage, text; delete it")
        passages = table["passage"].to_numpy().astype(np.int64)
        if len(passages) and not 0 <= passages.min() <= passages.max() < n_passages:
            raise ArtifactError(
                f"{name}: names passage row {passages.max()} but the corpus has {n_passages}; delete it"
            )
        return cls(table["text"].to_pylist(), passages)
