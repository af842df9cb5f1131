"""Ragged lists of passage rows in CSR form: `indptr` int64 (n_lists + 1,) and `rows` int64 (indptr[-1],)."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Int64 = npt.NDArray[np.int64]


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
        return from_sequences([self.list(index) for index in indices.tolist()])

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
    kept = []
    for index in range(len(lists.lengths)):
        rows = lists.list(index)
        kept.append(rows[~np.isin(rows, excluded.list(index))])
    return from_sequences(kept)


def same_text_groups(texts: Sequence[str]) -> Int64:
    """For each text the row of the first that is equal to it, int64 (n_texts,): equal texts share their group."""
    first: dict[bytes, int] = {}
    groups = np.empty(len(texts), np.int64)
    for row, text in enumerate(texts):
        digest = hashlib.blake2b(text.strip().encode("utf-8"), digest_size=16).digest()
        groups[row] = first.setdefault(digest, row)
    return groups


def widener(groups: Int64) -> Callable[[Lists], Lists]:
    """What adds to each list every row that has the same text as one of its rows, ascending and without repeats.

    Args:
        groups: int64 (n_texts,), see `same_text_groups`; sorted once, for any number of lists.
    """
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]

    def widen(positives: Lists) -> Lists:
        starts = np.searchsorted(ordered, groups[positives.rows], side="left")
        ends = np.searchsorted(ordered, groups[positives.rows], side="right")
        wide = []
        for begin, end in itertools.pairwise(positives.indptr.tolist()):
            members = [order[starts[place] : ends[place]] for place in range(begin, end)]
            wide.append(np.unique(np.concatenate(members)) if members else np.empty(0, np.int64))
        return from_sequences(wide)

    return widen


def widen(positives: Lists, groups: Int64) -> Lists:
    """Apply what `widener` gives, once."""
    return widener(groups)(positives)


def _indptr(lengths: npt.ArrayLike) -> Int64:
    counts = np.asarray(lengths, np.int64)
    indptr = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    return indptr
