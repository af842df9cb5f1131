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
_SOURCE = "source"


@dataclass(frozen=True, eq=False)
class GeneratedQueries:
    """Queries in the order of their passages.

    Attributes:
        texts: n_queries texts.
        passages: int64 (n_queries,), the row of each query's passage, its only known positive.
        sources: int64 (n_queries,), the row of the passage that each query was cut from, where that is another one: it
            holds the query word for word, so it is no negative either. None where queries come from their passages.
    """

    texts: list[str]
    passages: NDArray[np.int64]
    sources: NDArray[np.int64] | None = None

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

    @property
    def never_negative(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """CSR (indptr, rows): the passage, and the one that the query was cut from where that is another."""
        if self.sources is None:
            return self.positives
        both = np.stack([self.passages, self.sources], axis=1)
        differ = np.stack([np.ones(len(self), bool), self.passages != self.sources], axis=1)
        return np.concatenate([[0], np.cumsum(differ.sum(axis=1))]).astype(np.int64), both[differ]

    def as_queries(self) -> Queries:
        """The same as `Queries`, for writers of other formats."""
        return Queries.from_lists(self.ids, self.texts)

    def table(self) -> pa.Table:
        """As Arrow: `passage` int64, `text` large_string, and `source` int64 where there are sources."""
        import pyarrow as pa

        columns = {"passage": pa.array(self.passages), "text": pa.array(self.texts, pa.large_string())}
        return pa.table(columns if self.sources is None else {**columns, _SOURCE: pa.array(self.sources)})

    @classmethod
    def from_table(cls, table: pa.Table, name: str, *, n_passages: int) -> GeneratedQueries:
        """Read what `table` gave.

        Raises:
            ArtifactError: when it is something else, or names passages that do not exist.
        """
        if table.column_names not in (["passage", "text"], ["passage", "text", _SOURCE]):
            raise ArtifactError(f"{name}: has columns {table.column_names} but must have passage, text; delete it")
        passages, *sources = (
            table[column].to_numpy().astype(np.int64) for column in table.column_names if column != "text"
        )
        for rows in (passages, *sources):
            if len(rows) and not 0 <= rows.min() <= rows.max() < n_passages:
                raise ArtifactError(
                    f"{name}: names passage row {rows.max()} but the corpus has {n_passages}; delete it"
                )
        return cls(table["text"].to_pylist(), passages, *sources)
