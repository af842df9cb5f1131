"""Fields of other tools' JSON files, checked as they are read and written; errors name file and line."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from gplfast.errors import DataError
from gplfast.store.atomic import atomic_write
from gplfast.store.lines import describe, json_objects

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class Record:
    """A JSON object of a file and where it stands there."""

    def __init__(self, values: dict[str, Any], where: str, kind: str) -> None:
        """Nothing is checked yet.

        Args:
            values: The object.
            where: File and line.
            kind: What the file should be, for errors.
        """
        self.values, self.where, self._kind = values, where, kind

    def __contains__(self, name: str) -> bool:
        """Whether there is such a field, not null."""
        return self.values.get(name) is not None

    def text(self, name: str, default: str | None = None) -> str:
        """A string; null is as good as missing where there is a default.

        Raises:
            DataError: It is missing and there is no default, or something else.
        """
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self._error(name, value, "a string")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings.

        Raises:
            DataError: It is missing or something else.
        """
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._error(name, value, "a list of strings")
        return list(value)

    def numbers(self, name: str, n: int) -> list[float | None]:
        """A list of n numbers; null where one is not known.

        Raises:
            DataError: It is missing, of another length, or something else.
        """
        value = self.values.get(name)
        if not isinstance(value, list) or not all(item is None or _is_number(item) for item in value):
            raise self._error(name, value, "a list of numbers")
        if len(value) != n:
            raise DataError(f"{self.where}: {name!r} has {len(value)} numbers but {n} are expected, one per text")
        return [None if item is None else float(item) for item in value]

    def optional_numbers(self, name: str, n: int) -> list[float | None]:
        """`numbers`, or n times None where there is no such field."""
        return self.numbers(name, n) if name in self else [None] * n

    def objects(self, name: str) -> list[Record]:
        """A list of objects; errors in them name their place in the list.

        Raises:
            DataError: It is missing or something else.
        """
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._error(name, value, "a list of objects")
        return [Record(item, f"{self.where}: {name}[{i}]", self._kind) for i, item in enumerate(value)]

    def _error(self, name: str, value: object, wanted: str) -> DataError:
        found = describe(value) if name in self.values else "missing"
        return DataError(f"{self.where}: {name!r} is {found}, should be {wanted}; this is not {self._kind}")


def records(path: Path, kind: str) -> Iterator[Record]:
    """The objects of a JSON lines file, one in memory."""
    for line, values in json_objects(path):
        yield Record(values, f"{path}: line {line}", kind)


def write_lines(path: str | Path, values: Iterable[dict[str, Any]]) -> int:
    """Write JSON lines, one in memory; returns how many."""
    n = 0
    with atomic_write(path) as file:
        for value in values:
            file.write(json_bytes(value) + b"\n")
            n += 1
    return n


def json_bytes(value: object) -> bytes:
    """One line of JSON, in UTF-8 as it is.

    Raises:
        ValueError: For NaN and infinities, which JSON does not have.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", errors="surrogatepass")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
