"""One matrix of embeddings per model, memory-mapped, written shard by shard."""

from __future__ import annotations

import hashlib
import logging
import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import ArtifactError, DTypeError, ShapeError
from gplfast.store.atomic import atomic_write, read_json, write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)
_MATRIX = "embeddings.npy"
_RECORD = "embeddings.json"
_DTYPES = ("float32", "float16")


class EmbeddingStore:
    """A (n_rows, dim) matrix in `embeddings.npy`, filled in place by shards of `shard_rows` rows.

    `embeddings.json` lists the shards that are on disk, each with its hash. A shard is listed only after its bytes
    were fsynced, so a killed run goes on where it was. Opening with another fingerprint, shape, type or shard size
    starts anew, and so does opening an unfinished matrix with another batch size: the last bits of a row depend on it,
    and no run would give a matrix of both.

    Example:
        store = EmbeddingStore(work.artifact("embeddings"), fingerprint, dim, len(corpus))
        for shard in store.missing():
            store.write(shard, model.encode(corpus.texts(store.rows(shard))))
        matrix = store.array()
    """

    def __init__(
        self,
        directory: str | Path,
        fingerprint: str,
        dim: int,
        n_rows: int,
        *,
        dtype: str = "float32",
        shard_rows: int = 16_384,
        batch_size: int | None = None,
    ) -> None:
        """Open or begin the matrix.

        Args:
            directory: created when missing; one matrix per directory.
            fingerprint: of everything the values depend on: weights, texts and their order, prompt, length.
            dim: columns.
            n_rows: rows.
            dtype: "float32" or "float16".
            shard_rows: rows per shard; the last one may have fewer.
            batch_size: texts that are encoded at once; a finished matrix is taken whatever it was made with.

        Raises:
            DTypeError: when dtype is another one.
            ShapeError: when dim or shard_rows is below 1 or n_rows below 0.
            OSError: when the disk has no room for the matrix (reserved at once, not half-way through).
        """
        if dtype not in _DTYPES:
            raise DTypeError(f"embeddings: dtype is {dtype} but only {' and '.join(_DTYPES)} are stored; choose one")
        if dim < 1 or n_rows < 0 or shard_rows < 1:
            raise ShapeError(
                f"embeddings: n_rows {n_rows}, dim {dim}, shard_rows {shard_rows} cannot be; use positive numbers"
            )
        self.directory = Path(directory)
        self.dim, self.n_rows, self.shard_rows, self.dtype = dim, n_rows, shard_rows, np.dtype(dtype)
        self.n_shards = -(-n_rows // shard_rows)
        self._identity: dict[str, Any] = {
            "schema_version": 1,
            "fingerprint": fingerprint,
            "n_rows": n_rows,
            "dim": dim,
            "dtype": dtype,
            "shard_rows": shard_rows,
        }
        self._batch_size = batch_size
        self._done = self._open()

    @property
    def path(self) -> Path:
        """The .npy file."""
        return self.directory / _MATRIX

    def missing(self) -> list[int]:
        """The shards that are to be written, ascending."""
        return [shard for shard in range(self.n_shards) if str(shard) not in self._done]

    def rows(self, shard: int) -> range:
        """The rows of a shard."""
        if not 0 <= shard < self.n_shards:
            raise ShapeError(f"embeddings: shard {shard} but there are {self.n_shards}; use one of missing()")
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.n_rows))

    def write(self, shard: int, values: NDArray[Any]) -> None:
        """Write the rows of one shard.

        Args:
            shard: its number.
            values: (len(rows(shard)), dim), C-contiguous, of the store's dtype.

        Raises:
            ShapeError: when the shape is another one.
            DTypeError: when the type or memory order is another one.
            OSError: when the disk fails; the shard then stays missing.
        """
        rows = self.rows(shard)
        if values.shape != (len(rows), self.dim):
            raise ShapeError(f"embeddings: shard {shard} has shape {values.shape} but needs {(len(rows), self.dim)}")
        if values.dtype != self.dtype or not values.flags.c_contiguous:
            raise DTypeError(
                f"embeddings: shard {shard} is {values.dtype}"
                f"{'' if values.flags.c_contiguous else ', not C-contiguous,'} but the store is {self.dtype}, "
                f"C-contiguous; use numpy.ascontiguousarray(x, dtype='{self.dtype}')"
            )
        # pwrite and not the memory map: a full disk is then an OSError and not a signal that ends the process.
        content = _content(values)
        offset = self._header_bytes() + rows.start * self.dim * self.dtype.itemsize
        with self.path.open("r+b", buffering=0) as file:
            written = 0
            while written < len(content):
                written += os.pwrite(file.fileno(), content[written:], offset + written)
            os.fsync(file.fileno())
        self._done[str(shard)] = _hash(content)
        self._write_record()

    def array(self) -> NDArray[Any]:
        """The whole matrix, memory-mapped read-only, C-contiguous, of the store's dtype.

        Raises:
            ArtifactError: when shards are missing.
        """
        if missing := self.missing():
            done = self.n_shards - len(missing)
            raise ArtifactError(f"{self.path} is incomplete: {done} of {self.n_shards} shards; write the missing ones")
        if self.n_rows == 0:
            return np.empty((0, self.dim), self.dtype)
        matrix: NDArray[Any] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return matrix

    def verify(self) -> None:
        """Compare every written shard with its hash; reads the whole file.

        Raises:
            ArtifactError: naming the first shard that changed since it was written.
        """
        matrix = np.load(self.path, mmap_mode="r", allow_pickle=False) if self.n_rows else None
        for shard in range(self.n_shards):
            rows = self.rows(shard)
            if matrix is None or str(shard) not in self._done:
                continue
            content = _content(np.ascontiguousarray(matrix[rows.start : rows.stop]))
            if _hash(content) != self._done[str(shard)]:
                raise ArtifactError(
                    f"{self.path}: shard {shard} (rows {rows.start} to {rows.stop - 1}) changed since it was written; "
                    f"delete {self.directory} to make it again"
                )

    def _open(self) -> dict[str, str]:
        found = self._read_record()
        done, batch_size = found.pop("done", None), found.pop("batch_size", None)
        if found == self._identity and isinstance(done, dict) and self._matrix_fits():
            if len(done) == self.n_shards or batch_size == self._batch_size:
                self._batch_size = batch_size
                return dict(done)
            logger.info("%s: begun with batch size %s; embedding again", self.directory, batch_size)
        # The record goes first: a kill in between must not leave a list of shards beside another matrix.
        (self.directory / _RECORD).unlink(missing_ok=True)
        with atomic_write(self.path) as file:
            file.write(self._header())
            file.flush()
            if self.n_rows:
                _reserve(file.fileno(), self._file_bytes())
        self._done = {}
        self._write_record()
        return self._done

    def _read_record(self) -> dict[str, Any]:
        try:
            found = read_json(self.directory / _RECORD)
        except FileNotFoundError:
            return {}
        except ArtifactError as error:
            logger.warning("%s; embedding again", error)
            return {}
        return found if isinstance(found, dict) else {}

    def _write_record(self) -> None:
        write_json(self.directory / _RECORD, {**self._identity, "batch_size": self._batch_size, "done": self._done})

    def _matrix_fits(self) -> bool:
        """Whether the file has the header and the length that it should have."""
        if not self.path.is_file() or self.path.stat().st_size != self._file_bytes():
            return False
        with self.path.open("rb") as file:
            return file.read(self._header_bytes()) == self._header()

    def _header(self) -> bytes:
        buffer = BytesIO()
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.n_rows, self.dim)}
        np.lib.format.write_array_header_1_0(buffer, header)
        return buffer.getvalue()

    def _header_bytes(self) -> int:
        return len(self._header())

    def _file_bytes(self) -> int:
        return self._header_bytes() + self.n_rows * self.dim * self.dtype.itemsize


def _reserve(handle: int, n_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, n_bytes)
    else:  # macOS: the file is sparse, and a full disk shows when a shard is written
        os.truncate(handle, n_bytes)


def _hash(content: memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _content(values: NDArray[Any]) -> memoryview:
    content: memoryview = values.reshape(-1).view(np.uint8).data
    return content
