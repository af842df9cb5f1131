"""Which mined candidates stay negatives: functions over lists in CSR form, and the order in which they are asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gplfast.mining.lists import Lists

if TYPE_CHECKING:
    from gplfast.config import FilterConfig
    from gplfast.mining.lists import Int64
    from gplfast.mining.user_filter import UserFilter

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
# Scores of a teacher for pairs: int64 queries (numbers of lists) and int64 passage rows, both (n,), to float32 (n,).
Teacher = Callable[["Int64", "Int64"], Floats]

# In the order in which they are asked: a candidate counts for the first that drops it.
REASONS = (
    "no score",
    "min score",
    "max score",
    "absolute margin",
    "relative margin",
    "function",
    "near positive",
    "no teacher score",
    "pseudo positive",
    "denoise",
    "teacher margin",
    "near negative",
    "not needed",
)
_OF_MARGINS = ("nan", "min_score", "max_score", "absolute_margin", "relative_margin")
# Cosines computed at a time, of pairs of candidates: 64 MiB.
_GRAM_VALUES = 1 << 24


class Scored(NamedTuple):
    """Passages of some queries with a retriever's scores.

    Attributes:
        lists: Their rows; candidates best first.
        scores: float32 (n,), along `lists.rows`; NaN where the retriever has none.
    """

    lists: Lists
    scores: Floats


class Means(NamedTuple):
    """What some filters need besides lists and scores; None where no filter asks for it.

    Attributes:
        docs: (n_docs, dim) embeddings of all passages, float32 or float16.
        groups: int64 (n_docs,), see `corpus_groups`.
        function: The user's filter.
        teacher: Scores pairs.
        logits: Whether the teacher's scores are logits and no probabilities yet.
        threads: CPU threads, 0 for all.
    """

    docs: npt.NDArray[Any] | None = None
    groups: Int64 | None = None
    function: UserFilter | None = None
    teacher: Teacher | None = None
    logits: bool = True
    threads: int = 0


class Chosen(NamedTuple):
    """What became of the candidates.

    Attributes:
        kept: bool (n,), at most so many per query as were asked for.
        dropped: How many of REASONS each; with those kept they add up to n.
        pseudo: bool (n,), the teacher takes them for positives.
        scores: float32 (n,), the teacher's; NaN where it was not asked.
    """

    kept: Bools
    dropped: dict[str, int]
    pseudo: Bools
    scores: Floats


def choose(positives: Scored, candidates: Scored, n_most: int, config: FilterConfig, means: Means) -> Chosen:
    """Ask every filter that is on, in the order of REASONS, and keep the first `n_most` survivors of each query.

    The teacher reads candidates in the order of their lists and only until a query has enough: what comes after that
    is "not needed", as is what survived everything behind the last one kept. The answer is the same as if it had read
    all of them.

    Args:
        positives: Of each query, any number.
        candidates: Of each query, best first, none of them a positive.
        n_most: Negatives per query, at least 1.
        config: Which filters.
        means: What they need.

    Returns:
        Chosen. It follows from the arguments alone, whatever the threads.

    Raises:
        UserFilterError: The user's function does not compile, fails, or returns something else.
    """
    count = _Count(len(candidates.scores))
    alive = count.after(by_score(positives, candidates, config.by_score, means.threads))
    if means.function is not None:
        alive = count.drop("function", alive, _by_function(means.function, positives, candidates, alive, means.threads))
    lists = candidates.lists
    if config.near_positive < 1.0:
        near = near_positives(_embeddings(means), positives.lists, lists, alive, config.near_positive, means)
        alive = count.drop("near positive", alive, ~near)
    pairs = Pairs(*[np.empty(0, np.int64)] * 2)
    if config.near_negative < 1.0:
        pairs = similar_pairs(_embeddings(means), lists, alive, config.near_negative, means)
    pseudo, scores = np.zeros(len(alive), np.bool_), np.full(len(alive), np.nan, np.float32)
    read = alive
    if config.by_teacher:
        reading = _Reading(positives.lists, lists, n_most, config, means)
        read, passed, pseudo, scores = reading.run(alive, pairs, count)
        count.dropped["not needed"] += int((alive & ~read).sum())
        alive = passed
    alive = count.drop("near negative", alive, greedy(lists, alive, pairs))
    kept = count.drop("not needed", alive, first(lists, alive, np.full(len(lists.indptr) - 1, n_most)))
    return Chosen(kept, count.dropped, pseudo, scores)


def by_score(
    positives: Scored, candidates: Scored, limits: dict[str, float | None], threads: int = 0
) -> tuple[Bools, dict[str, int]]:
    """Limits of the retriever's score and of its distance to the lowest positive (`gplfast.margins` says how).

    A query without positives has no distance to keep: its candidates pass the margins. One with a positive that has no
    score (NaN) loses all of its candidates to them, as "no score".

    Args:
        positives: Of each query, any number.
        candidates: Of each query.
        limits: min_score, max_score, absolute_margin and relative_margin; None: off.
        threads: CPU threads, 0 for all.

    Returns:
        Kept, bool (n,), and how many each of the first of REASONS dropped.
    """
    from gplfast import ops

    lists, own = candidates.lists, positives
    lengths = positives.lists.lengths
    if limits["absolute_margin"] is None and limits["relative_margin"] is None:
        own = _constant(np.ones_like(lengths), 0.0)
    elif not lengths.all():
        own = _padded(positives)
    found = ops.margins(
        own.scores, own.lists.indptr, candidates.scores, lists.indptr, reference="min", threads=threads or None, **limits
    )
    dropped = dict(zip(REASONS, (found.dropped[name] for name in _OF_MARGINS), strict=False))
    return found.kept, dropped


def near_positives(
    docs: npt.NDArray[Any], positives: Lists, candidates: Lists, alive: Bools, threshold: float, means: Means
) -> Bools:
    """Which candidates have an embedding whose cosine to one of their query's positives is above a threshold.

    Args:
        docs: (n_docs, dim) float32 or float16.
        positives: Of each query, any number.
        candidates: Of each query.
        alive: bool (n,), the candidates that are looked at.
        threshold: Compared with the canonical cosine, a float32. A row without a cosine (zeros, NaN) is near nothing.
        means: Its groups and threads.

    Returns:
        bool (n,).
    """
    from gplfast import ops

    owners = owner_of(candidates)
    at = np.flatnonzero(alive)
    repeats = positives.lengths[owners[at]]
    pairs = np.repeat(at, repeats)
    offsets = np.arange(len(pairs)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    own = positives.rows[positives.indptr[owners[pairs]] + offsets]
    rows = candidates.rows[pairs]
    if means.groups is not None:
        together = means.groups[own] == means.groups[rows]
        pairs, own, rows = pairs[together], own[together], rows[together]
    near = np.zeros(len(alive), np.bool_)
    for start in range(0, len(pairs), _GRAM_VALUES):
        part = slice(start, start + _GRAM_VALUES)
        both = np.ascontiguousarray(np.stack([own[part], rows[part]], axis=1).ravel())
        indptr = 2 * np.arange(len(both) // 2 + 1, dtype=np.int64)
        found = ops.gram(docs, (indptr, both), triangle=True, threads=means.threads or None)
        near[pairs[part][found.values > np.float32(threshold)]] = True
    return near


class Pairs(NamedTuple):
    """Pairs of similar candidates of the same query, by their positions in the lists; both int64 (n_pairs,)."""

    earlier: Int64
    later: Int64


def similar_pairs(docs: npt.NDArray[Any], candidates: Lists, alive: Bools, threshold: float, means: Means) -> Pairs:
    """The pairs of a query's candidates whose embeddings have a cosine above a threshold.

    Args:
        docs: (n_docs, dim) float32 or float16.
        candidates: Of each query.
        alive: bool (n,), the candidates that are looked at.
        threshold: As of `near_positives`.
        means: Its groups and threads.

    Returns:
        The pairs, by query. Memory: they, and 64 MiB of cosines.
    """
    from gplfast import ops

    if means.groups is not None:
        alive = alive & _grouped(candidates, alive, means.groups)
    at = np.flatnonzero(alive)
    indptr = np.searchsorted(at, candidates.indptr).astype(np.int64)
    lengths = np.diff(indptr)
    ends = np.cumsum(lengths * (lengths - 1) // 2)
    found, start = [Pairs(*[np.empty(0, np.int64)] * 2)], 0
    while start < len(lengths):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _GRAM_VALUES, side="right")))
        part = at[indptr[start] : indptr[stop]]
        here = indptr[start : stop + 1] - indptr[start]
        values = ops.gram(docs, (here, candidates.rows[part]), triangle=True, threads=means.threads or None)
        hits = np.flatnonzero(values.values > np.float32(threshold))
        owner = np.searchsorted(values.indptr, hits, side="right") - 1
        row, column = triangle_places(hits - values.indptr[owner], np.diff(here)[owner])
        found.append(Pairs(part[here[owner] + row], part[here[owner] + column]))
        start = stop
    return Pairs(*(np.concatenate(side) for side in zip(*found, strict=True)))


def triangle_places(numbers: Int64, sizes: Int64) -> tuple[Int64, Int64]:
    """Row and column of the values above the diagonal of square matrices, numbered row by row, all int64 (n,)."""
    # Counted from the end, row r from below holds the values r (r + 1) / 2 and on.
    back = sizes * (sizes - 1) // 2 - 1 - numbers
    below = ((np.sqrt(8.0 * back + 1.0) - 1.0) / 2.0).astype(np.int64)
    below += (below + 1) * (below + 2) // 2 <= back  # a root that was rounded down
    below -= below * (below + 1) // 2 > back
    rows = sizes - 2 - below
    return rows, sizes - 1 - (back - below * (below + 1) // 2)


def greedy(candidates: Lists, alive: Bools, pairs: Pairs) -> Bools:
    """Which candidates stay when each is dropped that is similar to one before it which stays.

    Args:
        candidates: Of each query.
        alive: bool (n,), those that are there.
        pairs: The similar ones.

    Returns:
        bool (n,), some of `alive`.
    """
    kept = alive.copy()
    if not len(pairs.later):
        return kept
    places = pairs.later - candidates.indptr[owner_of(candidates)[pairs.later]]
    order = np.argsort(places, kind="stable")
    earlier, later = pairs.earlier[order], pairs.later[order]
    # One place of all lists at a time: what comes before it is decided.
    borders = np.flatnonzero(np.diff(places[order], prepend=-1, append=np.iinfo(np.int64).max))
    for start, stop in zip(borders[:-1], borders[1:], strict=True):
        kept[later[start:stop][kept[earlier[start:stop]]]] = False
    return kept


def first(lists: Lists, alive: Bools, most: Int64) -> Bools:
    """The first `most[i]` entries of each list i that are alive: bool (n,)."""
    before = np.cumsum(alive) - alive
    starts = np.concatenate([before, [0]])[np.minimum(lists.indptr[:-1], len(alive))]
    owners = owner_of(lists)
    return alive & (before - starts[owners] < most[owners])


def owner_of(lists: Lists) -> Int64:
    """The list of each entry, int64 (n,)."""
    return np.repeat(np.arange(len(lists.indptr) - 1, dtype=np.int64), lists.lengths)


def corpus_groups(
    docs: npt.NDArray[Any], config: FilterConfig, n_queries: int, n_candidates: int, threads: int = 0
) -> Int64 | None:
    """Groups of passages outside of which no two are near duplicates, or None where they would cost more than they save.

    The groups are the connected components of the passages at the lower threshold that is on (`gplfast.dedup`). Passages
    of different groups are not similar, so only those that share a group need be compared: the answer is the same with
    and without. They take n_docs^2 / 2 comparisons once, comparing within lists n_candidates^2 / 2 for each query.

    Args:
        docs: (n_docs, dim) float32 or float16.
        config: Which filters.
        n_queries: How many queries, of all sources.
        n_candidates: Candidates of each.
        threads: CPU threads, 0 for all.

    Returns:
        int64 (n_docs,) or None.
    """
    from gplfast import ops

    each = n_candidates**2 if config.near_negative < 1.0 else 2 * n_candidates
    if not config.by_vector or len(docs) ** 2 > n_queries * each:
        return None
    threshold = min(config.near_positive, config.near_negative)
    return ops.dedup(docs, threshold, rule="components", threads=threads or None).representative


def probabilities(scores: Floats, *, logits: bool) -> npt.NDArray[np.float64]:
    """A teacher's scores as probabilities, float64 (n,)."""
    values = scores.astype(np.float64)
    return 1.0 / (1.0 + np.exp(-np.clip(values, -700.0, 700.0))) if logits else values


def lowest(positives: Lists, scores: Floats) -> npt.NDArray[np.float64]:
    """The lowest score of each query's positives, float64 (n_queries,); NaN meets NaN, +inf where there are none."""
    values = np.concatenate([scores.astype(np.float64), [np.inf]])
    found = np.minimum.reduceat(values, np.minimum(positives.indptr[:-1], len(scores)))
    return np.where(positives.lengths > 0, found, np.inf)


class _Count:
    """What is still there, and how many each filter dropped."""

    def __init__(self, n: int) -> None:
        self.dropped = dict.fromkeys(REASONS, 0)
        self.n = n

    def after(self, kept: tuple[Bools, dict[str, int]]) -> Bools:
        self.dropped.update(kept[1])
        return kept[0]

    def drop(self, reason: str, alive: Bools, passed: Bools) -> Bools:
        stays = alive & passed
        self.dropped[reason] += int(alive.sum() - stays.sum())
        return stays


class _Reading:
    """The teacher reads candidates, in rounds: of each query so many as it still needs."""

    def __init__(self, positives: Lists, lists: Lists, n_most: int, config: FilterConfig, means: Means) -> None:
        if means.teacher is None:
            raise ValueError("a filter asks the teacher but Means.teacher is None")
        self.positives, self.lists, self.n_most, self.config = positives, lists, n_most, config
        self.teacher, self.logits, self.owners = means.teacher, means.logits, owner_of(lists)

    def run(self, alive: Bools, pairs: Pairs, count: _Count) -> tuple[Bools, Bools, Bools, Floats]:
        """Which were read, which passed, which are pseudo-positives, and the scores."""
        read, passed = np.zeros_like(alive), np.zeros_like(alive)
        pseudo, scores = np.zeros_like(alive), np.full(len(alive), np.nan, np.float32)
        limits = self._limits(alive)
        while True:
            n_kept = np.bincount(self.owners[greedy(self.lists, passed, pairs)], minlength=len(self.lists.indptr) - 1)
            todo = first(self.lists, alive & ~read, self.n_most - n_kept)
            if not todo.any():
                return read, passed, pseudo, scores
            scores[todo] = self.teacher(self.owners[todo], self.lists.rows[todo])
            read |= todo
            good, taken = self._judge(todo, scores, limits, count)
            passed |= good
            pseudo |= taken

    def _limits(self, alive: Bools) -> npt.NDArray[np.float64]:
        """The lowest teacher score of the positives of each query that has a candidate; +inf for the others."""
        limits = np.full(len(self.lists.indptr) - 1, np.inf)
        if self.config.teacher_margin is not None:
            wanted = np.bincount(self.owners[alive], minlength=len(limits)) > 0
            owners = owner_of(self.positives)
            asked = wanted[owners]
            scores = np.full(len(owners), np.nan, np.float32)
            scores[asked] = self.teacher(owners[asked], self.positives.rows[asked])
            limits[wanted] = lowest(self.positives, scores)[wanted]
        return limits

    def _judge(
        self, todo: Bools, scores: Floats, limits: npt.NDArray[np.float64], count: _Count
    ) -> tuple[Bools, Bools]:
        config, limit = self.config, limits[self.owners]
        chance = probabilities(scores, logits=self.logits)
        stays = count.drop("no teacher score", todo, ~np.isnan(scores) & ~np.isnan(limit))
        taken = stays & (chance > config.pseudo_positive)
        stays = count.drop("pseudo positive", stays, ~taken)
        stays = count.drop("denoise", stays, (chance <= config.denoise) | (config.denoise >= 1.0))
        if config.teacher_margin is not None:
            stays = count.drop("teacher margin", stays, limit - scores > config.teacher_margin)
        return stays, taken


def _by_function(
    function: UserFilter, positives: Scored, candidates: Scored, alive: Bools, threads: int
) -> Bools:
    """What the user's function keeps of the candidates that are left, the others never shown to it."""
    at = np.flatnonzero(alive)
    indptr = np.searchsorted(at, candidates.lists.indptr).astype(np.int64)
    starts = candidates.lists.indptr[owner_of(candidates.lists)[at]]
    kept = np.zeros(len(alive), np.bool_)
    kept[at] = function(
        Scored(Lists(indptr, candidates.lists.rows[at]), candidates.scores[at]), positives, at - starts, threads=threads
    )
    return kept


def _embeddings(means: Means) -> npt.NDArray[Any]:
    if means.docs is None:
        raise ValueError("a filter compares embeddings but Means.docs is None")
    return means.docs


def _grouped(candidates: Lists, alive: Bools, groups: Int64) -> Bools:
    """Which of the entries that are alive share their group with another one of their list."""
    at = np.flatnonzero(alive)
    keys = np.stack([owner_of(candidates)[at], groups[candidates.rows[at]]], axis=1)
    _, inverse, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    shared = np.zeros(len(alive), np.bool_)
    shared[at] = counts[inverse.reshape(-1)] > 1
    return shared


def _constant(lengths: Int64, value: float) -> Scored:
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Scored(Lists(indptr, np.zeros(indptr[-1], np.int64)), np.full(indptr[-1], value, np.float32))


def _padded(positives: Scored) -> Scored:
    """The same positives; a query without one has +inf, which every candidate is far below."""
    padded = _constant(np.maximum(positives.lists.lengths, 1), np.inf)
    filled = np.repeat(positives.lists.lengths > 0, padded.lists.lengths)
    padded.scores[filled] = positives.scores
    return padded
