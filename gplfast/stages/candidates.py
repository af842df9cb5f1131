"""candidates: what is judged and what was mined of each query, with cosines and the teacher's scores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from gplfast.errors import ArtifactError, ShapeError
from gplfast.mining import dense
from gplfast.mining.lists import Lists, owner_of
from gplfast.store.manifest import Manifest, freshness
from gplfast.store.mined import Mined, Vectors
from gplfast.store.shards import ShardSet

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from gplfast.config import LabelConfig
    from gplfast.mining.scoring import PairScorer
    from gplfast.store.corpus import Corpus
    from gplfast.store.labelled import Positives
    from gplfast.store.negatives import Negatives

SHARD_QUERIES = 2048
Report = Callable[[str, int, int], None]


class Judged(NamedTuple):
    """Judged passages of each query.

    Attributes:
        lists: Their rows, positives first.
        grades: int64 (n,), along `lists.rows`; above 0: positive.
    """

    lists: Lists
    grades: npt.NDArray[np.int64]


def positives_only(queries: Positives) -> Judged:
    """The positives of queries that have no other judgements, all of grade 1."""
    lists = Lists(*queries.positives)
    return Judged(lists, np.ones(len(lists.rows), np.int64))


def manifest(inputs: dict[str, str], models: dict[str, str], label: LabelConfig) -> Manifest:
    """What the candidates depend on.

    Args:
        inputs: "corpus", "queries", "judgements" and "negatives".
        models: "encoder" and "teacher", those there are.
        label: How the teacher is asked.
    """
    settings: dict[str, object] = {"shard_queries": SHARD_QUERIES}
    if "teacher" in models:
        names = ("max_seq_length", "activation", "relevance_label", "nan")
        settings |= {name: getattr(label, name) for name in names}
    return Manifest("candidates", inputs=inputs, config=settings, models=models)


def candidates(
    corpus: Corpus,
    queries: Positives,
    judged: Judged,
    negatives: Negatives,
    *,
    directory: Path,
    wanted: Manifest,
    vectors: Vectors | None,
    scorer: PairScorer | None,
    threads: int = 0,
    report: Report | None = None,
) -> Mined:
    """Join judged and mined passages of each query and score them, shard by shard.

    Per query: its positives in the order of the judgements, the others that are judged, then the mined ones by rank;
    of several retrievers the first of each, then the second of each, and so on. A passage is there once.

    Args:
        corpus: The passages.
        queries: The queries.
        judged: What is judged of each.
        negatives: What was mined for them.
        directory: The artifact's directory.
        wanted: The manifest to write, see `manifest`.
        vectors: Embeddings that cosines are computed from; None: no cosines.
        scorer: The teacher; None: no teacher scores.
        threads: CPU threads, 0 for all; they change nothing.
        report: Called with (what, done, all).

    Returns:
        The candidates of all queries, with the vectors.

    Raises:
        ModelError: The teacher gave NaN, unless the scorer keeps it.
    """
    if not freshness(directory, wanted).fresh:
        shards = ShardSet(directory, wanted)
        joined = join(judged, negatives, len(corpus))
        n = len(queries)
        for shard in shards.missing(max(1, -(-n // SHARD_QUERIES))):
            start, stop = shard * SHARD_QUERIES, min((shard + 1) * SHARD_QUERIES, n)
            part = joined.lists.part(start, stop)
            at = slice(int(joined.lists.indptr[start]), int(joined.lists.indptr[stop]))
            cosine = None if vectors is None else _cosines(vectors, part, start, stop, threads)
            teacher = None
            if scorer is not None:
                show = None if report is None else functools.partial(_show, report, range(start, stop), n)
                teacher = _scores(scorer, corpus, queries.texts[start:stop], part, show)
            shards.write(shard, _table(part, joined.grades[at], cosine, teacher))
        shards.finish({"queries": n, "candidates": len(joined.grades), "positives": int((joined.grades > 0).sum())})
    return load(corpus, queries, directory, wanted, vectors)


def load(corpus: Corpus, queries: Positives, directory: Path, made: Manifest, vectors: Vectors | None) -> Mined:
    """Read the finished artifact that has the manifest `made`.

    Raises:
        ArtifactError: It is damaged or belongs to another collection.
    """
    table = ShardSet(directory, made).table()
    try:
        lengths = table["lengths"].to_numpy()
        parts = {name: _flat(table, name) for name in ("cosine", "teacher")}
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        docs, grades = (np.asarray(_flat(table.select([name]), name), np.int64) for name in ("docs", "grades"))
        found = Mined(
            corpus,
            list(queries.ids),
            list(queries.texts),
            indptr,
            docs,
            grades,
            parts["cosine"],
            parts["teacher"],
            vectors,
        )
    except (KeyError, ShapeError) as error:
        raise ArtifactError(f"{directory} does not hold candidates ({error}); delete it to make it again") from error
    if len(docs) and not 0 <= docs.min() <= docs.max() < len(corpus):
        raise ArtifactError(f"{directory}: names passage row {docs.max()} but there are {len(corpus)}; delete it")
    return found


def join(judged: Judged, negatives: Negatives, n_docs: int) -> Judged:
    """One list per query: what is judged, then what was mined in rank order, each passage once.

    Args:
        judged: Of all queries. Where the negatives name hard positives, the others are left out.
        negatives: Of some of them, in any number of lists. What was promoted follows the positives, of grade 1.
        n_docs: How many passages there are.
    """
    judged = _with_promoted(_hard_only(judged, negatives), negatives, n_docs)
    n = len(judged.lists.indptr) - 1
    owners = [np.repeat(np.arange(n), judged.lists.lengths)]
    docs, grades = [judged.lists.rows], [judged.grades]
    ranks = [np.full(len(judged.grades), -1, np.int64)]
    numbers = [np.arange(len(judged.grades), dtype=np.int64)]  # of the judged: their order; else of the list
    for number, ranked in enumerate(negatives.lists.values()):
        lengths = np.diff(ranked.indptr)
        owners.append(np.repeat(negatives.queries, lengths))
        docs.append(ranked.docs)
        grades.append(np.zeros(len(ranked.docs), np.int64))
        ranks.append(np.arange(len(ranked.docs)) - np.repeat(ranked.indptr[:-1], lengths))
        numbers.append(np.full(len(ranked.docs), number, np.int64))
    owner, doc = np.concatenate(owners).astype(np.int64), np.concatenate(docs)
    order = np.lexsort((np.concatenate(numbers), np.concatenate(ranks), owner))
    _, first = np.unique(owner[order] * n_docs + doc[order], return_index=True)
    order = order[np.sort(first)]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(owner[order], minlength=n))]).astype(np.int64)
    return Judged(Lists(indptr, np.ascontiguousarray(doc[order])), np.concatenate(grades)[order])


def _hard_only(judged: Judged, negatives: Negatives) -> Judged:
    """Of the positives of each query the hard one only."""
    if negatives.positives is None:
        return judged
    hard, asked = np.full(len(judged.lists.lengths), -1, np.int64), np.zeros(len(judged.lists.lengths), np.bool_)
    hard[negatives.queries], asked[negatives.queries] = negatives.positives, True
    owners = owner_of(judged.lists)
    kept = (judged.grades <= 0) | (judged.lists.rows == hard[owners]) | ~asked[owners]
    return _judged(owners[kept], judged.lists.rows[kept], judged.grades[kept], len(hard))


def _with_promoted(judged: Judged, negatives: Negatives, n_docs: int) -> Judged:
    """With what was promoted behind the positives, unless it is judged."""
    if negatives.promoted is None:
        return judged
    promoted, owners = negatives.promoted, owner_of(judged.lists)
    more = np.repeat(negatives.queries, np.diff(promoted.indptr))
    new = ~np.isin(more * n_docs + promoted.docs, owners * n_docs + judged.lists.rows)
    owner = np.concatenate([owners, more[new]])
    rows = np.concatenate([judged.lists.rows, promoted.docs[new]])
    grades = np.concatenate([judged.grades, np.ones(new.sum(), np.int64)])
    order = np.lexsort((grades <= 0, owner))  # stable: positives in their order, the promoted, the others
    return _judged(owner[order], rows[order], grades[order], len(judged.lists.lengths))


def _judged(
    owners: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], grades: npt.NDArray[np.int64], n: int
) -> Judged:
    indptr = np.searchsorted(owners, np.arange(n + 1)).astype(np.int64)
    return Judged(Lists(indptr, np.ascontiguousarray(rows)), grades)


# Queries whose pairs are gathered at a time: with 100 candidates of 768 dimensions 160 MB.
_PAIR_QUERIES = 256


def _cosines(vectors: Vectors, pairs: Lists, start: int, stop: int, threads: int) -> npt.NDArray[np.float32]:
    parts = []
    for begin in range(start, stop, _PAIR_QUERIES):
        end = min(begin + _PAIR_QUERIES, stop)
        some = pairs.part(begin - start, end - start)
        queries = np.ascontiguousarray(vectors.queries[begin:end])
        parts.append(dense.pair_scores(queries, vectors.docs, some, metric="cosine", threads=threads))
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def teacher_scores(
    scorer: PairScorer, corpus: Corpus, texts: Sequence[str], pairs: Lists, report: Report | None
) -> npt.NDArray[np.float32]:
    """The teacher's scores of all pairs, float32 (n_pairs,), the texts of a shard of queries in memory."""
    n, parts = len(texts), []
    for start in range(0, n, SHARD_QUERIES):
        stop = min(start + SHARD_QUERIES, n)
        show = None if report is None else functools.partial(_show, report, range(start, stop), n)
        parts.append(_scores(scorer, corpus, texts[start:stop], pairs.part(start, stop), show))
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _scores(
    scorer: PairScorer, corpus: Corpus, texts: Sequence[str], pairs: Lists, show: Callable[[int, int], None] | None
) -> npt.NDArray[np.float32]:
    query_of = np.repeat(np.arange(len(texts), dtype=np.int64), pairs.lengths)
    rows, passage_of = np.unique(pairs.rows, return_inverse=True)
    return scorer.score(texts, corpus.texts(rows), query_of, passage_of.astype(np.int64), show)


def _show(report: Report, shard: range, n: int, done: int, total: int) -> None:
    report("score", shard.start + len(shard) * done // max(total, 1), n)


def _table(
    lists: Lists,
    grades: npt.NDArray[np.int64],
    cosine: npt.NDArray[np.float32] | None,
    teacher: npt.NDArray[np.float32] | None,
) -> pa.Table:
    import pyarrow as pa

    indptr = pa.array(lists.indptr)
    columns = {"docs": lists.rows, "grades": grades, "cosine": cosine, "teacher": teacher}
    found = {"lengths": pa.array(lists.lengths)}
    for name, values in columns.items():
        if values is not None:
            found[name] = pa.LargeListArray.from_arrays(indptr, pa.array(values))
    return pa.table(found)


def _flat(table: pa.Table, name: str) -> npt.NDArray[np.float32] | None:
    """The values of a list column one after the other, in its own type; None where there is no such column."""
    if name not in table.column_names:
        return None
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[name].chunks]
    return np.concatenate(parts) if parts else None
