"""What a refresh of the negatives changes: lists put together, and how much of them is new."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.mining.lists import Lists
from gplfast.mining.sampling import permutation
from gplfast.store.atomic import read_json
from gplfast.store.negatives import different

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from gplfast.mining.lists import Int64

LOG = "refreshes.json"  # in the student's directory


def replaced(old: Lists, new: Lists) -> Lists:
    """The new list of each query; the old one of a query for which nothing was found.

    Queries whose old list is empty stay empty: what was left out of the training stays out of it.
    """
    taken = np.where(old.lengths > 0, np.where(new.lengths > 0, 2, 1), 0)
    queries, rows = _pairs(old), _pairs(new)
    kept = np.concatenate([queries[taken[queries[:, 0]] == 1], rows[taken[rows[:, 0]] == 2]])
    return Lists(*different(kept[:, 0], kept[:, 1], len(taken)))


def joined(old: Lists, new: Lists) -> Lists:
    """The passages of both lists of each query, each once and ascending; queries whose old list is empty stay empty."""
    both = np.concatenate([_pairs(old), _pairs(new)])
    kept = both[old.lengths[both[:, 0]] > 0]
    return Lists(*different(kept[:, 0], kept[:, 1], len(old.lengths)))


def overlap(old: Lists, new: Lists, k: int) -> float:
    """Mean over the queries of the share of the first k of the new list that the old one has (in its first k or not).

    Queries without a new list do not count; 1 when there are none.
    """
    pairs = _pairs(new)
    starts = np.repeat(new.indptr[:-1], new.lengths)
    first = pairs[np.arange(len(pairs)) - starts < k]
    lengths = np.bincount(first[:, 0], minlength=len(new.lengths))
    found = np.bincount(first[:, 0], weights=_in(first, _pairs(old)), minlength=len(new.lengths))
    counted = lengths > 0
    return float((found[counted] / lengths[counted]).mean()) if counted.any() else 1.0


def unseen(seen: Lists, new: Lists) -> float:
    """The share of the new lists' entries that are in no list of the same query before; 0 when there are none."""
    pairs = _pairs(new)
    return float(1.0 - _in(pairs, _pairs(seen)).mean()) if len(pairs) else 0.0


def n_pairs(queries: Int64, positives: Int64, negatives: Int64) -> int:
    """How many different (query, passage) pairs some training rows have.

    Args:
        queries: int64 (n_rows,).
        positives: int64 (n_rows,).
        negatives: int64 (n_rows,) or (n_rows, n_negatives).
    """
    passages = np.column_stack([positives, negatives])
    n_queries = 1 + int(queries.max(initial=0))
    return len(different(np.repeat(queries, passages.shape[1]), passages.ravel(), n_queries)[1])


def sample(seed: int, stage: str, n: int, size: int) -> Int64:
    """`size` of the rows 0..n-1 (all of them where there are fewer), ascending; a function of (seed, stage, n)."""
    return np.sort(permutation(seed, stage, 0, n)[:size])


def line(log: Mapping[str, Any]) -> str:
    """What a refresh did, as one line for people."""
    head = f"refresh at step {log['step']}:" if log["refreshed"] else f"step {log['step']}, lists kept:"
    shown = [
        *(f"{name} {log[name]:.2f}" for name in log if name.startswith("overlap@") or name == "sample_overlap"),
        *(f"{text} {log[name]:.2f}" for name, text in (("new_documents", "new documents"),) if name in log),
        *([_scores(log)] if "teacher_score" in log else []),
        f"{log['pairs_scored']} pairs scored" + (f", {log['pairs_saved']} known" if "pairs_saved" in log else ""),
        ", ".join(f"{name} {seconds:.1f} s" for name, seconds in log["seconds"].items()),
    ]
    return f"{head} {', '.join(shown)}"


def read_log(directory: Path) -> list[dict[str, Any]]:
    """The log of a student's refreshes so far; empty when there was none."""
    try:
        found: list[dict[str, Any]] = read_json(directory / LOG)
    except FileNotFoundError:
        return []
    return found


def _scores(log: Mapping[str, Any]) -> str:
    return f"teacher score of negatives {log['teacher_score_before']:.2f} to {log['teacher_score']:.2f}"


def _pairs(lists: Lists) -> Int64:
    """int64 (n, 2): the query and passage of each entry, in order."""
    return np.stack([np.repeat(np.arange(len(lists.lengths)), lists.lengths), lists.rows], axis=1)


def _in(pairs: Int64, among: Int64) -> npt.NDArray[np.bool_]:
    """Bool (n,): whether each pair is among others."""
    width = 1 + max(int(pairs[:, 1].max(initial=0)), int(among[:, 1].max(initial=0)))
    found: npt.NDArray[np.bool_] = np.isin(pairs[:, 0] * width + pairs[:, 1], among[:, 0] * width + among[:, 1])
    return found
