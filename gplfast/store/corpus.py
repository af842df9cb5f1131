"""Documents as an Arrow table; a row number is the internal id."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from gplfast.errors import DataError
from gplfast.store.columns import ColumnBuilder, fingerprint
from gplfast.store.readers import Columns, open_source
from gplfast.store.split import split_words as _split

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)
_MOST_LISTED = 5


class Corpus:
    """Documents in the order of their source.

    Attributes:
        table: Arrow table of large_string columns `_id`, `title`, `text`, without nulls, each in one chunk.
        empty_ids: ids of the documents that were skipped because they have neither title nor text.
        split_words: the longest piece in words, when passages were split, else None; then `_id` is "<id>#<piece>".
    """

    def __init__(self, table: pa.Table, *, empty_ids: Sequence[str] = (), split_words: int | None = None) -> None:
        """Wrap a table that `load_corpus` made, or one of the same columns.

        Memory: a column of several chunks is copied once, beside the chunks.
        """
        # Arrow's take joins all chunks first, whatever it takes: rows would cost a copy of the corpus each time.
        self.table = table.combine_chunks()
        self.empty_ids = frozenset(empty_ids)
        self.split_words = split_words

    def __len__(self) -> int:
        """How many documents (pieces, when split)."""
        return int(self.table.num_rows)

    @property
    def n_empty(self) -> int:
        """How many empty documents were skipped."""
        return len(self.empty_ids)

    @cached_property
    def ids(self) -> list[str]:
        """The ids by row."""
        return list(self.table["_id"].to_pylist())

    @cached_property
    def parent_ids(self) -> list[str]:
        """By row, the id that the document had in its source: `ids`, unless passages were split."""
        return self.ids if self.split_words is None else [name.rpartition("#")[0] for name in self.ids]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over ids, titles and texts in order; the same however the table is chunked."""
        return fingerprint(self.table, ("_id", "title", "text"))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    def text(self, row: int) -> str:
        """The text that models see: title and text with one space between, without a leading space."""
        return _join(self.table["title"][row].as_py(), self.table["text"][row].as_py())

    def titles(self, rows: NDArray[np.int64]) -> list[str]:
        """The titles of these rows, "" where there is none: what `text` begins with."""
        return list(self.table["title"].take(pa.array(rows)).to_pylist())

    def bodies(self, rows: NDArray[np.int64]) -> list[str]:
        """The texts of these rows without their titles."""
        return list(self.table["text"].take(pa.array(rows)).to_pylist())

    def texts(self, rows: Iterable[int] | NDArray[np.int64] | None = None) -> list[str]:
        """`text` for many rows (all, when not given), in the order asked for."""
        table = self.table
        if rows is not None:
            table = table.take(pa.array(np.fromiter(rows, dtype=np.int64)))
        return [_join(*pair) for pair in zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)]

    def row(self, name: str) -> int:
        """The row of an id.

        Raises:
            DataError: when there is none.
        """
        try:
            return self._rows[name]
        except KeyError:
            raise DataError(
                f"no document has the id {name!r}; the corpus has {len(self)} documents{self._why(name)}"
            ) from None

    def has(self, name: str) -> bool:
        """Whether a document (a piece, when split) has this id."""
        return name in self._rows

    def __repr__(self) -> str:
        """Sizes, for people."""
        return f"Corpus({len(self)} documents, {self.n_empty} empty skipped)"

    def _why(self, name: str) -> str:
        if name in self.empty_ids:
            return ", and that one was skipped because it is empty"
        return ", split in pieces named '<id>#<number>'" if self.split_words is not None else ""


def load_corpus(
    source: str | Path | pa.Table | Sequence[str],
    *,
    split_words: int | None = None,
    id_column: str = "_id",
    title_column: str | None = None,
    text_column: str = "text",
) -> Corpus:
    """Load documents.

    Args:
        source: a BEIR folder (`corpus.jsonl` or `corpus.jsonl.gz`); a folder of .txt and .md files (recursive, sorted;
            the id is the relative path, the title the first markdown heading or the file's stem); a .jsonl, .csv, .tsv
            (each also .gz) or .parquet file with named columns; an Arrow table; a list of texts (ids "0", "1", …).
        split_words: cut longer passages into pieces of at most this many words, at sentence ends where possible;
            every id becomes "<id>#0", "<id>#1", …, and the title is repeated. Off by default.
        id_column: name of the ids' column. Integer ids of Parquet and Arrow become their decimal strings.
        title_column: name of the titles' column; when not given, "title", which may be missing.
        text_column: name of the texts' column.

    Returns:
        The documents in the order of the source. Those without title and text are skipped, counted and logged.

    Raises:
        DataError: naming file and line, when the source cannot be read, an id is missing or there twice, a field is
            not a string, or no document is left.

    Memory: the texts once, as Arrow columns, and a second time while they are joined at the end; files are streamed.
    """
    if split_words is not None and split_words < 1:
        raise DataError(f"split_words is {split_words} but a piece has at least 1 word; give a larger number or None")
    columns = Columns(id_column, title_column or "title", text_column, title_column is not None)
    name, unit, rows = open_source(source, columns, "corpus.jsonl")
    builder = ColumnBuilder(name, unit, ("_id", "title", "text"))
    empty: list[str] = []
    for place, doc_id, title, text in rows:
        if not doc_id:
            raise DataError(f"{name}: {unit} {place}: the id is empty; every document needs one")
        if not (title.strip() or text.strip()):
            empty.append(doc_id)
        elif split_words is None:
            builder.add(place, doc_id, title, text)
        else:
            for number, piece in enumerate(_split(text, split_words)):
                builder.add(place, f"{doc_id}#{number}", title, piece)
    table = builder.finish()
    if not table.num_rows:
        what = f"all its {len(empty)} documents are empty" if empty else "no documents"
        raise DataError(f"{name}: {what}; give at least one document with text")
    if empty:
        shown = ", ".join(empty[:_MOST_LISTED])
        logger.warning(
            "%s: skipped %d empty documents (%s%s)", name, len(empty), shown, ", …" if len(empty) > 5 else ""
        )
    return Corpus(table, empty_ids=empty, split_words=split_words)


class Queries:
    """Queries in the order of their source.

    Attributes:
        table: Arrow table of large_string columns `_id`, `text`, without nulls.
        empty_ids: ids of the queries that were skipped because they have no text.
    """

    def __init__(self, table: pa.Table, *, empty_ids: Sequence[str] = ()) -> None:
        """Wrap a table that `load_queries` made, or one of the same columns."""
        self.table = table
        self.empty_ids = frozenset(empty_ids)

    @classmethod
    def from_lists(cls, ids: Sequence[str], texts: Sequence[str]) -> Queries:
        """Build from two lists of equal length.

        Raises:
            DataError: when the lengths differ or an id is there twice.
        """
        if len(ids) != len(texts):
            raise DataError(f"queries: ids has {len(ids)} items but texts has {len(texts)}; give one text per id")
        builder = ColumnBuilder("queries", "item", ("_id", "text"))
        for index, (name, text) in enumerate(zip(ids, texts, strict=True)):
            builder.add(index, name, text)
        return cls(builder.finish())

    def __len__(self) -> int:
        """How many queries."""
        return int(self.table.num_rows)

    @cached_property
    def ids(self) -> list[str]:
        """The ids by row."""
        return list(self.table["_id"].to_pylist())

    @cached_property
    def texts(self) -> list[str]:
        """The texts by row."""
        return list(self.table["text"].to_pylist())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over ids and texts in order."""
        return fingerprint(self.table, ("_id", "text"))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    def text(self, row: int) -> str:
        """The text of a row."""
        return self.texts[row]

    def row(self, name: str) -> int:
        """The row of an id.

        Raises:
            DataError: when there is none.
        """
        try:
            return self._rows[name]
        except KeyError:
            raise DataError(f"no query has the id {name!r}; there are {len(self)} queries") from None

    def has(self, name: str) -> bool:
        """Whether a query has this id."""
        return name in self._rows


def load_queries(
    source: str | Path | pa.Table | Sequence[str], *, id_column: str = "_id", text_column: str = "text"
) -> Queries:
    """Load queries: a BEIR folder (`queries.jsonl[.gz]`), a file, an Arrow table or a list, as in `load_corpus`.

    Raises:
        DataError: as `load_corpus`.
    """
    name, unit, rows = open_source(source, Columns(id_column, "title", text_column), "queries.jsonl")
    builder = ColumnBuilder(name, unit, ("_id", "text"))
    empty: list[str] = []
    for place, query_id, _, text in rows:
        if not query_id:
            raise DataError(f"{name}: {unit} {place}: the id is empty; every query needs one")
        if text.strip():
            builder.add(place, query_id, text)
        else:
            empty.append(query_id)
    table = builder.finish()
    if not table.num_rows:
        raise DataError(f"{name}: no queries with text; give at least one")
    if empty:
        logger.warning("%s: skipped %d empty queries (%s)", name, len(empty), ", ".join(empty[:_MOST_LISTED]))
    return Queries(table, empty_ids=empty)


def _join(title: str, text: str) -> str:
    return f"{title} {text}" if title and text else title or text
