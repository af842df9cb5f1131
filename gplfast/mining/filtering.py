"""Filters over the candidates of a run: opened once, asked source by source, counted."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gplfast.errors import ConfigError
from gplfast.filter_settings import FilterConfig
from gplfast.mining.bm25 import Ranking
from gplfast.mining.filters import REASONS, Means, Scored, choose
from gplfast.mining.lists import Lists, owner_of
from gplfast.mining.near import corpus_groups
from gplfast.mining.scoring import by_rows
from gplfast.mining.user_filter import UserFilter, function_fingerprint
from gplfast.settings import output_settings
from gplfast.store.negatives import RankedLists, different

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt
    import pyarrow as pa

    from gplfast.config import LabelConfig
    from gplfast.mining.filters import Chosen, Teacher
    from gplfast.mining.lists import Int64
    from gplfast.mining.scoring import PairScorer, Progress
    from gplfast.mining.sources import Source
    from gplfast.store.negatives import Negatives

# Candidates per negative that are looked at when a filter is on and [mine] candidates says nothing.
OVERFETCH = 4

# Beside the negatives, where [filter] pseudo_positive is on.
PSEUDO_POSITIVES = "pseudo_positives"


class Asked(NamedTuple):
    """The filters that a run asks for.

    Attributes:
        config: Which.
        scorer: The teacher, needed by some and by the audit.
        logits: Whether its scores are logits; otherwise they are probabilities.
        reader: What the teacher's scores depend on, for the record of the audit.
    """

    config: FilterConfig = FilterConfig()
    scorer: PairScorer | None = None
    logits: bool = True
    reader: Mapping[str, Any] | None = None

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


class Tally:
    """What became of the candidates of a shard, over its sources."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self._counts: Counter[str] = Counter()
        self._pseudo: list[Lists] = []

    def add(self, found: Chosen, candidates: Lists, short: int) -> None:
        """Count what became of one source's candidates; `short` of its lists could not be filled."""
        self._counts.update({**found.dropped, "candidates": len(found.kept), "lists with fewer": short})
        indptr = np.searchsorted(np.flatnonzero(found.pseudo), candidates.indptr).astype(np.int64)
        self._pseudo.append(Lists(indptr, candidates.rows[found.pseudo]))

    def told(self) -> dict[str, dict[str, int]]:
        """The counts under "filters"; nothing where no filter is on."""
        return {"filters": dict(self._counts)} if self._counts else {}

    def with_pseudo_positives(self, negatives: Negatives, config: FilterConfig) -> pa.Table:
        """The table of the negatives, with what the teacher takes for positives: of each query ascending and once.

        Promoted where that is asked for; otherwise listed in a column `pseudo_positives` that nothing reads.
        """
        if config.pseudo_positive >= 1.0:
            return negatives.table()
        owners = np.concatenate([owner_of(lists) for lists in self._pseudo])
        rows = np.concatenate([lists.rows for lists in self._pseudo])
        found = RankedLists(*different(owners, rows, len(negatives)))
        if config.promote:
            return dataclasses.replace(negatives, promoted=found).table()
        import pyarrow as pa

        lists = pa.LargeListArray.from_arrays(pa.array(found.indptr), pa.array(found.docs))
        return negatives.table().append_column(PSEUDO_POSITIVES, lists)


def named(config: FilterConfig, counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """What a manifest counts: candidates, how many each filter that is on dropped, and lists that were not filled.

    Args:
        config: Which filters are on.
        counts: Of each shard.
    """
    if not config.on:
        return {}
    limits = [limit is not None for limit in config.by_score.values()]
    on = (
        *(config.limits_score, *limits, bool(config.function), config.near_positive < 1.0, config.by_teacher),
        *(config.pseudo_positive < 1.0, config.denoise < 1.0, config.teacher_margin is not None),
        *(config.near_negative < 1.0, True),
    )
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    dropped = {f"dropped, {reason}": total[reason] for reason, is_on in zip(REASONS, on, strict=True) if is_on}
    return {"candidates": total["candidates"], **dropped, "lists with fewer": total["lists with fewer"]}


def identity(config: FilterConfig, label: LabelConfig, teacher: Callable[[], str]) -> dict[str, Any]:
    """What the filters depend on, for the manifest of the negatives; nothing where none is on.

    Args:
        config: Which filters.
        label: The teacher's settings.
        teacher: Gives the fingerprint of the teacher; called where a filter asks it.

    Raises:
        ConfigError: The user's file is not there.
    """
    if not config.on:
        return {}
    settings = output_settings(config)
    if config.function:
        settings["function"] = function_fingerprint(config.function)  # the path does not matter
    if config.by_teacher:
        settings["teacher"] = reader(label, teacher())
    return settings


def reader(label: LabelConfig, fingerprint: str) -> dict[str, Any]:
    """What a teacher's scores depend on."""
    names = ("max_seq_length", "activation", "relevance_label", "nan")
    return {"fingerprint": fingerprint, **{name: getattr(label, name) for name in names}}


class Filtering:
    """The filters of one run over one corpus; what they need is opened when the first candidates come."""

    def __init__(
        self,
        asked: Asked,
        queries: Sequence[str],
        passages: Callable[[Int64], list[str]],
        *,
        docs: Sequence[npt.NDArray[Any]],
        n_candidates: int,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            asked: Which filters.
            queries: Texts of all queries.
            passages: Gives the texts of passage rows.
            docs: Embeddings of the passages, (n_docs, dim), by each bi-encoder of the run; the first are compared.
            n_candidates: Of each query, most of any source.
            threads: CPU threads, 0 for all.
            progress: Called with (pairs scored, pairs to score) while the teacher works.
        """
        self._asked, self._config, self._queries, self._passages = asked, asked.config, queries, passages
        self._docs, self._n_candidates, self._threads, self._progress = docs, n_candidates, threads, progress

    @functools.cached_property
    def _means(self) -> Means:
        config, docs = self._config, self._docs[0] if self._docs else None
        if config.by_vector and docs is None:
            raise ConfigError(
                "[filter] near_positive and near_negative compare embeddings but no source of negatives is a "
                "bi-encoder; add one"
            )
        teacher = self._asked.teacher(self._queries, self._passages, self._progress) if config.by_teacher else None
        function = UserFilter.load(config.function) if config.function else None
        groups = None
        if docs is not None:
            groups = corpus_groups(docs, config, len(self._queries), self._n_candidates, self._threads)
        return Means(docs, groups, function, teacher, self._asked.logits, self._threads)

    def __call__(
        self,
        candidates: Ranking,
        positives: Lists,
        own_scores: Callable[[], npt.NDArray[np.float32]] | None,
        queries: Int64,
        source: Source,
        *,
        kept: npt.NDArray[np.bool_],
        tally: Tally,
        places: Int64 | None = None,
    ) -> Ranking:
        """Drop a source's candidates of some queries.

        Args:
            candidates: Of each query, in the order in which they are asked; padding anywhere.
            positives: Of each query.
            own_scores: Gives the retriever's score of each positive; None where nothing ranked the candidates.
            queries: int64 (n,), the rows of the queries.
            source: How many are wanted, and which limits are for it.
            kept: bool (n,), the queries that may have negatives.
            tally: What becomes of the candidates is added to it.
            places: int64, like the candidates: their places from 0 in what the source gave; None: as they come.

        Returns:
            The candidates, id -1 where one is dropped; at most `source.n` of each query are left where a filter is on.
        """
        config, there = self._config, (candidates.ids >= 0) & kept[:, None]
        if not config.on:
            return candidates._replace(ids=np.where(there, candidates.ids, -1))
        indptr = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int64)
        rows = np.ascontiguousarray(candidates.ids[there], np.int64)
        if places is None:
            places = np.broadcast_to(np.arange(candidates.ids.shape[1]), candidates.ids.shape)
        ranks = np.asarray(source.first + places[there], np.int64)
        offered = Scored(Lists(indptr, rows), np.ascontiguousarray(candidates.scores[there], np.float32), ranks)
        own = np.full(len(positives.rows), np.nan, np.float32)
        if own_scores is not None and config.needs_own_scores:
            own = own_scores()
        means = self._means
        if (teacher := means.teacher) is not None:
            means = means._replace(teacher=lambda numbers, docs: teacher(queries[numbers], docs))
        named = not config.scored or {source.column, source.retriever} & set(config.scored)
        limited = own_scores is not None and bool(named)
        found = choose(Scored(positives, own), offered, source.n, config, means, limited=limited)
        lengths = np.bincount(owner_of(offered.lists)[found.kept], minlength=len(queries))
        tally.add(found, offered.lists, int((kept & (lengths < source.n)).sum()))
        ids = np.full_like(candidates.ids, -1)
        ids[there] = np.where(found.kept, rows, -1)
        return Ranking(candidates.scores, ids)
