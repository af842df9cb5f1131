"""Mined negatives: for each query and retriever, document rows in rank order with their scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gplfast.errors import ArtifactError, DTypeError, ShapeError
from gplfast.store.atomic import read_parquet, write_parquet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

_NAMES = b"gplfast.retrievers"
_POSITIVE = "positive"
_PROMOTED = "promoted"


@dataclass(frozen=True, eq=False)
class RankedLists:
    """Ragged lists of one retriever.

    Attributes:
        indptr: int64 (n_queries + 1,); list i is `docs[indptr[i]:indptr[i + 1]]`.
        docs: int64 (n,), document rows in rank order.
        scores: float32 (n,), or None when they are not known (lists read from another tool).
    """

    indptr: NDArray[np.int64]
    docs: NDArray[np.int64]
    scores: NDArray[np.float32] | None = None

    def __getitem__(self, query: int) -> NDArray[np.int64]:
        """The documents of one query, best first."""
        return self.docs[self.indptr[query] : self.indptr[query + 1]]


@dataclass(frozen=True, eq=False)
class Negatives:
    """Negatives of all queries.

    Attributes:
        queries: int64 (n_queries,), the query row of each list.
        lists: retriever name (or another source's) to its lists, in the order in which they were asked for.
        positives: int64 (n_queries,), the hard positive of each query (-1: it has none); None: all of them count.
        promoted: what the teacher takes for positives too, further positives of their query; None: nothing is.
    """

    queries: NDArray[np.int64]
    lists: dict[str, RankedLists]
    positives: NDArray[np.int64] | None = None
    promoted: RankedLists | None = None

    def __post_init__(self) -> None:
        """Check that every retriever has a list for each query."""
        more = {} if self.promoted is None else {_PROMOTED: self.promoted}
        for name, ranked in {**self.lists, **more}.items():
            arrays = {"indptr": ranked.indptr, "docs": ranked.docs, "queries": self.queries}
            for what, array in arrays.items():
                if array.dtype != np.int64 or array.ndim != 1:
                    raise DTypeError(
                        f"negatives of {name!r}: {what} is {array.dtype} {array.shape} but int64 (n,) is needed"
                    )
            if len(ranked.indptr) != len(self.queries) + 1:
                raise ShapeError(
                    f"negatives of {name!r}: indptr has {len(ranked.indptr)} items but {len(self.queries)} queries "
                    f"need {len(self.queries) + 1}"
                )
            if ranked.indptr[0] != 0 or ranked.indptr[-1] != len(ranked.docs) or (np.diff(ranked.indptr) < 0).any():
                raise ShapeError(f"negatives of {name!r}: indptr must rise from 0 to {len(ranked.docs)}")
            if ranked.scores is not None and ranked.scores.shape != ranked.docs.shape:
                raise ShapeError(
                    f"negatives of {name!r}: scores has shape {ranked.scores.shape} but docs {ranked.docs.shape}"
                )

    @classmethod
    def from_padded(
        cls,
        queries: NDArray[np.int64],
        hits: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float32] | None]],
        positives: NDArray[np.int64] | None = None,
    ) -> Negatives:
        """Build from the padded output of a search.

        Args:
            queries: int64 (n_queries,), query rows.
            hits: retriever name to (ids int64 (n_queries, k), scores float32 (n_queries, k) or None, not known);
                id -1 is padding.
            positives: int64 (n_queries,), hard positives.
        """
        lists = {}
        for name, (ids, scores) in hits.items():
            shape = ids.shape if scores is None else scores.shape
            if ids.shape != shape or ids.ndim != 2 or len(ids) != len(queries):
                raise ShapeError(
                    f"negatives of {name!r}: ids have shape {ids.shape}, scores {shape}, for {len(queries)} "
                    "queries; give (n_queries, k) twice"
                )
            real = ids >= 0
            indptr = np.concatenate([[0], np.cumsum(real.sum(axis=1))]).astype(np.int64)
            known = None if scores is None else scores[real].astype(np.float32)
            lists[name] = RankedLists(indptr, ids[real].astype(np.int64), known)
        return cls(np.asarray(queries, np.int64), lists, positives)

    def __len__(self) -> int:
        """How many queries."""
        return len(self.queries)

    @property
    def retrievers(self) -> list[str]:
        """The names, in order."""
        return list(self.lists)

    def union(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The different documents of each query over all retrievers.

        Returns:
            CSR (indptr int64 (n_queries + 1,), docs int64 (n,)); documents ascend within a query, so a draw by
            position depends on the set alone and not on the order of retrievers.
        """
        owners = [np.repeat(np.arange(len(self)), np.diff(ranked.indptr)) for ranked in self.lists.values()]
        docs = [ranked.docs for ranked in self.lists.values()]
        nothing = [np.empty(0, np.int64)]
        return different(np.concatenate([*owners, *nothing]), np.concatenate([*docs, *nothing]), len(self))

    def table(self) -> pa.Table:
        """As Arrow.

        `query` and `positive` (if any) int64, `docs/<retriever>` and `promoted` (if any) list<int64>, `scores/…`
        list<float32>.
        """
        import pyarrow as pa

        columns = {"query": pa.array(self.queries)}
        if self.positives is not None:
            columns[_POSITIVE] = pa.array(self.positives)
        if self.promoted is not None:
            columns[_PROMOTED] = pa.LargeListArray.from_arrays(
                pa.array(self.promoted.indptr), pa.array(self.promoted.docs)
            )
        for name, ranked in self.lists.items():
            indptr = pa.array(ranked.indptr)
            columns[f"docs/{name}"] = pa.LargeListArray.from_arrays(indptr, pa.array(ranked.docs))
            if ranked.scores is not None:
                scores = pa.array(ranked.scores, pa.float32())
                columns[f"scores/{name}"] = pa.LargeListArray.from_arrays(indptr, scores)
        return pa.table(columns).replace_schema_metadata({_NAMES: json.dumps(self.retrievers)})

    def write(self, path: str | Path) -> None:
        """Write Parquet atomically; equal negatives give equal bytes."""
        write_parquet(path, self.table())

    @classmethod
    def read(cls, path: str | Path, *, n_queries: int | None = None, n_docs: int | None = None) -> Negatives:
        """Read what `write` wrote.

        Args:
            path: the file.
            n_queries: when given, query rows must be below it.
            n_docs: when given, document rows must be below it.

        Raises:
            ArtifactError: when the file is damaged, is something else, or names rows that do not exist.
        """
        return cls.from_table(read_parquet(path), str(path), n_queries=n_queries, n_docs=n_docs)

    @classmethod
    def from_table(
        cls, table: pa.Table, name: str = "negatives", *, n_queries: int | None = None, n_docs: int | None = None
    ) -> Negatives:
        """Build from the table of `table()`; `name` is for errors. Shards are joined with pyarrow.concat_tables."""
        metadata = table.schema.metadata or {}
        try:
            names = json.loads(metadata[_NAMES])
            queries = table["query"].to_numpy()
            lists = {retriever: _ranked(table, f"docs/{retriever}", f"scores/{retriever}") for retriever in names}
            positives = table[_POSITIVE].to_numpy() if _POSITIVE in table.column_names else None
            promoted = _ranked(table, _PROMOTED) if _PROMOTED in table.column_names else None
            found = cls(queries, lists, positives, promoted)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{name} does not hold negatives ({error}); delete it to make it again") from error
        _check_rows(name, "query", queries, n_queries)
        for retriever, ranked in lists.items():
            _check_rows(name, f"document of {retriever!r}", ranked.docs, n_docs)
        if promoted is not None:
            _check_rows(name, "promoted document", promoted.docs, n_docs)
        return found


def different(
    owners: NDArray[np.int64], rows: NDArray[np.int64], n_lists: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """CSR of some (list, row) pairs, each once, rows ascending within a list.

    Args:
        owners: int64 (n,), below n_lists, in any order.
        rows: int64 (n,), not negative.
        n_lists: How many lists.

    Returns:
        indptr int64 (n_lists + 1,) and rows int64.
    """
    width = 1 + int(rows.max(initial=0))
    # One number a pair, sorted: 50 times as fast as np.unique, of pairs or of these.
    keys = np.sort(owners * width + rows)
    keys = keys[np.diff(keys, prepend=-1) > 0]
    return np.searchsorted(keys, np.arange(n_lists + 1) * width), keys % width


def _ranked(table: pa.Table, column: str, scores: str = "") -> RankedLists:
    docs = table[column]
    lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in docs.chunks]
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))] if lengths else [[0]]).astype(np.int64)
    values = _flat(table[scores]).astype(np.float32) if scores in table.column_names else None
    return RankedLists(indptr, _flat(docs).astype(np.int64), values)


def _flat(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """The values of a list column, one after the other, in the column's own type."""
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty(0)


def _check_rows(name: str, what: str, rows: NDArray[np.int64], n: int | None) -> None:
    if len(rows) and (rows.min() < 0 or (n is not None and rows.max() >= n)):
        bad = int(rows.min()) if rows.min() < 0 else int(rows.max())
        raise ArtifactError(f"{name}: {what} row {bad} but there are {n}; it belongs to another collection")
