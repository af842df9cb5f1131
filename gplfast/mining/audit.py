"""How many of the kept negatives are false ones, estimated by the teacher on a sample of the queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gplfast.mining.filters import lowest
from gplfast.mining.lists import Lists, owner_of
from gplfast.mining.sampling import permutation
from gplfast.store.atomic import read_json, write_json
from gplfast.store.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path

    from gplfast.mining.filtering import Asked
    from gplfast.mining.filters import Teacher
    from gplfast.mining.lists import Int64
    from gplfast.store.negatives import Negatives

AUDIT_FILE = "audit.json"
# Borders of the histogram of margins, of logits; of probabilities they are a tenth of it.
_EDGES = (-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0)


class Found(NamedTuple):
    """What the teacher says of a sample's negatives.

    Attributes:
        negatives: How many different (query, negative) pairs it scored; those without a score do not count.
        false_negatives: How many of them it scores at or above the lowest positive of their query.
        histogram: Pairs by margin (lowest positive - negative): (-inf, e0], (e0, e1], …, (e8, inf).
        edges: e0 to e8; one of them is 0, so the false ones are the bins up to it.
        sources: Name of each source to its negatives and its false ones; one in two sources counts in both.
    """

    negatives: int
    false_negatives: int
    histogram: list[int]
    edges: list[float]
    sources: dict[str, list[int]]

    @property
    def share(self) -> float:
        """False negatives among the negatives; 0 where there are none."""
        return self.false_negatives / self.negatives if self.negatives else 0.0


def sample(positives: Lists, negatives: Negatives, n: int, seed: int) -> Int64:
    """Up to `n` queries that have a positive and a negative, drawn by Philox (seed, "audit", 0), ascending."""
    able = np.flatnonzero((positives.lengths > 0) & (np.diff(negatives.union()[0]) > 0))
    return np.sort(able[permutation(seed, "audit", 0, len(able))[:n]])


def audit(positives: Lists, negatives: Negatives, queries: Int64, teacher: Teacher, *, logits: bool) -> Found:
    """Let the teacher read the negatives and the positives of some queries.

    Args:
        positives: Of every query.
        negatives: Of every query, in the same order.
        queries: int64, which are looked at, ascending.
        teacher: Scores pairs.
        logits: Whether its scores are logits; otherwise probabilities.

    Returns:
        What was found.
    """
    union = _of(Lists(*negatives.union()), queries)
    own = _of(positives, queries)
    owners = owner_of(union)
    limits = lowest(own, teacher(queries[owner_of(own)], own.rows))
    margins = limits[owners] - teacher(queries[owners], union.rows)
    known = ~np.isnan(margins)
    edges = np.array(_EDGES) if logits else np.array(_EDGES) / 10.0
    histogram = np.bincount(np.searchsorted(edges, margins[known], side="left"), minlength=len(edges) + 1)
    false = margins <= 0.0
    sources = {}
    for name, ranked in negatives.lists.items():
        part = _of(Lists(ranked.indptr, ranked.docs), queries)
        among = known & _members(union, part)
        sources[name] = [int(among.sum()), int((among & false).sum())]
    return Found(int(known.sum()), int((false & known).sum()), histogram.tolist(), edges.tolist(), sources)


def audited(
    directory: Path, positives: Lists, negatives: Negatives, asked: Asked, teacher: Teacher, *, seed: int
) -> None:
    """Audit finished negatives once: audit.json beside them, and two counts in their manifest, whose key stays.

    Args:
        directory: Of the negatives.
        positives: Of every query.
        negatives: What is in the directory.
        asked: Says how many queries are looked at.
        teacher: Scores pairs.
        seed: Of the sample.
    """
    made = Manifest.read(directory)
    of = {"negatives": made.key, "teacher": asked.reader, "queries": asked.config.audit, "seed": seed}
    path = directory / AUDIT_FILE
    told = read_json(path) if path.is_file() else {}
    if told.get("of") != of:
        queries = sample(positives, negatives, asked.config.audit, seed)
        found = audit(positives, negatives, queries, teacher, logits=asked.logits)
        told = {"of": of, "queries": len(queries), **found._asdict(), "share": found.share}
        write_json(path, told)
    counts = {"negatives audited": told["negatives"], "false negatives among them": told["false_negatives"]}
    if not counts.items() <= made.counts.items():
        made.with_counts({**made.counts, **counts}).write(directory)


def forget(directory: Path) -> None:
    """Delete the audit of negatives that are made anew."""
    (directory / AUDIT_FILE).unlink(missing_ok=True)


def _of(lists: Lists, queries: Int64) -> Lists:
    """The lists of some queries."""
    lengths = lists.lengths[queries]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    at = np.arange(indptr[-1]) - np.repeat(indptr[:-1] - lists.indptr[queries], lengths)
    return Lists(indptr, lists.rows[at])


def _members(union: Lists, part: Lists) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which entries of the union are in the same query's list of a part."""
    both = [np.stack([owner_of(lists), lists.rows], axis=1) for lists in (union, part)]
    _, number = np.unique(np.concatenate(both), axis=0, return_inverse=True)
    number = number.reshape(-1)
    found: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.isin(number[: len(union.rows)], number[len(union.rows) :])
    return found
