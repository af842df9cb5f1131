"""Documents that stay for many searches, in memory or in memory-mapped files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import ArtifactError, ConfigError, DTypeError, LockedError, ShapeError
from gplfast.ops.exact_search import Hits, exclude_pair
from gplfast.ops.extension import LARGEST, _core, integer, positive, threads_of
from gplfast.store.atomic import json_bytes, read_json, sync, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gplfast.ops.exact_search import Floats, Lists, Metric

_RECORD = "index.json"
_ROWS = "rows.npy"
_PACKED = "packed.bin"
_RECORD_HASH = "record_sha256"
_FORMAT = 1
_BLOCK_BYTES = 1 << 24


class Index:
    """Documents for exact search: their rows, and beside them the bytes that the integer scan reads.

    `search` of an index gives the bits that `gplfast.search` gives, and packs nothing: that is a quarter of the memory
    traffic for few queries, and saves the packing for many.

    Example:
        >>> import numpy as np
        >>> index = Index(3, "cosine")
        >>> index.add(np.eye(3, dtype=np.float32))
        >>> index.search(np.eye(3, dtype=np.float32)[1:2], k=1).ids
        array([[1]])
    """

    def __init__(self, dim: int, metric: Metric = "ip") -> None:
        """Begin an index without documents.

        Args:
            dim: Columns of the documents.
            metric: "ip" (inner product) or "cosine".

        Raises:
            ConfigError: dim or metric is out of range.
        """
        self._dim = positive("Index", "dim", dim, LARGEST)
        self._metric: Metric = metric
        self._index = _core.Index(self._dim, metric)
        self._dtype: np.dtype[Any] | None = None
        self._path: Path | None = None
        self._writing = threading.Lock()  # held by add, so that one type is added and what is saved does not grow

    @property
    def dim(self) -> int:
        """Columns of the documents."""
        return self._dim

    @property
    def metric(self) -> Metric:
        """Similarity: "ip" (inner product) or "cosine"."""
        return self._metric

    def __len__(self) -> int:
        """How many documents there are; their ids count from 0 in the order in which they were added."""
        return self._index.n_docs()

    def add(self, docs: Floats, *, threads: int | None = None) -> None:
        """Add documents behind those that are there.

        The rows are not copied: the index keeps the array, which must not change any more. Packing takes a byte an
        element and at most 83 a document; where the instruction set has no integer scan there is none. When this fails
        or is interrupted, nothing was added.

        Args:
            docs: (n_docs, dim) float32 or float16, C-contiguous. May be a memory map. All pieces have the same type.
            threads: Number of threads; None for every CPU this process may use.

        Raises:
            ShapeError: docs has another dim.
            DTypeError: docs has another type than those before, or another memory order.
            ConfigError: This index was opened from files.
        """
        if self._path is not None:
            message = f"Index.add: the index of {self._path} is only read; add to a new Index and save that"
            raise ConfigError(message)
        with self._writing:
            dtype = getattr(docs, "dtype", None)  # the extension checks what docs is
            if self._dtype is not None and dtype is not None and dtype != self._dtype:
                message = f"Index.add: docs has dtype {dtype} but the index has {self._dtype}; call docs.astype"
                raise DTypeError(message)
            self._index.add(docs, threads_of("Index.add", threads))
            self._dtype = docs.dtype

    def search(
        self,
        queries: Floats,
        k: int,
        *,
        exclude: Lists | None = None,
        rows: tuple[int, int] | None = None,
        threads: int | None = None,
    ) -> Hits:
        """Find the exact k best documents of each query; see `gplfast.search` for order, ties and padding.

        An opened index whose files are larger than 1 GB reads them chunk by chunk, each byte once per pass over the
        queries, and gives the memory back; a pass takes about 512 MB of candidates (8 k of 16 bytes a query). Where the
        instruction set has no integer scan, a pass is of at most 1,024 queries.

        Args:
            queries: (n_queries, dim) float32 or float16, C-contiguous.
            k: How many documents per query, at least 1.
            exclude: Documents never returned, per query, as in `gplfast.search`.
            rows: Search only first <= id < end. Results of parts merge with `merge_hits`, so a long search can be cut
                into parts that are kept.
            threads: Number of threads; None for every CPU this process may use. Never changes the answer.

        Raises:
            ShapeError: Dimensions differ, or exclude or rows names a document that there is not.
            DTypeError: An array has another type or memory order; the message says what to call.
            ConfigError: k or threads is out of range.
            ArtifactError: A packed file is damaged; noticed when a chunk is first read.
            UnavailableError: GPLFAST_ISA names an instruction set that is not available.
        """
        first, end = (0, len(self)) if rows is None else (integer("Index.search", "rows", row) for row in rows)
        if not 0 <= first <= end <= len(self):
            message = f"Index.search: rows is ({first}, {end}) but the index has {len(self)} rows; give first <= end"
            raise ShapeError(message)
        found = self._index.search(
            queries,
            positive("Index.search", "k", k, LARGEST),
            exclude_pair(exclude, "Index.search"),
            threads_of("Index.search", threads),
            first,
            end,
        )
        return Hits(*found)

    def save(self, path: str | Path) -> None:
        """Write the index to a new directory: rows.npy, packed.bin, and index.json last.

        The directory appears whole or not at all: it is written beside its place and renamed. Takes no memory beyond a
        chunk of 32 MB. Additions by other threads wait.

        Args:
            path: Must not exist.

        Raises:
            ConfigError: `path` exists.
            LockedError: It is being saved by somebody else.
            OSError: It cannot be written, or the disk is full.
        """
        final = Path(path)
        if final.exists():
            message = f"Index.save: {final} exists; remove it or give another path"
            raise ConfigError(message)
        final.parent.mkdir(parents=True, exist_ok=True)
        with self._writing, _directory_that_becomes(final) as partial:
            rows_sha256 = self._write_rows(partial / _ROWS)
            hashes = self._write_packed(partial / _PACKED)
            record = {
                "format": _FORMAT,
                "metric": self._metric,
                "n_docs": len(self),
                "dim": self._dim,
                "chunk_docs": self._index.chunk_docs(),
                "chunk_hashes": [f"{value:016x}" for value in hashes],
                "mean": self._index.mean(),
                "rows_sha256": rows_sha256,
            }
            write_json(partial / _RECORD, {**record, _RECORD_HASH: _sha256_of_record(record)})
        sync(final.parent)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> Index:
        """Open a saved index; its files are memory-mapped and only read.

        Args:
            path: What `save` wrote.
            verify: Also compare the rows with their hash, which reads all of them. (The packed documents are compared
                with theirs in any case, when they are first read.)

        Raises:
            FileNotFoundError: There is no index.
            ArtifactError: It is damaged, truncated or of another format. (What changes under an open index is not
                noticed; files that become shorter end the process.)
        """
        directory = Path(path)
        if not (directory / _RECORD).is_file():
            message = f"no index in {directory}: {_RECORD} is missing"
            raise FileNotFoundError(message)
        try:
            record = _checked_record(read_json(directory / _RECORD))
            index = cls(record["dim"], record["metric"])
            rows = _map_rows(directory / _ROWS, record)
            packed = _map_packed(directory / _PACKED) if record["chunk_hashes"] else None
            hashes = [int(value, 16) for value in record["chunk_hashes"]]
            index._index = _core.Index.open(rows, index._metric, packed, record["mean"], record["chunk_docs"], hashes)
        except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
            message = f"Index.open: {directory} is damaged ({error}); save the index again"
            raise ArtifactError(message) from error
        if verify and _sha256(directory / _ROWS) != record["rows_sha256"]:
            message = f"Index.open: {directory / _ROWS} is not what was saved; save the index again"
            raise ArtifactError(message)
        index._dtype, index._path = rows.dtype, directory
        return index

    def _write_rows(self, path: Path) -> str:
        pieces = [piece for piece in self._index.pieces() if len(piece)] if len(self) else []
        digest = hashlib.sha256()
        with path.open("wb") as file:
            header = {
                "descr": np.lib.format.dtype_to_descr(self._dtype or np.dtype(np.float32)),
                "fortran_order": False,
                "shape": (len(self), self._dim),
            }
            np.lib.format.write_array_header_1_0(file, header)
            for piece in pieces:
                step = max(1, _BLOCK_BYTES // (self._dim * piece.itemsize))
                for start in range(0, len(piece), step):
                    block = piece[start : start + step].data
                    file.write(block)
                    digest.update(block)
        sync(path)
        return digest.hexdigest()

    def _write_packed(self, path: Path) -> list[int]:
        hashes = []
        with path.open("wb") as file:
            for i in range(self._index.n_chunks()):
                chunk, value = self._index.chunk(i)
                file.write(chunk.data)
                hashes.append(value)
        sync(path)
        return hashes


@contextlib.contextmanager
def _directory_that_becomes(final: Path) -> Iterator[Path]:
    """Yield an empty directory beside `final` that is renamed when the body ends, and removed when it fails.

    It is locked, so that what a killed save left is told from what another save is writing.
    """
    partial = final.with_name(f".{final.name}.partial")
    partial.mkdir(exist_ok=True)
    handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock_directory(handle, partial, final)
        try:
            for leftover in partial.iterdir():
                leftover.unlink()
            yield partial
            partial.rename(final)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(final)
            raise
    finally:
        os.close(handle)


def _lock_directory(handle: int, partial: Path, final: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        is_other = True
    except OSError:  # no locks here: NFS locks no directory
        is_other = False
    else:  # another save may have renamed it before it was locked here
        is_other = not (partial.exists() and os.path.samestat(os.fstat(handle), partial.stat()))
    if is_other:
        message = f"Index.save: {final} is being saved by somebody else; wait for it, or give another path"
        raise LockedError(message)


def _sha256_of_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(json_bytes(record)).hexdigest()


def _checked_record(record: Any) -> dict[str, Any]:  # noqa: ANN401 (whatever JSON holds)
    if record["format"] != _FORMAT:
        message = f"format {record['format']} where this version reads {_FORMAT}"
        raise ValueError(message)
    rest = {name: value for name, value in record.items() if name != _RECORD_HASH}
    if record[_RECORD_HASH] != _sha256_of_record(rest):  # the bounds that make a search exact follow from the mean
        message = f"{_RECORD} is not what was saved"
        raise ValueError(message)
    if len(rest["mean"]) not in {0, rest["dim"]}:
        message = f"a mean of {len(rest['mean'])} numbers where dim is {rest['dim']}"
        raise ValueError(message)
    return rest


def _map_rows(path: Path, record: dict[str, Any]) -> NDArray[Any]:
    rows: NDArray[Any] = np.load(path, mmap_mode="r" if record["n_docs"] else None, allow_pickle=False)
    if rows.shape != (record["n_docs"], record["dim"]):
        message = f"{_ROWS} has shape {rows.shape} but {_RECORD} says {(record['n_docs'], record['dim'])}"
        raise ValueError(message)
    return rows


def _map_packed(path: Path) -> NDArray[np.uint8]:
    return np.memmap(path, np.uint8, mode="r")


def _sha256(path: Path) -> str:
    """Of the rows, without the header."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
