"""Files that appear whole or not at all: temporary file, fsync, rename, fsync of the directory."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gplfast.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

# Pages and row groups are cut by row counts that we choose, so the bytes do not depend on the chunks of the table.
PARQUET_ROW_GROUP_ROWS = 65_536
_LEFTOVER = ".*.tmp"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`.

    When the body raises (a full disk too), the temporary file is removed and what was at `path` stays as it was.

    Args:
        path: the final name. Its directory is created when missing.

    Raises:
        OSError: when the directory cannot be written, or the disk is full.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # The name is random because a cache directory, unlike a work directory, may have two writers at once.
    temporary = final.parent / f".{final.name}.{secrets.token_hex(6)}.tmp"
    try:
        yield temporary
        sync(temporary)
        temporary.replace(final)
    except BaseException as error:
        with suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(final)  # "No space left on device" alone does not say where
        raise
    sync(final.parent)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the body ends without an error (see `atomic_path`)."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def remove_leftovers(directory: str | Path) -> int:
    """Delete the temporary files that killed writers left below `directory`; call it only while holding the lock.

    Returns:
        How many files were deleted.
    """
    found = [path for path in Path(directory).rglob(_LEFTOVER) if path.is_file() and not path.is_symlink()]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as JSON with sorted keys: equal values give equal bytes."""
    with atomic_write(path) as file:
        file.write(json_bytes(value))


def json_bytes(value: object) -> bytes:
    """The bytes that `write_json` writes.

    Raises:
        ValueError: for NaN and infinities, which JSON does not have.
        TypeError: for a value that JSON does not have.
    """
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", errors="surrogatepass") + b"\n"


def read_json(path: str | Path) -> Any:  # noqa: ANN401 (whatever JSON holds)
    """Read a JSON file of a work directory.

    Raises:
        FileNotFoundError: when there is none.
        ArtifactError: when it is damaged.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ArtifactError(f"cannot read {path}: not JSON ({error}); delete the file to make it again") from error


def write_parquet(path: str | Path, table: pa.Table) -> None:
    """Write an Arrow table as Parquet: equal rows and schema give equal bytes, however the table is chunked.

    zstd, page checksums (verified by `read_parquet`), no dates. Memory: one row group beyond the table.
    """
    with atomic_path(path) as temporary:
        write_parquet_file(temporary, table)


def write_parquet_file(path: Path, table: pa.Table) -> None:
    """Write to `path` directly, not atomically: for callers that hold a temporary path already."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(
        path, table.schema, compression="zstd", compression_level=3, write_page_checksum=True
    ) as writer:
        for start in range(0, max(table.num_rows, 1), PARQUET_ROW_GROUP_ROWS):
            group = table.slice(start, PARQUET_ROW_GROUP_ROWS).combine_chunks()
            writer.write_table(group, row_group_size=PARQUET_ROW_GROUP_ROWS)


def read_parquet(path: str | Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file of a work directory, with its page checksums verified.

    Raises:
        FileNotFoundError: when there is none.
        ArtifactError: when it is truncated or damaged; the message names the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as reader:
            return reader.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(
            f"cannot read {file}: truncated or damaged ({reason}); delete it to make it again"
        ) from error


def sync(path: Path) -> None:
    """Bring a file, or the names in a directory, to the disk.

    Raises:
        OSError: when the disk fails.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
