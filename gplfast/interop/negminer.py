"""The files of nixiesearch/negminer: its documented JSON lines, and the negatives that its export writes.

- candidates: `query` (id), `docs` (ids), `doc_scores`, `query_doc_cos`, `query_doc_ce`, `doc_doc_cos` (n x n by rows)
- negatives.jsonl: `query` (text), `pos`, `pos_cos_score`, `pos_ce_score`, `neg`, `neg_cos_score`, `neg_ce_score`, and
  `dropped_dupes`, `dropped_too_close`, `dropped_too_high`

`query_doc_cos` are cosines of mined documents too (negminer's own program writes 2 cos - 1 for these).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gplfast.errors import ConfigError, DataError
from gplfast.interop.examples import Example, Passage
from gplfast.interop.fields import json_bytes, records, write_lines
from gplfast.store.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from gplfast.interop.fields import Record
    from gplfast.store.corpus import Corpus
    from gplfast.store.mined import Mined

CANDIDATES_FILE = "negminer.jsonl"
NEGATIVES_FILE = "negatives.jsonl"
# What `Rule.apply` counts, as negminer's export names it.
DUPES, TOO_CLOSE, TOO_HIGH = "dropped_dupes", "dropped_too_close", "dropped_too_high"
_KIND = "a file of negminer"


class Rule(NamedTuple):
    """Which candidates negminer's export keeps (export/__main__.py), in row order.

    Attributes:
        dup_threshold: A candidate whose cosine to any row before it, positives and dropped ones too, is above this is
            a duplicate. Above 1: none is.
        pos_neg_threshold: One whose teacher score is not below the lowest positive's by more than this is too close;
            None: none is. Without teacher scores none is.
        pos_threshold: One whose teacher score is not below this is too high; None: none is. (negminer's export asks for
            this setting, which its configuration does not have.)
        negatives_count: At most so many are kept; 0: all.
    """

    dup_threshold: float = 0.95
    pos_neg_threshold: float | None = 0.05
    pos_threshold: float | None = None
    negatives_count: int = 8


def apply(rule: Rule, mined: Mined, *, threads: int = 0) -> tuple[Mined, dict[str, NDArray[np.int64]]]:
    """Keep the positives of each query and those of its negatives that pass the rule.

    Args:
        rule: The thresholds.
        mined: The candidates, with vectors where duplicates are looked for.
        threads: CPU threads, 0 for all; they change nothing.

    Returns:
        What is left, and per query how many negatives were dropped, each for the first reason that it has: int64
        (n_queries,) under "dropped_dupes", "dropped_too_close" and "dropped_too_high". What only comes after
        `negatives_count` others is not counted, as there.

    Raises:
        ConfigError: Duplicates are looked for and there are no vectors.
    """
    negative = mined.grades <= 0
    duplicate = negative & duplicates(mined, rule.dup_threshold, threads=threads)
    close = negative & ~duplicate & _too_close(mined, rule)
    high = negative & ~duplicate & ~close
    if rule.pos_threshold is None or mined.teacher is None:
        high[:] = False
    else:
        high &= ~(mined.teacher < rule.pos_threshold)
    kept = negative & ~duplicate & ~close & ~high
    counts = {
        name: np.bincount(mined.owners[dropped], minlength=len(mined))
        for name, dropped in ((DUPES, duplicate), (TOO_CLOSE, close), (TOO_HIGH, high))
    }
    if rule.negatives_count:
        before = np.concatenate([[0], np.cumsum(kept)])  # how many are kept ahead of each candidate, of all queries
        kept &= before[:-1] - before[mined.indptr[:-1]][mined.owners] < rule.negatives_count
    return mined.only(~negative | kept), counts


def duplicates(mined: Mined, threshold: float, *, threads: int = 0) -> NDArray[np.bool_]:
    """Which candidates have a cosine above the threshold to any candidate of the same query before them, bool (n,).

    Raises:
        ConfigError: The threshold is not above 1 and there are no vectors.
    """
    from gplfast import ops

    found = np.zeros(len(mined.docs), bool)
    if threshold >= 1.0:
        return found
    if mined.vectors is None:
        raise ConfigError("duplicates by cosine need an encoder among the retrievers; add one, or set no dup_threshold")
    block = 1024  # queries; with 100 candidates each the triangles of a block are 20 MB
    for start in range(0, len(mined), block):
        stop = min(start + block, len(mined))
        indptr = mined.indptr[start : stop + 1] - mined.indptr[start]
        rows = np.ascontiguousarray(mined.docs[mined.indptr[start] : mined.indptr[stop]])
        grams = ops.gram(mined.vectors.docs, (indptr, rows), metric="cosine", triangle=True, threads=threads or None)
        for query, size in enumerate(np.diff(indptr).tolist()):
            above = np.flatnonzero(grams.values[grams.indptr[query] : grams.indptr[query + 1]] > threshold)
            later = np.triu_indices(size, 1)[1][above]
            found[mined.indptr[start + query] + later] = True
    return found


def _too_close(mined: Mined, rule: Rule) -> NDArray[np.bool_]:
    if rule.pos_neg_threshold is None or mined.teacher is None:
        return np.zeros(len(mined.docs), bool)
    lowest = np.full(len(mined), np.inf, np.float64)
    positive = mined.grades > 0
    with np.errstate(invalid="ignore"):
        np.minimum.at(lowest, mined.owners[positive], mined.teacher[positive].astype(np.float64))
        # A NaN of the teacher is no reason to keep: only what is surely below passes.
        return ~(lowest[mined.owners] - mined.teacher > rule.pos_neg_threshold)


def write_candidates(path: str | Path, examples: Iterable[Example]) -> int:
    """Write negminer's documented JSON lines, one query in memory; returns how many.

    `query_doc_ce` and `doc_doc_cos` are there where they are known. Decimals are the fewest that give the same float32.

    Raises:
        ConfigError: Cosines are not known.
    """
    n = 0
    with atomic_write(path) as file:
        for example in examples:
            passages = example.passages
            cosines = [passage.cosine for passage in passages]
            if passages and all(cosine is None for cosine in cosines):
                raise ConfigError("negminer's lines need cosines, and no encoder was used; mine with an encoder")
            values = {
                "query": example.id,
                "docs": [passage.id for passage in passages],
                "doc_scores": [float(passage.grade) for passage in passages],
                "query_doc_cos": cosines,
            }
            if any(passage.asked or passage.teacher is not None for passage in passages):
                values["query_doc_ce"] = [passage.teacher for passage in passages]
            line = json_bytes(values)
            if example.matrix is not None:
                line = line[:-1] + b', "doc_doc_cos": [' + _decimals(example.matrix) + b"]}"
            file.write(line + b"\n")
            n += 1
    return n


def read_candidates(
    path: str | Path, corpus: Corpus | None = None, queries: Mapping[str, str] | None = None
) -> Iterator[Example]:
    """Read negminer's JSON lines, one in memory.

    Args:
        path: The file.
        corpus: For the texts of the documents; without it they are "".
        queries: Id to text; without it a query's text is "".

    Raises:
        DataError: Naming file and line.
    """
    for record in records(Path(path), _KIND):
        ids = record.texts("docs")
        n, name = len(ids), record.text("query")
        scores = record.numbers("doc_scores", n)
        cosines, teacher = record.numbers("query_doc_cos", n), record.optional_numbers("query_doc_ce", n)
        passages = [
            Passage(*_document(corpus, doc, record), doc, _grade(score, record), cosine, ce, "query_doc_ce" in record)
            for doc, score, cosine, ce in zip(ids, scores, cosines, teacher, strict=True)
        ]
        matrix = None
        if "doc_doc_cos" in record:
            values = record.numbers("doc_doc_cos", n * n)
            matrix = np.array([math.nan if value is None else value for value in values], np.float32).reshape(n, n)
        if queries is not None and name not in queries:
            raise DataError(f"{record.where}: no query has the id {name!r}; there are {len(queries)} queries")
        positives = [passage for passage in passages if passage.grade > 0]
        negatives = [passage for passage in passages if passage.grade <= 0]
        yield Example("" if queries is None else queries[name], positives, negatives, name, matrix)


def write_negatives(
    path: str | Path, examples: Iterable[Example], counts: Mapping[str, NDArray[np.int64]] | None = None
) -> int:
    """Write the lines of negminer's negatives.jsonl; returns how many.

    Args:
        path: The file.
        examples: Queries without a positive or without a negative are left out, as there; for `counts` to fit, give
            all queries in order.
        counts: As `apply` returns; without it the counters are 0.
    """

    def lines() -> Iterator[dict[str, object]]:
        for number, example in enumerate(examples):
            if example.positives and example.negatives:
                dropped = {
                    name: 0 if counts is None else int(counts[name][number]) for name in (DUPES, TOO_CLOSE, TOO_HIGH)
                }
                yield {
                    "query": example.query,
                    **_side("pos", example.positives),
                    **_side("neg", example.negatives),
                    **dropped,
                }

    return write_lines(path, lines())


def read_negatives(path: str | Path) -> Iterator[Example]:
    """Read negatives.jsonl, one line in memory.

    Raises:
        DataError: Naming file and line.
    """
    for record in records(Path(path), _KIND):
        sides = []
        for name, grade in (("pos", 1), ("neg", 0)):
            texts = record.texts(name)
            cosines = record.optional_numbers(f"{name}_cos_score", len(texts))
            teacher = record.optional_numbers(f"{name}_ce_score", len(texts))
            sides.append(
                [
                    Passage(text, grade=grade, cosine=cosine, teacher=ce)
                    for text, cosine, ce in zip(texts, cosines, teacher, strict=True)
                ]
            )
        yield Example(record.text("query"), sides[0], sides[1])


def _grade(score: float | None, record: Record) -> int:
    if score is None or score != int(score):
        raise DataError(f"{record.where}: 'doc_scores' has {score}, should be a whole number; grades of qrels are such")
    return int(score)


def _document(corpus: Corpus | None, name: str, record: Record) -> tuple[str, str]:
    """Text and title."""
    if corpus is None:
        return "", ""
    if not corpus.has(name):
        raise DataError(f"{record.where}: no document has the id {name!r}; the corpus has {len(corpus)} documents")
    row = corpus.row(name)
    return corpus.table["text"][row].as_py(), corpus.table["title"][row].as_py()


def _side(name: str, passages: list[Passage]) -> dict[str, object]:
    return {
        name: [passage.full for passage in passages],
        f"{name}_cos_score": [passage.cosine for passage in passages],
        f"{name}_ce_score": [passage.teacher for passage in passages],
    }


def _decimals(matrix: NDArray[np.float32]) -> bytes:
    """The values by rows, comma separated; pyarrow writes them 6 times as fast as `json` (0.17 against 1.0 us each)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    flat = matrix.ravel()
    words = pa.array(flat, mask=np.isnan(flat)).cast(pa.string())
    # pyarrow writes 1 for 1.0: a reader that takes the type from the first number would take whole ones.
    whole = flat == np.trunc(flat)
    words = pc.replace_with_mask(words, pa.array(whole), pa.array([str(value) for value in flat[whole]], pa.string()))
    words = words.fill_null("null")
    lists = pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), words)
    return str(pc.binary_join(lists, ", ")[0].as_py()).encode()
