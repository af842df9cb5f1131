"""Text files line by line, plain or gzip, with errors that name the file and the line."""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import zlib
from typing import IO, TYPE_CHECKING, Any, cast

from gplfast.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_GZIP_MARK = b"\x1f\x8b"
# The csv module refuses fields above 131,072 characters unless told; a whole book is a legal document.
_LONGEST_FIELD_CHARACTERS = 1 << 30


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text with its line end) of a UTF-8 file, plain or gzip, one line in memory.

    Raises:
        DataError: when the file is missing, is not UTF-8, or its gzip data are cut off or damaged.
    """
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                yield number, _decode(line, path, number)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: line {number + 1}: the gzip data are cut off or damaged ({error}); copy the file again"
        ) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check the path") from error


def json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSON lines file; blank lines are passed over.

    Raises:
        DataError: as `text_lines`, and when a line is not JSON or not an object.
    """
    for number, line in text_lines(path):
        if line.isspace():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number}: broken JSON ({error}); one object per line is expected") from error
        except RecursionError:
            raise DataError(f"{path}: line {number}: the JSON is nested too deeply") from None
        if not isinstance(value, dict):
            raise DataError(
                f"{path}: line {number}: the JSON is {describe(value)}, not an object; one object per line is expected"
            )
        yield number, value


def csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number where the row ends, fields) of a CSV or TSV file; fields may be quoted and span lines.

    Raises:
        DataError: as `text_lines`, and when a quote is never closed or stands in the wrong place.
    """
    reader = csv.reader((line for _, line in text_lines(path)), delimiter=delimiter, strict=True)
    while True:
        # The limit is global to the csv module: it is raised for the call alone, so other users keep theirs.
        before = csv.field_size_limit(_LONGEST_FIELD_CHARACTERS)
        first = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}: line {first}: broken {'TSV' if delimiter == chr(9) else 'CSV'} ({error}); "
                'a field with a quote is written "…" with the quote doubled'
            ) from error
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        if row:
            yield reader.line_num, row


def close_match(name: str, names: Iterable[str]) -> str:
    """A hint like " (did you mean 'text'?)", empty when nothing is close."""
    known = {"_id": ("id", "doc_id", "docid", "pid"), "text": ("body", "content", "contents", "passage", "document")}
    candidates = list(names)
    found = [other for other in known.get(name, ()) if other in candidates]
    found += difflib.get_close_matches(name, candidates, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def describe(value: object) -> str:
    """A JSON value's kind, in words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        is_gzip = file.read(2) == _GZIP_MARK
    if path.suffix == ".gz" and not is_gzip and path.stat().st_size:
        raise DataError(f"{path}: is named .gz but is not gzip; rename it or compress it")
    return cast("IO[bytes]", gzip.open(path, "rb")) if is_gzip else path.open("rb")


def _decode(line: bytes, path: Path, number: int) -> str:
    if number == 1:
        if line.startswith(_UTF16_MARKS):
            raise DataError(f"{path}: line 1: not UTF-8 but UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
        line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at byte {error.start + 1}); "
            "convert it, for example: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
