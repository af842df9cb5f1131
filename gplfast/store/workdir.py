"""A work directory: one writer at a time, and no path that leads out of it."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gplfast import ranks
from gplfast.errors import ArtifactError, LockedError
from gplfast.store.atomic import read_json, remove_leftovers, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from filelock import BaseFileLock

_LOCK = ".lock"
_OWNER = ".lock-owner.json"


def inside(root: str | Path, name: str | Path) -> Path:
    """Join `name` to `root`, following links, and refuse a path that leaves it.

    Raises:
        ArtifactError: when `name` is empty, absolute, or leads outside of `root`.
    """
    base = Path(root).resolve()
    joined = (base / name).resolve()
    if Path(name).is_absolute() or joined == base or not joined.is_relative_to(base):
        raise ArtifactError(f"path {str(name)!r} leads outside of {root}; names inside an artifact are relative to it")
    return joined


class WorkDir:
    """The directory of one adaptation run. Use as a context manager to write; reading needs no lock.

    Example:
        with WorkDir("work") as work:
            write_json(work.artifact("generate") / "report.json", {})
    """

    def __init__(self, path: str | Path) -> None:
        """Name the directory; nothing is created and no lock is taken before `with`."""
        self.root = Path(path)
        self._lock: BaseFileLock | None = None

    @property
    def locked(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock is not None

    def __enter__(self) -> Self:
        """Take the exclusive lock and clear what killed writers left.

        Raises:
            LockedError: at once, when another process (or another object of this one) holds it.
            ArtifactError: when the path is a file.
        """
        from filelock import FileLock, Timeout

        if self.root.exists() and not self.root.is_dir():
            raise ArtifactError(f"work directory {self.root} is a file; name a directory")
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise LockedError(
                f"work directory {self.root} is being written by {self._holder()}; wait for it or use another directory"
            ) from None
        self._lock = lock
        write_json(self.root / _OWNER, {"host": platform.node(), "pid": os.getpid()})
        remove_leftovers(self.root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        if self._lock is not None:
            (self.root / _OWNER).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    @contextlib.contextmanager
    def together(self) -> Iterator[Self]:
        """The lock for processes that train together: the first one takes it, the others write nothing.

        Alone `with` this object is for every other work, which two of them must not do at once.
        """
        with self if ranks.first() else contextlib.nullcontext():
            yield self

    def path(self, name: str) -> Path:
        """Where the artifact `name` is or will be; nothing is created.

        Raises:
            ArtifactError: when the name leads outside.
        """
        return inside(self.root, name)

    def artifact(self, name: str) -> Path:
        """The directory of the artifact `name`, created when missing.

        Raises:
            ArtifactError: when the name leads outside, or the lock is not held.
        """
        if self._lock is None:
            raise ArtifactError(
                f"artifact {name!r} of {self.root} cannot be written without the lock; use 'with WorkDir'"
            )
        path = self.path(name)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _holder(self) -> str:
        try:
            owner = read_json(self.root / _OWNER)
            return f"process {owner['pid']} on {owner['host']}"
        except (OSError, ArtifactError, KeyError, TypeError):
            return "another process"  # it took the lock a moment ago and has not yet written its number
