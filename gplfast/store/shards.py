"""A long stage writes shards: what a killed run finished is kept, and the bytes are those of one run."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from gplfast.errors import ArtifactError
from gplfast.store.atomic import read_json, write_json, write_parquet
from gplfast.store.atomic import read_parquet as _read_parquet
from gplfast.store.manifest import PROGRESS_NAME, Manifest, manifest_of, retract

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

logger = logging.getLogger(__name__)
_SHARD = re.compile(r"shard-(\d{5,})\.parquet")


class ShardSet:
    """The shards of one artifact, `shard-00000.parquet` and on, each written atomically.

    Opening and reading change nothing. `missing`, which begins writing and so needs the work directory's lock, keeps
    the shards that were made under an equal manifest key and deletes those of another one. The rows of a shard must
    follow from the manifest and the shard's number alone; its size therefore belongs into `manifest.config`.

    Example:
        shards = ShardSet(work.artifact("queries"), manifest)
        for shard in shards.missing(n_shards):
            shards.write(shard, make(shard))
        shards.finish({"queries": n})
    """

    def __init__(self, directory: str | Path, manifest: Manifest) -> None:
        """Look at what is in `directory`; nothing is created or deleted before `missing`.

        Args:
            directory: of the artifact; its `shards.json` and `manifest.json` belong to this class.
            manifest: what is wanted.
        """
        self.directory = Path(directory)
        self.manifest = manifest
        self._unusable, self._n_shards = self._look()

    def missing(self, n_shards: int) -> list[int]:
        """Which of `n_shards` shards are to be made, ascending. A damaged shard counts as missing.

        Shards of another manifest are dropped. Another number of shards than last time means other borders: then all
        are dropped too.
        """
        if self._n_shards != n_shards:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clear(self._unusable or f"{n_shards} shards wanted but was {self._n_shards}")
            write_json(self.directory / PROGRESS_NAME, {"manifest": self.manifest.as_json(), "n_shards": n_shards})
            self._unusable, self._n_shards = "", n_shards
        todo = [shard for shard in range(n_shards) if not self._whole(shard)]
        if todo:
            retract(self.directory)
        return todo

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.directory / f"shard-{shard:05d}.parquet"

    def write(self, shard: int, table: pa.Table) -> None:
        """Write one shard; it is there whole or not at all.

        Raises:
            ArtifactError: when the number is not below the one given to `missing`.
        """
        if self._n_shards is None or not 0 <= shard < self._n_shards:
            raise ArtifactError(
                f"shard {shard} of {self.directory} is not below {self._n_shards}; call missing() first"
            )
        write_parquet(self.path(shard), table)

    def read(self, shard: int) -> pa.Table:
        """Read one shard.

        Raises:
            ArtifactError: when it is missing or damaged.
        """
        try:
            return _read_parquet(self.path(shard))
        except FileNotFoundError:
            raise ArtifactError(f"{self.path(shard)} is missing; run the stage again to make it") from None

    def tables(self) -> Iterator[pa.Table]:
        """The shards in order, one at a time in memory.

        Raises:
            ArtifactError: when the set is not complete or has another manifest, or a shard is damaged.
        """
        for shard in range(self._number()):
            yield self.read(shard)

    def table(self) -> pa.Table:
        """All shards as one table, not copied together.

        Raises:
            ArtifactError: when the set is not complete or empty or has another manifest, or a shard is damaged.
        """
        import pyarrow as pa

        tables = list(self.tables())
        if not tables:
            raise ArtifactError(f"{self.directory} has 0 shards; write at least one (it may have no rows)")
        return pa.concat_tables(tables)

    def finish(self, counts: Mapping[str, int], *, files: list[str] | None = None) -> Manifest:
        """Write `manifest.json` with sizes and hashes of the shards and of `files`; only then the artifact is complete.

        Raises:
            ArtifactError: when a shard is missing.
        """
        n_shards = self._number()
        if todo := self.missing(n_shards):
            raise ArtifactError(f"{self.directory} misses {len(todo)} of {n_shards} shards; write them first")
        names = [self.path(shard).name for shard in range(n_shards)] + (files or [])
        done = self.manifest.with_counts(counts).with_files(self.directory, names)
        done.write(self.directory)
        return done

    def _number(self) -> int:
        if self._n_shards is None:
            raise ArtifactError(f"{self.directory} cannot be used: {self._unusable}; run its step again to make it")
        return self._n_shards

    def _look(self) -> tuple[str, int | None]:
        """Why the shards on disk cannot be used ("" when they can), and how many there are to be (None if so)."""
        path = self.directory / PROGRESS_NAME
        try:
            progress = read_json(path)
            found = manifest_of(progress.get("manifest") if isinstance(progress, dict) else None, path)
        except FileNotFoundError:
            return "no record of what made its shards", None
        except ArtifactError as error:
            return str(error), None
        if difference := self.manifest.difference(found):
            return difference, None
        n_shards = progress.get("n_shards")
        return ("", n_shards) if isinstance(n_shards, int) else ("no record of how many shards it has", None)

    def _clear(self, reason: str) -> None:
        # The manifest goes first: a kill in between must not leave a manifest beside half of its shards.
        stale = [path for path in sorted(self.directory.iterdir()) if _SHARD.fullmatch(path.name)]
        if stale:
            logger.info("%s: dropping %d shards: %s", self.directory, len(stale), reason)
        retract(self.directory)
        for path in [*stale, self.directory / PROGRESS_NAME]:
            path.unlink(missing_ok=True)

    def _whole(self, shard: int) -> bool:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path(shard)
        if not path.is_file():
            return False
        try:
            pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            logger.warning("%s is damaged and will be made again (%s)", path, error)
            path.unlink()
            return False
        return True
