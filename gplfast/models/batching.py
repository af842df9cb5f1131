"""Batches of rows of like length, so that little of a batch is padding, and texts tokenised ahead of them."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from gplfast.errors import ConfigError, ResourceError
from gplfast.models.out_of_memory import is_out_of_memory

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Part = TypeVar("Part")
Made = TypeVar("Made")
Key = TypeVar("Key", bound=Hashable)
Rows = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]

# Texts tokenised at a time: sorting by length pays within such a chunk, and memory stays flat however many texts come.
CHUNK_TEXTS = 16_384
# Items tokenised at a time by `map_unique`, which sorts them before; two such chunks are in memory at once. 2,000
# SciFact pairs took 1.2 s on 2 busy cores, so the first batch starts after some 0.3 s.
CHUNK_ROWS = 512
# Tokens of a batch, padding included; batches run one to a core. 256 pairs of 128 tokens, nano:teacher on two cores of
# Zen 5 beside other work, pairs/s with 512, 1024, 2048, 4096 and 8192: OpenVINO in bfloat16 209, 201, 194, 180, 178;
# ONNX Runtime in float32 84, 77, 77, 73, 71. One batch at a time on both cores gave 89 to 122 (157 on an idle machine),
# and 68 to 77.
BATCH_TOKENS = 1024


def chunks(n_texts: int) -> Iterator[slice]:
    """Consecutive slices of at most CHUNK_TEXTS."""
    for start in range(0, n_texts, CHUNK_TEXTS):
        yield slice(start, min(start + CHUNK_TEXTS, n_texts))


class _HasLengths(Protocol):
    @property
    def lengths(self) -> Rows:
        """Tokens of each row."""


Encoded = TypeVar("Encoded", bound=_HasLengths)


@dataclass(frozen=True)
class Work(Generic[Key, Encoded]):
    """What `map_unique` does with texts or pairs.

    Attributes:
        what: of the error messages.
        characters: the length of one item, to sort by before its tokens are known.
        encode: tokenises items; called in another thread, one call at a time.
        run: gives the values of some rows of what `encode` made, float32 (n_rows, width); called in other threads, up
            to `streams` at a time.
        width: columns of the values.
        streams: batches to run at a time.
        tokens: of a batch at most, padding included; 0: BATCH_TOKENS.
    """

    what: str
    characters: Callable[[Key], int]
    encode: Callable[[list[Key]], Encoded]
    run: Callable[[Encoded, Rows], Values]
    width: int
    streams: int = 1
    tokens: int = 0


def map_unique(items: Iterable[Key], work: Work[Key, Encoded], *, batch_size: int, progress: Progress | None) -> Values:
    """The values of all items, equal items computed once.

    Items are sorted by characters, tokenised CHUNK_ROWS at a time in another thread while the chunk before is computed,
    sorted by tokens within a chunk, and cut into batches whose rows x longest is at most `work.tokens`: longest first,
    so what does not fit into memory shows at once. A batch that does not fit is halved, and the rest of the call goes
    on with that size. While memory suffices, which items share a batch follows from the arguments alone, whatever the
    number of streams.

    Args:
        items: n texts or pairs.
        work: see `Work`.
        batch_size: rows of a batch at most; 0: as many as `work.tokens` lets in.
        progress: called with (items done, n) after each batch.

    Returns:
        float32 (n, width), C-contiguous, in the order of `items`.

    Raises:
        ConfigError: batch_size below 0.
        ResourceError: one row alone does not fit into memory.
    """
    if batch_size < 0:
        message = f"{work.what}: batch_size is {batch_size} but must be at least 1, or 0 for as many as fit by tokens"
        raise ConfigError(message)
    different, which = _unique(items)
    copies = np.bincount(which, minlength=len(different))
    values = np.empty((len(different), work.width), np.float32)
    done = 0
    with contextlib.closing(_batches(different, work, batch_size)) as batches:  # ends its thread whatever happens here
        for rows, found in batches:
            values[rows] = found
            done += int(copies[rows].sum())
            if progress is not None:
                progress(done, len(which))
    return values if len(different) == len(which) else values[which]


def _unique(items: Iterable[Key]) -> tuple[list[Key], Rows]:
    """The different items in order of appearance, and each item's number among them."""
    numbers: dict[Key, int] = {}
    which = np.fromiter((numbers.setdefault(item, len(numbers)) for item in items), np.int64)
    return list(numbers), which


def _batches(items: list[Key], work: Work[Key, Encoded], batch_size: int) -> Generator[tuple[Rows, Values]]:
    """Row numbers and values of each batch, in the order in which they were cut."""
    characters = np.fromiter(map(work.characters, items), np.int64, len(items))
    order = np.argsort(-characters, kind="stable")
    parts = [order[start : start + CHUNK_ROWS] for start in range(0, len(order), CHUNK_ROWS)]
    fitting = _Fitting(work)
    # One more than run at a time: a core that is done has the next one waiting.
    most = work.streams + 1 if work.streams > 1 else 1
    waiting: deque[tuple[Rows, Future[Values]]] = deque()
    pool = ThreadPoolExecutor(work.streams, thread_name_prefix="gplfast-batch")
    try:
        with contextlib.closing(ahead(lambda part: work.encode([items[row] for row in part]), parts)) as stream:
            for part, encoded in stream:
                left = np.argsort(-encoded.lengths, kind="stable")
                while len(left):
                    if len(waiting) == most:
                        rows, future = waiting.popleft()
                        yield rows, future.result()
                    n_rows = fitting.n_rows(int(encoded.lengths[left[0]]), batch_size or len(left))
                    batch, left = left[:n_rows], left[n_rows:]
                    waiting.append((part[batch], pool.submit(fitting.run, encoded, batch)))
        while waiting:
            rows, future = waiting.popleft()
            yield rows, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Fitting(Generic[Key, Encoded]):
    """Runs batches, and halves those that do not fit into memory; the size that fitted is kept for the next ones."""

    def __init__(self, work: Work[Key, Encoded]) -> None:
        self._work, self._tokens = work, work.tokens or BATCH_TOKENS

    def n_rows(self, longest: int, most: int) -> int:
        """Rows of a batch whose longest has so many tokens."""
        return min(max(1, self._tokens // max(longest, 1)), most)

    def run(self, encoded: Encoded, batch: Rows) -> Values:
        """The values of a batch; a batch that was cut before its size was known not to fit comes in pieces."""
        found = []
        while len(batch):
            longest = int(encoded.lengths[batch[0]])
            rows = batch[: self.n_rows(longest, len(batch))]
            try:
                found.append(self._work.run(encoded, rows))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._tokens = min(self._tokens, _halved(self._work.what, len(rows), longest, error))
                continue
            batch = batch[len(rows) :]
        return found[0] if len(found) == 1 else np.concatenate(found)


def _halved(what: str, n_rows: int, longest: int, error: Exception) -> int:
    """Tokens of a batch half as large; raises when one row was too large already."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if n_rows == 1:
        message = (
            f"{what}: a batch of 1 row x {longest} tokens does not fit into memory ({reason}); free memory, use a "
            "smaller model, or cut texts shorter"
        )
        raise ResourceError(message) from error
    tokens = n_rows // 2 * longest
    log.warning(
        "%s: a batch of %d rows x %d tokens does not fit into memory (%s); going on with at most %d tokens per batch",
        what, n_rows, longest, reason, tokens,
    )  # fmt: skip
    return tokens


def ahead(make: Callable[[Part], Made], parts: Iterable[Part]) -> Generator[tuple[Part, Made]]:
    """Each part with what `make` gives for it, in order; the next one is made in another thread meanwhile.

    What is used and the one after it are in memory, no more. An error of `make` is raised here. Close the iterator
    (contextlib.closing) to be sure that the thread has ended; closing waits for the `make` that has begun.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="gplfast-ahead")
    waiting: deque[tuple[Part, Future[Made]]] = deque()
    try:
        for part in parts:
            waiting.append((part, pool.submit(make, part)))
            if len(waiting) > 1:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def pad(rows: Sequence[np.ndarray[Any, np.dtype[np.int32]]], value: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """(n_rows, longest) int32, padded on the right."""
    padded = np.full((len(rows), max(len(row) for row in rows)), value, np.int32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def mask_of(rows: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """(n_rows, longest) int32: 1 for tokens, 0 for padding."""
    lengths = np.array([len(row) for row in rows])
    return (np.arange(lengths.max())[None, :] < lengths[:, None]).astype(np.int32)
