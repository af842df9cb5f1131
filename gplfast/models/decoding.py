"""Decoding with a batch that stays full: rows that have ended leave it, other samples and passages take their places.

Nothing of the other rows is copied for that. A passage's cross-attention keys and values lie in a place of their own
in arrays that live as long as the batch. A row that takes another's place inherits its cached keys and values, which
the position bias hides from it; a cache is cut only at its front, once no row looks back so far.

Keys and values are what the decoder's `states` says: arrays, or what stays on a device (`states.States`).
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gplfast.errors import ResourceError
from gplfast.models.out_of_memory import is_out_of_memory
from gplfast.models.sampling import Sampling, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gplfast.models.runtime import AnySession
    from gplfast.models.states import Handles, States
    from gplfast.models.tokenization import Ids

logger = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]

# Rows decoded at a time by one core. Seconds with 128 and 256 on 2 cores, each with its own rows, in integers: the nano
# generator (320 passages of 128 tokens, 3 samples) 1.6 and 1.6, t5-small (96 passages) 2.1 and 2.1.
MAX_ROWS = 128
# What the passages in the batch may take: t5-base needs 9.4 MB for one of 128 tokens.
MAX_PASSAGE_BYTES = 1 << 30
# Passages stay until their last sample has ended: more of them are in the batch than its rows divided by the samples.
_PASSAGES_PER_FULL_ONE = 1.25
# Passages are taken in when this share of the rows is free: each time costs a run of the encoder, over the fewer
# passages the less efficient.
_REFILL_SHARE = 0.25
# The front of the cache is cut off when so many positions of it are of no row: cutting copies the rest.
_TRIM_POSITIONS = 8
# With nothing left to take in, rows are dropped once this share is free.
_SHRINK_SHARE = 0.2


class Encode(Protocol):
    """Encodes passages."""

    def __call__(self, ids: list[Ids]) -> tuple[Array, Handles]:
        """Attention mask (n, sequence) int32, and each cross-attention array (n, n_heads, sequence, head_dim)."""


@dataclass(frozen=True)
class Shape:
    """What the loop needs to know of a decoder graph."""

    past_inputs: tuple[str, ...]
    cross_inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    n_heads: int
    head_dim: int
    max_distance: int
    vocabulary: int
    start: int
    end: tuple[int, ...]

    def passage_bytes(self, n_tokens: int, item_bytes: int) -> int:
        """Of one passage's keys and values."""
        return len(self.cross_inputs) * self.n_heads * self.head_dim * n_tokens * item_bytes


class _Stopped(Exception):
    """Ends a stream after another one has failed."""


def run_streams(
    start: Callable[[], Decoding],
    ids: Sequence[Ids],
    n_samples: int,
    *,
    n_streams: int,
    noise: Callable[[int, int], Array],
    done: Callable[[int, int, list[int]], None],
) -> None:
    """Decode passages on several cores, each with a part of them and rows of its own.

    Seconds on two cores with both on one batch and with one batch each: the nano generator 1.8 and 1.5 in integers, 3.4
    and 2.7 in float32, t5-small 2.7 and 2.1.

    Args:
        start: makes what decodes a part.
        ids: tokens of each passage.
        n_samples: rows of each, at least 1.
        n_streams: how many parts at most.
        noise: see `Decoding.run`; called by several threads.
        done: see `Decoding.run`; one call at a time.

    Raises:
        ResourceError: one row alone does not fit into memory.
    """
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    parts = [part for part in (order[stream::n_streams] for stream in range(n_streams)) if part]
    lock, stopped = threading.Lock(), threading.Event()

    def decode(part: list[int]) -> None:
        def finish(passage: int, sample: int, tokens: list[int]) -> None:
            if stopped.is_set():
                raise _Stopped
            with lock:
                done(part[passage], sample, tokens)

        numbers = [ids[i] for i in part]
        start().run(numbers, n_samples, lambda passage, sample: noise(part[passage], sample), finish)

    with ThreadPoolExecutor(max(len(parts), 1), thread_name_prefix="gplfast-decode") as pool:
        try:
            for future in as_completed([pool.submit(decode, part) for part in parts]):
                future.result()
        except BaseException:
            stopped.set()
            raise


class _Passages:
    """Places for passages: their mask and cross-attention arrays, each at its own index.

    The graph sees the places up to the last one in use, a view: places that are free in between cost attention to
    nothing, and are closed by moving the last passages into them.
    """

    def __init__(self, n_places: int, n_tokens: int, states: States) -> None:
        self.mask = np.zeros((n_places, n_tokens), np.int32)
        self.cross = states.places(n_places, n_tokens)
        self.number = np.full(n_places, -1)  # which passage is there
        self.to_start = np.zeros(n_places, np.int64)  # samples of it that have no row yet
        self.running = np.zeros(n_places, np.int64)  # samples of it that have one

    @property
    def n_tokens(self) -> int:
        return int(self.mask.shape[1])

    def free(self) -> Array:
        return np.flatnonzero(self.number < 0)

    def put(self, places: Array, numbers: Sequence[int], n_samples: int, mask: Array, cross: Handles) -> None:
        self.mask[places] = 0
        self.mask[places, : mask.shape[1]] = mask
        self.cross.put(places, cross)
        self.number[places] = numbers
        self.to_start[places] = n_samples
        self.running[places] = 0

    @property
    def n_used(self) -> int:
        """Places up to the last one in use."""
        used = np.flatnonzero(self.number >= 0)
        return int(used[-1]) + 1 if len(used) else 0

    def close_gaps(self) -> Array:
        """Move passages from the end into free places before them; the new place of each place."""
        moved = np.arange(len(self.number))
        used = np.flatnonzero(self.number >= 0)
        free = self.free()
        new, old = free[free < len(used)], used[used >= len(used)]
        arrays: list[Array] = [self.mask, self.to_start, self.running, self.number]
        for array in arrays:
            array[new] = array[old]
        self.cross.move(new, old)
        self.number[old] = -1
        moved[old] = new
        return moved

    def narrow(self, n_tokens: int) -> None:
        """Leave room for fewer tokens."""
        used = np.flatnonzero(self.number >= 0)
        mask = np.zeros((len(self.number), n_tokens), np.int32)
        mask[used] = self.mask[used, :n_tokens]
        self.mask, self.cross = mask, self.cross.narrowed(used, n_tokens)


class Decoding:
    """One pass over some passages."""

    def __init__(
        self, session: AnySession, shape: Shape, encode: Encode, sampling: Sampling, *, encode_at_once: int
    ) -> None:
        """Nothing runs yet; see `run`."""
        self._session, self._shape, self._encode, self._sampling = session, shape, encode, sampling
        self._encode_at_once = encode_at_once
        self._max_rows = session.batch_rows or MAX_ROWS
        self._feed: dict[str, Any] = {}
        self._past: Handles = []
        self._states = session.states(len(shape.past_inputs), shape.n_heads, shape.head_dim)
        n_best = shape.vocabulary if sampling.top_k == 0 else min(sampling.top_k, shape.vocabulary)
        self._n_best = np.array([1 if sampling.greedy else n_best])

    def run(
        self,
        ids: Sequence[Ids],
        n_samples: int,
        noise: Callable[[int, int], Array],
        done: Callable[[int, int, list[int]], None],
    ) -> None:
        """Decode `n_samples` rows of each passage; the longest passages come first.

        A batch that does not fit into memory is halved, and what was in it is begun again.

        Args:
            ids: tokens of each passage.
            n_samples: rows of each, at least 1.
            noise: of (passage, sample): (max_new_tokens,) float64 in [0, 1).
            done: called with (passage, sample, tokens without the end) when a row has ended, in no particular order.

        Raises:
            ResourceError: one row alone does not fit into memory.
        """
        self._ids, self._n_samples, self._noise_of, self._done = ids, n_samples, noise, done
        self._finished = np.zeros((len(ids), n_samples), bool)
        left = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        while left:
            try:
                self._run(left)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._use_less_memory(error)
            left = [i for i in left if not self._finished[i].all()]

    def _run(self, numbers: list[int]) -> None:
        """Decode passages, the longest first."""
        self._waiting = deque(numbers)
        longest = len(self._ids[numbers[0]])
        wanted = min(self._max_rows, len(numbers) * self._n_samples)
        most = max(1, MAX_PASSAGE_BYTES // self._shape.passage_bytes(longest, self._states.item_bytes))
        n_places = min(math.ceil(wanted / self._n_samples * _PASSAGES_PER_FULL_ONE), len(numbers), most)
        self._passages = _Passages(n_places, longest, self._states)
        self._make_rows(min(wanted, n_places * self._n_samples))
        self._fill()
        while self._alive.any():
            self._step()
            n_free = len(self._alive) - int(self._alive.sum())
            if self._has_more() and n_free >= max(1, int(_REFILL_SHARE * len(self._alive))):
                self._fill()
            elif not self._has_more() and _SHRINK_SHARE * len(self._alive) <= n_free < len(self._alive):
                self._shrink()

    def _use_less_memory(self, error: Exception) -> None:
        """Halve what is in the batch, for the rest of the call.

        Raises:
            ResourceError: it was one row already.
        """
        if self._max_rows == 1:
            message = (
                f"generate: a batch of 1 row does not fit into memory ({error}); free memory or cut passages shorter"
            )
            raise ResourceError(message) from error
        self._max_rows, self._encode_at_once = self._max_rows // 2, max(1, self._encode_at_once // 2)
        self._feed, self._past = {}, []  # what they hold is free before the next batch takes its own
        logger.warning("generate: out of memory (%s); going on with at most %d rows at a time", error, self._max_rows)

    def _make_rows(self, n_rows: int) -> None:
        self._place = np.zeros(n_rows, np.int64)  # of its passage
        self._sample = np.zeros(n_rows, np.int64)
        self._age = np.zeros(n_rows, np.int64)  # tokens decoded so far
        self._alive = np.zeros(n_rows, bool)
        self._tokens = np.full(n_rows, self._shape.start, np.int32)
        self._noise = np.zeros((n_rows, self._sampling.max_new_tokens))
        self._written = np.zeros((n_rows, self._sampling.max_new_tokens), np.int64)
        self._past, self._n_past = self._states.empty(n_rows), 0  # the cache, and how many positions it has

    def _has_more(self) -> bool:
        return bool(self._waiting) or bool(self._passages.to_start.any())

    def _fill(self) -> None:
        """Start waiting samples in free rows, those of passages that are here first."""
        free = deque(np.flatnonzero(~self._alive).tolist())
        self._start_samples(free)
        while free and self._waiting and len(self._passages.free()):
            self._take_in(-(-len(free) // self._n_samples))
            self._start_samples(free)
        self._group()

    def _start_samples(self, free: deque[int]) -> None:
        passages = self._passages
        for place in np.flatnonzero(passages.to_start):
            while free and passages.to_start[place]:
                row, sample = free.popleft(), self._n_samples - int(passages.to_start[place])
                self._place[row], self._sample[row], self._age[row], self._alive[row] = place, sample, 0, True
                self._tokens[row] = self._shape.start
                self._noise[row] = self._noise_of(int(passages.number[place]), sample)
                passages.to_start[place] -= 1
                passages.running[place] += 1

    def _take_in(self, wanted: int) -> None:
        """Encode some waiting passages into free places."""
        places = self._passages.free()[: min(wanted, self._encode_at_once, len(self._waiting))]
        numbers = [self._waiting.popleft() for _ in places]
        live = np.flatnonzero(self._passages.number >= 0)
        needed = max([len(self._ids[numbers[0]]), self._longest(live)])
        if needed <= 0.75 * self._passages.n_tokens:  # they come in order of length: attention to padding is wasted
            self._passages.narrow(needed)
        self._passages.put(places, numbers, self._n_samples, *self._encode([self._ids[i] for i in numbers]))

    def _longest(self, places: Array) -> int:
        return max((len(self._ids[i]) for i in self._passages.number[places]), default=1)

    def _shrink(self) -> None:
        """Drop free rows, and places without a passage."""
        kept = np.flatnonzero(self._alive)
        for name in ("_place", "_sample", "_age", "_alive", "_tokens", "_noise", "_written"):
            setattr(self, name, getattr(self, name)[kept])
        self._past = self._states.rows(self._past, kept)
        self._place = self._passages.close_gaps()[self._place]
        self._group()

    def _group(self) -> None:
        """For the graph: the rows of each passage, and of each row its place among them."""
        rows = np.flatnonzero(self._alive)
        rows = rows[np.argsort(self._place[rows], kind="stable")]
        places = self._place[rows]
        n_used = self._passages.n_used
        counts = np.bincount(places, minlength=n_used)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        slots = np.zeros((len(counts), max(int(counts.max()), 1)), np.int32)
        slots[places, within] = rows
        row_slots = np.zeros(len(self._alive), np.int32)
        row_slots[rows] = places * slots.shape[1] + within
        static = {"attention_mask": self._passages.mask[:n_used], "slots": slots, "row_slots": row_slots}
        self._feed = {name: self._states.given(array) for name, array in static.items()}
        self._feed |= zip(self._shape.cross_inputs, self._passages.cross.first(n_used), strict=True)

    def _step(self) -> None:
        """The next token of every row."""
        self._trim()
        feed = self._feed | dict(zip(self._shape.past_inputs, self._past, strict=True))
        feed |= {"tokens": self._tokens, "distances": self._distances(), "n_best": self._n_best}
        logits, best, *self._past = self._session.run(feed, self._shape.outputs, self._shape.outputs[2:])
        self._n_past += 1
        age = np.minimum(self._age, self._sampling.max_new_tokens - 1)  # of free rows it may be anything
        tokens = choose(logits, best, self._noise[np.arange(len(age)), age], self._sampling)
        self._written[np.arange(len(age)), age] = tokens
        self._tokens = tokens.astype(np.int32)
        self._age = self._age + self._alive
        is_end = np.isin(tokens, self._shape.end)
        ended = self._alive & (is_end | (self._age >= self._sampling.max_new_tokens))
        for row in np.flatnonzero(ended):
            self._finish(row, int(self._age[row]) - bool(is_end[row]))

    def _finish(self, row: Any, n_tokens: int) -> None:  # noqa: ANN401  (NumPy's integer)
        place, passages = self._place[row], self._passages
        self._alive[row] = False
        passages.running[place] -= 1
        at = int(passages.number[place]), int(self._sample[row])
        if not self._finished[at]:  # it may have been, before memory ran out
            self._finished[at] = True
            self._done(*at, self._written[row, :n_tokens].tolist())
        if not passages.running[place] and not passages.to_start[place]:
            passages.number[place] = -1

    def _trim(self) -> None:
        """Cut positions off the front of the cache that no row looks back to."""
        unused = self._n_past - int(self._age[self._alive].max())
        if unused >= _TRIM_POSITIONS:
            self._past, self._n_past = self._states.cut(self._past, unused), self._n_past - unused

    def _distances(self) -> Array:
        """How far back each cached position lies, for each row; one beyond the maximum hides it."""
        back = np.arange(self._n_past, -1, -1, dtype=np.int32)[None, :]
        shown = np.minimum(back, self._shape.max_distance)
        age = self._age[:, None]
        if (age[self._alive] == back[0, 0]).all():  # every row began where the cache begins
            return shown
        return np.where(back <= age, shown, np.int32(self._shape.max_distance + 1))
