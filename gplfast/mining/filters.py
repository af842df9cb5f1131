"""Which mined candidates stay negatives: functions over lists in CSR form, and the order in which they are asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gplfast.mining.lists import Lists, owner_of
from gplfast.mining.near import Pairs, greedy, near_positives, similar_pairs

if TYPE_CHECKING:
    from gplfast.filter_settings import FilterConfig
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


class Scored(NamedTuple):
    """Passages of some queries with a retriever's scores.

    Attributes:
        lists: Their rows; candidates in the order in which they are asked, best first unless that is drawn.
        scores: float32 (n,), along `lists.rows`; NaN where the retriever has none.
        ranks: int64 (n,), places in the search from 0; None: those in the lists.
    """

    lists: Lists
    scores: Floats
    ranks: Int64 | None = None


class Means(NamedTuple):
    """What some filters need besides lists and scores; None where no filter asks for it.

    Attributes:
        docs: (n_docs, dim) embeddings of all passages, float32 or float16.
        groups: int64 (n_docs,), see `gplfast.mining.near.corpus_groups`; None: all pairs are compared.
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


def choose(
    positives: Scored, candidates: Scored, n_most: int, config: FilterConfig, means: Means, *, limited: bool = True
) -> Chosen:
    """Ask every filter that is on, in the order of REASONS, and keep the first `n_most` survivors of each query.

    The teacher reads candidates in the order of their lists and only until a query has enough: what comes after that
    is "not needed", as is what survived everything behind the last one kept. The answer is the same as if it had read
    all of them.

    Args:
        positives: Of each query, any number.
        candidates: Of each query, none of them a positive.
        n_most: Negatives per query, at least 1.
        config: Which filters.
        means: What they need.
        limited: Whether the limits of the retriever's score are asked: not of what was drawn or listed without one.

    Returns:
        Chosen. It follows from the arguments alone, whatever the threads.

    Raises:
        ConfigError: The user's function does not compile, or returns something else than bools.
        DataError: It failed.
    """
    count, alive = _Count(), np.ones(len(candidates.scores), np.bool_)
    if limited and config.limits_score:
        alive, dropped = by_score(positives, candidates, config, means.threads)
        count.dropped.update(dropped)
    if means.function is not None:
        alive = count.drop("function", alive, _by_function(means.function, positives, candidates, alive, means.threads))
    lists = candidates.lists
    if config.near_positive < 1.0:
        near = near_positives(
            _embeddings(means),
            positives.lists,
            lists,
            alive,
            config.near_positive,
            groups=means.groups,
            threads=means.threads,
        )
        alive = count.drop("near positive", alive, ~near)
    pairs = Pairs(*[np.empty(0, np.int64)] * 2)
    if config.near_negative < 1.0:
        pairs = similar_pairs(
            _embeddings(means), lists, alive, config.near_negative, groups=means.groups, threads=means.threads
        )
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
    positives: Scored, candidates: Scored, config: FilterConfig, threads: int = 0
) -> tuple[Bools, dict[str, int]]:
    """Limits of the retriever's score and of its distance to the lowest positive (`gplfast.margins` says how).

    A query without positives has no distance to keep: its candidates pass the margins. One with a positive that has no
    score (NaN) loses all of its candidates to them, as "no score".

    Args:
        positives: Of each query, any number.
        candidates: Of each query.
        config: Its min_score, max_score, absolute_margin and relative_margin; None: off.
        threads: CPU threads, 0 for all.

    Returns:
        Kept, bool (n,), and how many each of the first of REASONS dropped.
    """
    from gplfast import ops

    lists, own = candidates.lists, positives
    lengths = positives.lists.lengths
    if config.absolute_margin is None and config.relative_margin is None:
        own = _constant(np.ones_like(lengths), 0.0)
    elif not lengths.all():
        own = _padded(positives)
    found = ops.margins(
        own.scores,
        own.lists.indptr,
        candidates.scores,
        lists.indptr,
        reference="min",
        threads=threads or None,
        min_score=config.min_score,
        max_score=config.max_score,
        absolute_margin=config.absolute_margin,
        relative_margin=config.relative_margin,
    )
    dropped = dict(zip(REASONS, (found.dropped[name] for name in _OF_MARGINS), strict=False))
    return found.kept, dropped


def first(lists: Lists, alive: Bools, most: Int64) -> Bools:
    """The first `most[i]` entries of each list i that are alive: bool (n,)."""
    before: Int64 = np.cumsum(alive) - alive
    starts = np.concatenate([before, [0]])[np.minimum(lists.indptr[:-1], len(alive))]
    owners = owner_of(lists)
    found: Bools = alive & (before - starts[owners] < most[owners])
    return found


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
    """How many each filter dropped."""

    def __init__(self) -> None:
        self.dropped = dict.fromkeys(REASONS, 0)

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


def _by_function(function: UserFilter, positives: Scored, candidates: Scored, alive: Bools, threads: int) -> Bools:
    """What the user's function keeps of the candidates that are left, in rank order; the others are not shown to it."""
    at, owners, ranks = np.flatnonzero(alive), owner_of(candidates.lists), candidates.ranks
    indptr = np.searchsorted(at, candidates.lists.indptr).astype(np.int64)
    if ranks is None:
        ranks = np.arange(len(alive)) - candidates.lists.indptr[owners]
    at = at[np.lexsort((ranks[at], owners[at]))]
    shown = Scored(Lists(indptr, candidates.lists.rows[at]), candidates.scores[at])
    kept = np.zeros(len(alive), np.bool_)
    kept[at] = function(shown, positives, ranks[at], threads=threads)
    return kept


def _embeddings(means: Means) -> npt.NDArray[Any]:
    if means.docs is None:
        raise ValueError("a filter compares embeddings but Means.docs is None")
    return means.docs


def _constant(lengths: Int64, value: float) -> Scored:
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Scored(Lists(indptr, np.zeros(indptr[-1], np.int64)), np.full(indptr[-1], value, np.float32))


def _padded(positives: Scored) -> Scored:
    """The same positives; a query without one has +inf, which every candidate is far below."""
    padded = _constant(np.maximum(positives.lists.lengths, 1), np.inf)
    filled = np.repeat(positives.lists.lengths > 0, padded.lists.lengths)
    padded.scores[filled] = positives.scores
    return padded
