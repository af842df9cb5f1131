"""The folders of a training's segments: what is finished of each, and what belongs to another training."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from gplfast.errors import ArtifactError
from gplfast.store.atomic import read_json, write_json

if TYPE_CHECKING:
    from pathlib import Path

_RECORD, _BEGUN, _TRAINING = "record.json", "begun.json", "training.json"


class SegmentFolders:
    """One folder per segment below `root`."""

    def __init__(self, root: Path) -> None:
        """Nothing is read yet."""
        self.root = root

    def path(self, number: int, name: str) -> Path:
        """Where something of a segment is or will be."""
        return self.root / str(number) / name

    def keep_only(self, key: str) -> None:
        """Drop everything that was made for another training than `key`: rows and students of two do not mix."""
        path = self.root / _TRAINING
        try:
            same = read_json(path) == {"key": key}
        except (FileNotFoundError, ArtifactError):
            same = False
        if not same:
            path.unlink(missing_ok=True)  # first: a kill in between must not leave it beside half of the folders
            if self.root.exists():
                shutil.rmtree(self.root)  # or an error: what is left must not be taken for this training's
            write_json(path, {"key": key})

    def record(self, number: int) -> dict[str, Any] | None:
        """The record of a finished segment, None of another one.

        Raises:
            ArtifactError: It is damaged.
        """
        try:
            found: dict[str, Any] = read_json(self.path(number, _RECORD))
        except FileNotFoundError:
            return None
        return found

    def records(self, first: int, end: int) -> list[dict[str, Any]]:
        """The records of the segments from `first` to before `end`, of those that are finished."""
        found = (self.record(number) for number in range(first, end))
        return [record for record in found if record is not None]

    def drop(self, number: int, name: str) -> None:
        """Delete a folder of a segment under another name: what a kill leaves of it is not taken for a whole one."""
        path, dropped = self.path(number, name), self.path(number, f"{name}.dropped")
        shutil.rmtree(dropped, ignore_errors=True)
        if path.is_dir():
            path.rename(dropped)
            shutil.rmtree(dropped, ignore_errors=True)

    def finished(self, number: int) -> dict[str, Any]:
        """The record of a segment that has to be finished.

        Raises:
            ArtifactError: It is not.
        """
        found = self.record(number)
        if found is None:
            raise ArtifactError(
                f"cannot go on: {self.path(number, _RECORD)} is missing but training is past its segment; delete "
                f"{self.root.parent} to train again"
            )
        return found

    def write(self, number: int, record: dict[str, Any]) -> dict[str, Any]:
        """Write the record, the last file of a segment; returns it."""
        write_json(self.path(number, _RECORD), record)
        return record

    def begun(self, number: int, weights: str, now: int) -> int:
        """The count that was given when this segment was begun for these weights, also before a kill."""
        path = self.path(number, _BEGUN)
        try:
            found = read_json(path)
        except (FileNotFoundError, ArtifactError):
            found = {}
        if found.get("weights") != weights:
            found = {"weights": weights, "count": now}
            write_json(path, found)
        return int(found["count"])
