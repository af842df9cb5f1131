"""Arrow string columns: built in batches, checked for duplicate ids, fingerprinted."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gplfast.errors import DataError

BATCH_ROWS = 65_536


class ColumnBuilder:
    """Collects rows of strings into an Arrow table, 65,536 rows of Python objects at a time.

    Remembers the line of each row (8 bytes), to name both lines of a duplicate id. The first column is the id.
    """

    def __init__(self, name: str, unit: str, columns: tuple[str, ...]) -> None:
        """Begin an empty table; `name` and `unit` ("line", "row", …) are for errors."""
        self._name, self._unit = name, unit
        self._schema = pa.schema([pa.field(column, pa.large_string(), nullable=False) for column in columns])
        self._pending: list[tuple[str, ...]] = []
        self._batches: list[pa.RecordBatch] = []
        self._places = array("q")

    def add(self, place: int, *values: str) -> None:
        """Add a row that stood on line `place`."""
        self._pending.append(values)
        self._places.append(place)
        if len(self._pending) >= BATCH_ROWS:
            self._flush()

    def finish(self) -> pa.Table:
        """The table.

        Raises:
            DataError: when an id is there twice, or a string is not valid Unicode.
        """
        if self._pending:
            self._flush()
        table = pa.Table.from_batches(self._batches, schema=self._schema)
        if table.num_rows and pc.count_distinct(table[0]).as_py() != table.num_rows:
            self._raise_duplicate(table[0])
        return table

    def _flush(self) -> None:
        columns = list(zip(*self._pending, strict=True))
        try:
            arrays = [pa.array(column, pa.large_string()) for column in columns]
        except UnicodeEncodeError:
            self._raise_surrogate()
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._pending = []

    def _raise_surrogate(self) -> None:
        first = len(self._places) - len(self._pending)
        for index, values in enumerate(self._pending):
            for column, value in zip(self._schema.names, values, strict=True):
                if any("\ud800" <= character <= "\udfff" for character in value):
                    raise DataError(
                        f"{self._name}: {self._unit} {self._places[first + index]}: {column!r} has half of a surrogate "
                        "pair, which is not valid Unicode; remove it or write the whole character"
                    )

    def _raise_duplicate(self, ids: pa.ChunkedArray) -> None:
        seen: dict[str, int] = {}
        n_repeated, first = 0, None
        for row, value in enumerate(ids):
            name = value.as_py()
            if name in seen:
                n_repeated += 1
                first = first or (name, self._places[seen[name]], self._places[row])
            else:
                seen[name] = row
        if first:
            more = f" ({n_repeated - 1} more ids are repeated)" if n_repeated > 1 else ""
            raise DataError(
                f"{self._name}: {self._unit} {first[2]}: id {first[0]!r} was already used on {self._unit} {first[1]}"
                f"{more}; ids must be unique: remove or rename one"
            )


def fingerprint(table: pa.Table, columns: tuple[str, ...]) -> str:
    """sha256 (hex) over the lengths and bytes of string columns; chunk borders do not matter.

    Memory: no copy of the text.
    """
    total = hashlib.sha256(b"gplfast-text-1")
    for column in columns:
        lengths, content = hashlib.sha256(), hashlib.sha256()
        for chunk in table[column].chunks:
            values = chunk.cast(pa.large_string())
            if not len(values):
                continue
            _, offsets_buffer, data = values.buffers()
            offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[values.offset : values.offset + len(values) + 1]
            lengths.update(np.diff(offsets).astype("<i8").tobytes())
            if data is not None:
                content.update(memoryview(data)[int(offsets[0]) : int(offsets[-1])])
        total.update(column.encode() + lengths.digest() + content.digest())
    return total.hexdigest()
