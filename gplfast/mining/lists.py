"""Ragged lists of passage rows in CSR form: `indptr` int64 (n_lists + 1,) and `rows` int64 (indptr[-1],)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Int64 = npt.NDArray[np.int64]
# Rows of copies that are put together at a time: 64 MB for each of the arrays that this takes.
_WIDENED_ROWS = 1 << 23


class Lists(NamedTuple):
    """One list of rows per query.

    Attributes:
        indptr: int64 (n_lists + 1,), list i is `rows[indptr[i]:indptr[i + 1]]`.
        rows: int64, all lists one after the other.
    """

    indptr: Int64
    rows: Int64

    @property
    def lengths(self) -> Int64:
        """int64 (n_lists,)."""
        return np.diff(self.indptr)

    def list(self, index: int) -> Int64:
        """The rows of list `index`."""
        return self.rows[self.indptr[index] : self.indptr[index + 1]]

    def take(self, indices: Int64) -> Lists:
        """The lists of some indices, in their order."""
        lengths = self.lengths[indices]
        ends = np.cumsum(lengths)
        starts = np.repeat(self.indptr[indices] - (ends - lengths), lengths)
        return Lists(_indptr(lengths), self.rows[starts + np.arange(len(starts))])

    def part(self, start: int, stop: int) -> Lists:
        """Lists start..stop-1."""
        indptr = self.indptr[start : stop + 1]
        return Lists(indptr - indptr[0], self.rows[indptr[0] : indptr[-1]])


def from_sequences(lists: Sequence[Sequence[int] | Int64]) -> Lists:
    """CSR of a list of lists, order kept."""
    lengths = np.fromiter((len(item) for item in lists), np.int64, len(lists))
    rows = np.concatenate([np.asarray(item, np.int64) for item in lists]) if len(lists) else np.empty(0, np.int64)
    return Lists(_indptr(lengths), np.ascontiguousarray(rows, np.int64))


def owner_of(lists: Lists) -> Int64:
    """The list of each entry, int64 (n,)."""
    return np.repeat(np.arange(len(lists.indptr) - 1, dtype=np.int64), lists.lengths)


def single(rows: Int64) -> Lists:
    """Lists of one row each: what the positives of generated queries are."""
    return Lists(np.arange(len(rows) + 1, dtype=np.int64), rows)


def only(lists: Lists, kept: Int64) -> Lists:
    """The same lists, those that are not kept emptied."""
    lengths = np.zeros(len(lists.indptr) - 1, np.int64)
    lengths[kept] = lists.lengths[kept]
    return Lists(_indptr(lengths), lists.rows[np.repeat(lengths == lists.lengths, lists.lengths)])


def without(lists: Lists, excluded: Lists) -> Lists:
    """The same lists, order kept, without the rows that the other ones hold."""
    width = 1 + max(int(lists.rows.max(initial=0)), int(excluded.rows.max(initial=0)))
    owners = owner_of(lists)
    kept = ~np.isin(owners * width + lists.rows, owner_of(excluded) * width + excluded.rows)
    return Lists(_indptr(np.bincount(owners[kept], minlength=len(lists.lengths))), lists.rows[kept])


def same_text_groups(texts: Sequence[str]) -> Int64:
    """For each text the row of the first that is equal to it, int64 (n_texts,): equal texts share their group."""
    first: dict[bytes, int] = {}
    groups = np.empty(len(texts), np.int64)
    for row, text in enumerate(texts):
        digest = hashlib.blake2b(text.strip().encode("utf-8"), digest_size=16).digest()
        groups[row] = first.setdefault(digest, row)
    return groups


class Copies:
    """Finds the rows that have the same text. Holds four int64 for each row."""

    def __init__(self, groups: Int64) -> None:
        """Sort the rows by their groups, see `same_text_groups`."""
        self._groups, self._order = groups, np.argsort(groups, kind="stable")
        self._sizes = np.bincount(groups)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def widen(self, lists: Lists) -> Lists:
        """Add to each list every row that has the same text as one of its rows, ascending and without repeats.

        Memory: the answer, which for many lists of text with many copies is large, and 200 MB; see `Widened`.
        """
        n_groups, n_lists = max(1, len(self._sizes)), len(lists.lengths)
        owners, groups = np.divmod(np.unique(owner_of(lists) * n_groups + self._groups[lists.rows]), n_groups)
        sizes, starts = self._sizes[groups], self._starts[groups]
        ends = np.cumsum(sizes)
        indptr = np.concatenate([[0], ends])[np.searchsorted(owners, np.arange(n_lists + 1))]
        rows = np.empty(int(indptr[-1]), np.int64)
        cuts = np.searchsorted(ends, np.arange(_WIDENED_ROWS, len(rows), _WIDENED_ROWS))
        for part in np.split(np.arange(len(ends)), cuts):
            if len(part):
                first, last = ends[part[0]] - sizes[part[0]], ends[part[-1]]
                shifts = starts[part] - (ends[part] - sizes[part])
                rows[first:last] = self._order[np.repeat(shifts, sizes[part]) + np.arange(first, last)]
        for index in np.flatnonzero(np.bincount(owners, minlength=n_lists) > 1).tolist():
            rows[indptr[index] : indptr[index + 1]].sort()  # rows of one group ascend already
        return Lists(indptr, rows)


class Widened(NamedTuple):
    """Lists with all copies of their rows, made when they are asked for: n copies with a query each are n^2 rows."""

    narrow: Lists
    copies: Copies

    def part(self, start: int, stop: int) -> Lists:
        """Lists start..stop-1."""
        return self.copies.widen(self.narrow.part(start, stop))

    def take(self, indices: Int64) -> Lists:
        """The lists of some indices, in their order."""
        return self.copies.widen(self.narrow.take(indices))


def _indptr(lengths: npt.ArrayLike) -> Int64:
    counts = np.asarray(lengths, np.int64)
    indptr = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    return indptr
