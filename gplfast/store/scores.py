"""Cross-encoder scores by text: a pair is scored once in its life."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gplfast.errors import ArtifactError, DataError, ShapeError
from gplfast.store.atomic import read_json, read_parquet, write_json, write_parquet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_HASH_BYTES = 16
_RECORD = "teacher.json"
_SHARD = re.compile(r"scores-(\d{6,})\.parquet")
# Odd constants (fractional bits of the golden ratio and of sqrt 2) that spread both texts over one 64-bit sort key.
_MIX = np.array([0x9E3779B97F4A7C15, 0x6A09E667F3BCC909], dtype=np.uint64)


class Known(NamedTuple):
    """What a look-up found.

    Attributes:
        scores: float32 (n,), NaN where unknown, and where the teacher has no score for a pair (then it is known).
        known: bool (n,).
    """

    scores: NDArray[np.float32]
    known: NDArray[np.bool_]


class _Segment(NamedTuple):
    mixed: NDArray[np.uint64]  # (n,) ascending
    keys: NDArray[np.uint64]  # (n, 4): query hash, document hash
    scores: NDArray[np.float32]  # (n,)


class ScoreStore:
    """Scores of (query text, document text) under one teacher.

    The texts are those that the teacher read: cut first, then look up. Scores of several teachers live side by side,
    each in a directory named by its fingerprint. Memory: 44 bytes per pair.
    """

    def __init__(self, directory: str | Path, teacher_fingerprint: str) -> None:
        """Open the store and read its keys.

        Args:
            directory: of the scores of all teachers; created when missing.
            teacher_fingerprint: of weights, tokenizer and whatever else the scores depend on (activation, lengths).

        Raises:
            ArtifactError: when a shard is truncated or damaged; the message names it.
        """
        name = hashlib.sha256(teacher_fingerprint.encode()).hexdigest()[:32]
        self.directory = Path(directory) / name
        self.teacher_fingerprint = teacher_fingerprint
        self._segments: list[_Segment] = []
        self._n_pairs = 0
        self._next_shard = 0
        self.directory.mkdir(parents=True, exist_ok=True)
        self._check_record()
        self._load()

    def __len__(self) -> int:
        """How many pairs are known."""
        return self._n_pairs

    def lookup(self, queries: Sequence[str], docs: Sequence[str]) -> Known:
        """Find the scores of pairs.

        Args:
            queries: n query texts.
            docs: n document texts, one per query text.

        Returns:
            Scores and whether they are known.

        Raises:
            ShapeError: when the lengths differ.
        """
        return self._find(_keys(queries, docs))

    def append(self, queries: Sequence[str], docs: Sequence[str], scores: NDArray[np.float32]) -> int:
        """Add pairs, in one atomic shard of a new name. Pairs that are known already keep their first score.

        Args:
            queries: n query texts.
            docs: n document texts.
            scores: float32 (n,), finite, or NaN where the teacher gave no score: it is not asked again then.

        Returns:
            How many pairs were new.

        Raises:
            ShapeError: when the lengths differ.
            DataError: when a score is infinite.
        """
        import pyarrow as pa

        keys = _keys(queries, docs)
        values = np.asarray(scores, dtype=np.float32)
        if values.shape != (len(keys),):
            raise ShapeError(
                f"scores have shape {values.shape} but there are {len(keys)} pairs; give one score per pair"
            )
        if np.isinf(values).any():
            bad = int(np.flatnonzero(np.isinf(values))[0])
            raise DataError(
                f"score {bad} is {values[bad]} for query {queries[bad][:60]!r}; give finite scores, or NaN for none"
            )
        new = np.sort(np.unique(keys, axis=0, return_index=True)[1])
        new = new[~self._find(keys[new]).known]
        if not len(new):
            return 0
        keys, values = keys[new], values[new]
        content = keys.astype("<u8").view(np.uint8).reshape(len(new), 2, _HASH_BYTES)
        columns = {
            "query": _fixed(np.ascontiguousarray(content[:, 0])),
            "document": _fixed(np.ascontiguousarray(content[:, 1])),
            "score": pa.array(values, pa.float32()),
        }
        while (path := self.directory / f"scores-{self._next_shard:06d}.parquet").exists():
            self._next_shard += 1  # of another store that is open on this directory
        write_parquet(path, pa.table(columns))
        self._add(keys, values)
        return len(new)

    def _check_record(self) -> None:
        path = self.directory / _RECORD
        wanted = {"schema_version": 1, "teacher": self.teacher_fingerprint}
        try:
            found = read_json(path)
        except FileNotFoundError:
            write_json(path, wanted)
            return
        if found != wanted:
            raise ArtifactError(f"{path} is of another teacher or version ({found}); delete {self.directory}")

    def _load(self) -> None:
        names = sorted(
            (int(match[1]), path) for path in self.directory.iterdir() if (match := _SHARD.fullmatch(path.name))
        )
        loaded = [_read_shard(path) for _, path in names]
        if loaded:
            self._add(np.concatenate([keys for keys, _ in loaded]), np.concatenate([scores for _, scores in loaded]))
            self._next_shard = names[-1][0] + 1

    def _add(self, keys: NDArray[np.uint64], scores: NDArray[np.float32]) -> None:
        """Add a sorted segment, merging so that sizes at least halve from one to the next: few, and cheap to keep."""
        self._n_pairs += len(keys)
        while self._segments and len(self._segments[-1].scores) < 2 * len(keys):
            last = self._segments.pop()
            keys, scores = np.concatenate([last.keys, keys]), np.concatenate([last.scores, scores])
        mixed = _mix(keys)
        order = np.argsort(mixed, kind="stable")
        self._segments.append(_Segment(mixed[order], keys[order], scores[order]))

    def _find(self, keys: NDArray[np.uint64]) -> Known:
        scores = np.full(len(keys), np.nan, np.float32)
        known = np.zeros(len(keys), np.bool_)
        mixed = _mix(keys)
        for segment in self._segments:
            at = np.searchsorted(segment.mixed, mixed)
            open_ = np.flatnonzero(at < len(segment.mixed))
            # Different pairs may share the 64-bit sort key: step through a run until the full 256 bits agree.
            while len(open_):
                open_ = open_[segment.mixed[at[open_]] == mixed[open_]]
                same = (segment.keys[at[open_]] == keys[open_]).all(axis=1)
                hit = open_[same]
                scores[hit], known[hit] = segment.scores[at[hit]], True
                open_ = open_[~same]
                at[open_] += 1
                open_ = open_[at[open_] < len(segment.mixed)]
        return Known(scores, known)


def _read_shard(path: Path) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    import pyarrow as pa

    table = read_parquet(path)
    kinds = {"query": pa.binary(_HASH_BYTES), "document": pa.binary(_HASH_BYTES), "score": pa.float32()}
    if {field.name: field.type for field in table.schema} != kinds:
        raise ArtifactError(f"{path} is not a shard of scores; delete it")
    halves = []
    for name in ("query", "document"):
        chunk = table[name].combine_chunks()
        chunk = pa.concat_arrays(chunk.chunks) if isinstance(chunk, pa.ChunkedArray) else chunk
        data = b"" if not len(chunk) else chunk.buffers()[1]
        content = np.frombuffer(data, np.uint8, len(chunk) * _HASH_BYTES, chunk.offset * _HASH_BYTES)
        halves.append(content.view("<u8").reshape(-1, 2).astype(np.uint64))
    return np.concatenate(halves, axis=1), table["score"].to_numpy().astype(np.float32)


def _fixed(content: NDArray[np.uint8]) -> object:
    import pyarrow as pa

    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(_HASH_BYTES), len(content), [None, pa.py_buffer(content.tobytes())]
    )


def _mix(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed: NDArray[np.uint64] = keys[:, 0] * _MIX[0] ^ keys[:, 2] * _MIX[1]
    return mixed


def _keys(queries: Sequence[str], docs: Sequence[str]) -> NDArray[np.uint64]:
    """uint64 (n, 4): 16-byte BLAKE2b of each text. Each different text is hashed once per call."""
    if len(queries) != len(docs):
        raise ShapeError(f"{len(queries)} query texts but {len(docs)} document texts; give one document per query")
    hashes: dict[str, bytes] = {}
    for text in (*queries, *docs):
        if text not in hashes:
            hashes[text] = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
    content = b"".join(hashes[query] + hashes[doc] for query, doc in zip(queries, docs, strict=True))
    return np.frombuffer(content, "<u8").astype(np.uint64).reshape(-1, 4)
