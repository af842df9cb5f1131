"""From a file, folder, table or list to a stream of rows; nothing is held but the row at hand."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gplfast.errors import DataError
from gplfast.store.lines import close_match, csv_rows, describe, json_objects, text_lines

if TYPE_CHECKING:
    import pyarrow as pa

_TEXT_SUFFIXES = (".txt", ".md")
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_PARQUET_SUFFIXES = (".parquet", ".pq")
_HEADING = re.compile(r"#{1,6}[ \t]+(.*?)[ \t#]*$")
_NAME_THEM = (
    "name the right ones with id_column, title_column, text_column "
    "(--input-id-column, --input-title-column, --input-text-column)"
)
READABLE = "a BEIR folder, a folder of .txt/.md files, .jsonl[.gz], .csv, .tsv, .parquet"


class Columns(NamedTuple):
    """The names of the columns to read. `title` may be absent from the data unless the user named it."""

    id: str = "_id"
    title: str = "title"
    text: str = "text"
    title_named: bool = False


class Row(NamedTuple):
    """One document or query, and the line (or row, or index) that it stood on."""

    place: int
    id: str
    title: str
    text: str


class Source(NamedTuple):
    """A stream of rows with the words for its errors: what it is, and what its places are called."""

    name: str
    unit: str
    rows: Iterator[Row]


def open_source(source: Any, columns: Columns, beir_file: str) -> Source:  # noqa: ANN401 (its kind is what is found out)
    """Find out what `source` is and stream its rows.

    Args:
        source: a path, an Arrow table, or a list of strings.
        columns: for sources with named columns.
        beir_file: "corpus.jsonl" or "queries.jsonl", what to take from a folder in BEIR's form.

    Raises:
        DataError: when there is nothing readable.
    """
    if isinstance(source, (str, Path)):
        return _open_path(Path(source), columns, beir_file)
    if hasattr(source, "to_batches") and hasattr(source, "column_names"):
        return Source("table", "row", _batch_rows("table", source.schema, source.to_batches(), columns))
    if isinstance(source, Sequence):
        return Source("list", "item", _list_rows(source))
    raise DataError(
        f"cannot read documents from a {type(source).__name__}; give {READABLE}, an Arrow table or a list of str"
    )


def _open_path(path: Path, columns: Columns, beir_file: str) -> Source:
    if path.is_dir():
        for name in (beir_file, f"{beir_file}.gz"):
            if (path / name).is_file():
                return Source(str(path / name), "line", _json_rows(path / name, columns))
        if beir_file != "corpus.jsonl":
            raise DataError(f"{path}: this folder has no {beir_file}[.gz]; name the file with the queries")
        if files := _text_files(path):
            return Source(str(path), "file", _folder_rows(path, files))
        raise DataError(f"{path}: this folder has no {beir_file}[.gz] and no .txt or .md files; give {READABLE}")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check the path")
    suffix = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if suffix in _JSON_SUFFIXES:
        return Source(str(path), "line", _json_rows(path, columns))
    if suffix in (".csv", ".tsv"):
        return Source(str(path), "line", _csv_file_rows(path, "\t" if suffix == ".tsv" else ",", columns))
    if suffix in _PARQUET_SUFFIXES:
        return Source(str(path), "row", _parquet_rows(path, columns))
    raise DataError(f"{path}: unknown kind of file {suffix or path.name!r}; give {READABLE}")


def _json_rows(path: Path, columns: Columns) -> Iterator[Row]:
    for line, item in json_objects(path):
        values: tuple[Any, Any, Any] = item.get(columns.id), item.get(columns.title, ""), item.get(columns.text)
        if not (type(values[0]) is type(values[1]) is type(values[2]) is str) or columns.title_named:
            values = _checked(f"{path}: line {line}", item, columns)
        yield Row(line, *values)


def _checked(where: str, item: dict[str, Any], columns: Columns) -> tuple[str, str, str]:
    """The fields of an object that is not plain strings: null is no title or an empty document, the rest is refused."""
    for name in (columns.id, columns.text, *([columns.title] if columns.title_named else [])):
        if name not in item:
            raise DataError(f"{where}: missing {name!r}{close_match(name, item)}; it has {_names(item)}: {_NAME_THEM}")
    values = []
    for name in (columns.id, columns.title, columns.text):
        value = item.get(name)
        if value is None and name != columns.id:
            value = ""
        if not isinstance(value, str):
            raise DataError(f"{where}: {name!r} is {describe(value)}, should be a string; write it in quotes")
        values.append(value)
    return values[0], values[1], values[2]


def _csv_file_rows(path: Path, delimiter: str, columns: Columns) -> Iterator[Row]:
    rows = csv_rows(path, delimiter)
    _, header = next(rows, (0, []))
    if not header:
        raise DataError(f"{path}: the file is empty; a header line with the columns' names is expected")
    at = _positions(f"{path}: line 1", header, columns)
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{path}: line {line}: has {len(row)} fields but the header has {len(header)}; "
                "quote fields that hold the separator"
            )
        yield Row(line, *("" if place is None else row[place] for place in at))


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            at = _positions(str(path), file.schema_arrow.names, columns)
            names = [file.schema_arrow.names[place] for place in at if place is not None]
            batches = file.iter_batches(batch_size=16_384, columns=list(dict.fromkeys(names)))
            yield from _batch_rows(str(path), file.schema_arrow, batches, columns)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({reason}); copy or write it again") from error


def _batch_rows(name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], columns: Columns) -> Iterator[Row]:
    import pyarrow as pa

    at = _positions(name, schema.names, columns)
    wanted = [None if place is None else schema.names[place] for place in at]
    for column in wanted:
        kind = None if column is None else schema.field(column).type
        inner = kind.value_type if kind is not None and pa.types.is_dictionary(kind) else kind
        is_text = inner is None or inner in (pa.string(), pa.large_string(), pa.string_view())
        if not is_text and not (column == columns.id and pa.types.is_integer(inner)):
            raise DataError(f"{name}: column {column!r} has type {kind} but strings are needed; cast it")
    first = 0
    for batch in batches:
        blank = [""] * batch.num_rows
        ids, titles, texts = (
            blank if column is None else batch.column(batch.schema.names.index(column)).to_pylist() for column in wanted
        )
        for i in range(batch.num_rows):
            if ids[i] is None:
                raise DataError(f"{name}: row {first + i}: {columns.id!r} is null; every document needs an id")
            yield Row(first + i, str(ids[i]), titles[i] or "", texts[i] or "")
        first += batch.num_rows


def _list_rows(items: Sequence[Any]) -> Iterator[Row]:
    for index, text in enumerate(items):
        if not isinstance(text, str):
            raise DataError(
                f"list: item {index} is a {type(text).__name__}, should be a str; give the documents' texts"
            )
        yield Row(index, str(index), "", text)


def _folder_rows(root: Path, files: list[str]) -> Iterator[Row]:
    for index, name in enumerate(files):
        path = root / name
        lines = [line for _, line in text_lines(path)]
        title = ""
        if path.suffix.lower() == ".md":
            title, lines = _take_heading(lines)
        text = "".join(lines).strip()
        # The stem is no content: a file with nothing in it is an empty document.
        yield Row(index + 1, name, title or (path.stem if text else ""), text)


def _take_heading(lines: list[str]) -> tuple[str, list[str]]:
    """The first markdown heading outside of code, and the lines without it."""
    fenced = False
    for number, line in enumerate(lines):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        match = None if fenced else _HEADING.match(line.rstrip())
        if match and match[1]:
            return match[1], lines[:number] + lines[number + 1 :]
    return "", lines


def _text_files(root: Path) -> list[str]:
    """Relative POSIX paths of the text files, sorted; hidden files and folders are left out, links to folders too."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            (Path(folder) / name).relative_to(root).as_posix()
            for name in files
            if name.lower().endswith(_TEXT_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def _positions(where: str, names: Sequence[str], columns: Columns) -> tuple[int, int | None, int]:
    for name in (columns.id, columns.text, *([columns.title] if columns.title_named else [])):
        if names.count(name) != 1:
            problem = "missing column" if name not in names else "two columns are named"
            raise DataError(
                f"{where}: {problem} {name!r}{close_match(name, names)}; it has {_names(names)}: {_NAME_THEM}"
            )
    title = list(names).index(columns.title) if columns.title in names else None
    return list(names).index(columns.id), title, list(names).index(columns.text)


def _names(names: Iterable[object], most: int = 12) -> str:
    shown = [str(name)[:40] for name in list(names)[:most]]
    return ", ".join(shown) + (", …" if len(list(names)) > most else "") if shown else "nothing"
