"""Filters over the candidates of a run: opened once, asked source by source, counted."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gplfast.errors import ConfigError
from gplfast.mining.bm25 import Ranking
from gplfast.mining.filters import REASONS, Means, Scored, choose
from gplfast.mining.lists import Lists
from gplfast.mining.near import corpus_groups
from gplfast.mining.scoring import by_rows
from gplfast.mining.user_filter import UserFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from gplfast.config import FilterConfig
    from gplfast.mining.filters import Teacher
    from gplfast.mining.lists import Int64
    from gplfast.mining.scoring import PairScorer, Progress

# Candidates per negative that are looked at when a filter is on and [mine] candidates says nothing.
OVERFETCH = 4


class Asked(NamedTuple):
    """The filters that a run asks for.

    Attributes:
        config: Which.
        scorer: The teacher, needed by some and by the audit.
        logits: Whether its scores are logits; otherwise they are probabilities.
    """

    config: FilterConfig
    scorer: PairScorer | None = None
    logits: bool = True

    def teacher(
        self, queries: Sequence[str], passages: Callable[[Int64], list[str]], progress: Progress | None = None
    ) -> Teacher:
        """The teacher over rows of queries and passages; see `by_rows`.

        Raises:
            ConfigError: There is none.
        """
        if self.scorer is None:
            raise ConfigError("a filter or the audit asks the teacher but none was given; give Asked a scorer")
        return by_rows(self.scorer, queries, passages, progress)


class Counts:
    """How many candidates each filter dropped, over sources and shards."""

    def __init__(self, config: FilterConfig) -> None:
        """Nothing is counted yet.

        Args:
            config: Which filters are on: only they are named.
        """
        limits = [limit is not None for limit in config.by_score.values()]
        on = (
            *(any(limits), *limits, bool(config.function), config.near_positive < 1.0, config.by_teacher),
            *(config.pseudo_positive < 1.0, config.denoise < 1.0, config.teacher_margin is not None),
            *(config.near_negative < 1.0, True),
        )
        self._named = [reason for reason, is_on in zip(REASONS, on, strict=True) if is_on]
        self.found: Counter[str] = Counter()

    def named(self) -> dict[str, int]:
        """What a manifest counts: candidates, and what became of those that are no negatives."""
        named = {f"dropped, {reason}": self.found[reason] for reason in self._named}
        return {"candidates": self.found["candidates"], **named, "lists with fewer": self.found["lists with fewer"]}


class Filtering:
    """The filters of one run over one corpus."""

    def __init__(
        self,
        asked: Asked,
        queries: Sequence[str],
        passages: Callable[[Int64], list[str]],
        *,
        docs: npt.NDArray[Any] | None,
        n_candidates: int,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Open what the filters need.

        Args:
            asked: Which filters.
            queries: Texts of all queries.
            passages: Gives the texts of passage rows.
            docs: (n_docs, dim) embeddings of the passages by the run's first bi-encoder; None where it has none.
            n_candidates: Of each query, most of any source.
            threads: CPU threads, 0 for all.
            progress: Called with (pairs scored, pairs to score) while the teacher works.

        Raises:
            ConfigError: Embeddings are compared and there are none, or the user's function cannot be used.
        """
        config = self._config = asked.config
        if config.by_vector and docs is None:
            raise ConfigError(
                "[filter] near_positive and near_negative compare embeddings but no source of negatives is a "
                "bi-encoder; add one"
            )
        self._teacher = asked.teacher(queries, passages, progress) if config.by_teacher else None
        groups = None if docs is None else corpus_groups(docs, config, len(queries), n_candidates, threads)
        function = UserFilter.load(config.function) if config.function else None
        self._means = Means(docs, groups, function, None, asked.logits, threads)

    def __call__(
        self,
        candidates: Ranking,
        positives: Lists,
        own_scores: Callable[[], npt.NDArray[np.float32]] | None,
        queries: Int64,
        n_most: int,
        *,
        column: str,
        counts: Counter[str],
    ) -> tuple[Ranking, Lists]:
        """Drop candidates of some queries.

        Args:
            candidates: Of each query, in the order in which they are asked; padding anywhere.
            positives: Of each query.
            own_scores: Gives the retriever's score of each positive; None where nothing ranked the candidates.
            queries: int64 (n,), the rows of the queries.
            n_most: Negatives per query.
            column: The source.
            counts: What is dropped is added to it.

        Returns:
            The candidates, at most `n_most` of each query, id -1 where one is dropped; and the pseudo-positives.
        """
        there = candidates.ids >= 0
        indptr = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int64)
        rows = np.ascontiguousarray(candidates.ids[there], np.int64)
        offered = Scored(Lists(indptr, rows), np.ascontiguousarray(candidates.scores[there], np.float32))
        known = own_scores is not None and (self._config.needs_own_scores)
        own = own_scores() if own_scores is not None and known else np.full(len(positives.rows), np.nan, np.float32)
        teacher = self._teacher
        means = self._means
        if teacher is not None:
            means = means._replace(teacher=lambda numbers, docs: teacher(queries[numbers], docs))
        limited = own_scores is not None and (not self._config.scored or column in self._config.scored)
        found = choose(Scored(positives, own), offered, n_most, self._config, means, limited=limited)
        counts.update(found.dropped)
        counts["candidates"] += len(rows)
        ids = np.full_like(candidates.ids, -1)
        ids[there] = np.where(found.kept, rows, -1)
        pseudo = np.searchsorted(np.flatnonzero(found.pseudo), indptr).astype(np.int64)
        return Ranking(candidates.scores, ids), Lists(pseudo, rows[found.pseudo])
