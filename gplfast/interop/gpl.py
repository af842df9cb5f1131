"""The files of UKPLab/gpl and BEIR, read and written byte for byte as their own writers do.

| file | content |
| --- | --- |
| corpus.jsonl | `{"_id", "title", "text", "metadata"}` |
| qgen-queries.jsonl | `{"_id": "genQ1", "text": …, "metadata": {}}` |
| qgen-qrels/train.tsv | header, then query, document, 1; CRLF |
| hard-negatives.jsonl | `{"qid", "pos": [id], "neg": {retriever: [id]}}`, ids in rank order |
| gpl-training-data.tsv | query, positive, negative, margin; no header |
"""

from __future__ import annotations

import csv
import json
import math
from array import array
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from gplfast.errors import DataError, ShapeError
from gplfast.store.atomic import atomic_write
from gplfast.store.corpus import Corpus, Queries, load_queries
from gplfast.store.lines import describe, json_objects, text_lines
from gplfast.store.negatives import Negatives, RankedLists
from gplfast.store.qrels import HEADER, Qrels, load_qrels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

QUERIES_FILE = "qgen-queries.jsonl"
QRELS_FILE = "qgen-qrels/train.tsv"
HARD_NEGATIVES_FILE = "hard-negatives.jsonl"
TRAINING_DATA_FILE = "gpl-training-data.tsv"


@dataclass(frozen=True, eq=False)
class HardNegatives:
    """What hard-negatives.jsonl holds, as row numbers.

    Attributes:
        negatives: one list per line of the file and retriever, without scores.
        positives: the positive documents of each line; list i belongs to `negatives.queries[i]`.
    """

    negatives: Negatives
    positives: RankedLists


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What gpl-training-data.tsv holds, as row numbers.

    Attributes:
        queries: int64 (n,).
        positives: int64 (n,), document rows.
        negatives: int64 (n,), document rows.
        margins: float32 (n,), score of the positive minus score of the negative.
    """

    queries: NDArray[np.int64]
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    margins: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Check that the columns are of one length."""
        shapes = [column.shape for column in (self.queries, self.positives, self.negatives, self.margins)]
        if len(set(shapes)) != 1 or len(shapes[0]) != 1:
            raise ShapeError(f"training data: columns have shapes {shapes}; give four of shape (n,)")

    def __len__(self) -> int:
        """How many rows."""
        return len(self.margins)


def read_queries(path: str | Path) -> Queries:
    """Read qgen-queries.jsonl, or BEIR's queries.jsonl.

    Raises:
        DataError: naming file and line.
    """
    return load_queries(Path(path))


def write_queries(path: str | Path, queries: Queries) -> None:
    """Write qgen-queries.jsonl, or BEIR's queries.jsonl."""
    with atomic_write(path) as file:
        for name, text in zip(queries.ids, queries.texts, strict=True):
            file.write(_json_line({"_id": name, "text": text, "metadata": {}}))


def read_qrels(path: str | Path, corpus: Corpus | None = None, queries: Queries | None = None) -> Qrels:
    """Read qgen-qrels/train.tsv, or a file of BEIR's qrels; ids are checked against what is given.

    Raises:
        DataError: naming file and line.
    """
    return load_qrels(Path(path), corpus=corpus, queries=queries)


def write_qrels(path: str | Path, qrels: Qrels) -> None:
    """Write qgen-qrels/train.tsv, or a file of BEIR's qrels: header, tabs, CRLF, quotes only where needed."""
    with atomic_write(path) as file:
        file.write(_tsv_line(HEADER))
        for query, grades in qrels.items():
            for doc, grade in grades.items():
                file.write(_tsv_line([query, doc, str(grade)]))


def write_corpus(path: str | Path, corpus: Corpus) -> None:
    """Write BEIR's corpus.jsonl, one batch of rows in memory."""
    with atomic_write(path) as file:
        for batch in corpus.table.to_batches(max_chunksize=16_384):
            for row in batch.to_pylist():
                file.write(_json_line({**row, "metadata": {}}))


def write_beir(
    folder: str | Path, corpus: Corpus, queries: Queries | None = None, qrels: Mapping[str, Qrels] | None = None
) -> None:
    """Write a BEIR folder.

    Args:
        folder: created when missing.
        corpus: becomes corpus.jsonl.
        queries: become queries.jsonl.
        qrels: split name to judgements; become qrels/<split>.tsv.
    """
    root = Path(folder)
    write_corpus(root / "corpus.jsonl", corpus)
    if queries is not None:
        write_queries(root / "queries.jsonl", queries)
    for split, judgements in (qrels or {}).items():
        write_qrels(root / "qrels" / f"{split}.tsv", judgements)


def qrels_to_rows(qrels: Qrels, corpus: Corpus, queries: Queries) -> tuple[NDArray[np.int64], RankedLists]:
    """Judgements above 0 as row numbers.

    Returns:
        Query rows int64 (n,), in the order of `qrels`, and for each the relevant document rows, in that order.

    Raises:
        DataError: when an id is unknown.
    """
    rows = array("q", (queries.row(name) for name in qrels))
    docs = [[corpus.row(doc) for doc, grade in grades.items() if grade > 0] for grades in qrels.values()]
    return np.array(rows, np.int64), _lists(docs)


def rows_to_qrels(
    query_rows: NDArray[np.int64], positives: RankedLists, corpus: Corpus, queries: Queries, *, grade: int = 1
) -> Qrels:
    """The way back: row numbers as judgements of one grade."""
    return {
        queries.ids[row]: {corpus.ids[doc]: grade for doc in positives[i].tolist()}
        for i, row in enumerate(query_rows.tolist())
    }


def read_hard_negatives(path: str | Path, corpus: Corpus, queries: Queries) -> HardNegatives:
    """Read hard-negatives.jsonl (R-GPL's hard-negatives-remined-*.jsonl too).

    Raises:
        DataError: naming file and line, when a line is malformed, names unknown ids, or has other retrievers than the
            first one.
    """
    file = Path(path)
    query_rows = array("q")
    positives: list[list[int]] = []
    lists: dict[str, list[list[int]]] = {}
    for line, item in json_objects(file):
        where = f"{file}: line {line}"
        qid, neg = item.get("qid"), item.get("neg")
        if not isinstance(qid, str):
            raise DataError(f"{where}: 'qid' is {describe(qid)}, should be a string; this is not a hard-negatives file")
        if not isinstance(neg, dict):
            raise DataError(f"{where}: 'neg' is {describe(neg)}, should be an object of lists by retriever")
        if not lists and not positives:
            lists = {name: [] for name in neg}
        if list(neg) != list(lists):
            raise DataError(f"{where}: has retrievers {list(neg)} but the first line has {list(lists)}; mine again")
        query_rows.append(_row(queries, qid, where))
        positives.append(_doc_rows(corpus, item.get("pos"), where, "pos"))
        for name, ids in neg.items():
            lists[name].append(_doc_rows(corpus, ids, where, f"neg.{name}"))
    negatives = Negatives(np.array(query_rows, np.int64), {name: _lists(docs) for name, docs in lists.items()})
    return HardNegatives(negatives, _lists(positives))


def write_hard_negatives(path: str | Path, hard_negatives: HardNegatives, corpus: Corpus, queries: Queries) -> None:
    """Write hard-negatives.jsonl."""
    negatives, positives = hard_negatives.negatives, hard_negatives.positives
    if len(positives.indptr) != len(negatives) + 1:
        raise ShapeError(
            f"{len(positives.indptr) - 1} lists of positives but {len(negatives)} queries; give one for each"
        )
    with atomic_write(path) as file:
        for i, row in enumerate(negatives.queries.tolist()):
            record = {
                "qid": queries.ids[row],
                "pos": [corpus.ids[doc] for doc in positives[i].tolist()],
                "neg": {name: [corpus.ids[doc] for doc in docs[i].tolist()] for name, docs in negatives.lists.items()},
            }
            file.write(_json_line(record))


def read_training_data(path: str | Path, corpus: Corpus, queries: Queries) -> TrainingData:
    """Read gpl-training-data.tsv (gpl-training-data.rescaled.tsv too). Memory: 28 bytes per row.

    Raises:
        DataError: naming file and line, when a line is malformed or names unknown ids.
    """
    file = Path(path)
    rows = [array("q"), array("q"), array("q")]
    margins = array("d")
    for line, text in text_lines(file):
        where = f"{file}: line {line}"
        fields = text.rstrip("\r\n").split("\t")
        if len(fields) != 4:
            raise DataError(
                f"{where}: has {len(fields)} columns but 4 are expected (query, positive, negative, margin)"
            )
        try:
            margin = float(fields[3])
        except ValueError:
            margin = math.nan
        if not math.isfinite(margin):
            raise DataError(f"{where}: margin is {fields[3]!r}, should be a finite number; GPL's file has no header")
        rows[0].append(_row(queries, fields[0], where))
        rows[1].append(_row(corpus, fields[1], where))
        rows[2].append(_row(corpus, fields[2], where))
        margins.append(margin)
    query_rows, positives, negatives = (np.array(column, np.int64) for column in rows)
    return TrainingData(query_rows, positives, negatives, np.array(margins, np.float32))


def write_training_data(
    path: str | Path,
    data: TrainingData,
    corpus: Corpus,
    queries: Queries,
    *,
    digits: Literal["float32", "float64"] = "float32",
) -> None:
    """Write gpl-training-data.tsv.

    Args:
        path: the file.
        data: row numbers and margins.
        corpus: for the documents' ids.
        queries: for the queries' ids.
        digits: "float32" writes the fewest digits that give the same float32 (18.465141, as GPL's published files);
            "float64" widens first (18.46514129638672, as GPL's later code). Both read back to the same margins.

    Raises:
        DataError: when an id has a tab or line end, which the format cannot hold.
    """
    with atomic_write(path) as file:
        columns = (data.queries.tolist(), data.positives.tolist(), data.negatives.tolist(), data.margins)
        for query, positive, negative, margin in zip(*columns, strict=True):
            ids = (queries.ids[query], corpus.ids[positive], corpus.ids[negative])
            for name in ids:
                if any(mark in name for mark in "\t\r\n"):
                    raise DataError(
                        f"{path}: id {name!r} has a tab or line end, which this format cannot hold; rename it"
                    )
            number = str(margin) if digits == "float32" else str(float(margin))
            file.write(("\t".join((*ids, number)) + "\n").encode())


def _row(collection: Corpus | Queries, name: str, where: str) -> int:
    try:
        return collection.row(name)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _doc_rows(corpus: Corpus, ids: object, where: str, field: str) -> list[int]:
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise DataError(f"{where}: {field!r} should be a list of strings; this is not a hard-negatives file")
    return [_row(corpus, name, where) for name in ids]


def _lists(docs: list[list[int]]) -> RankedLists:
    indptr = np.cumsum([0, *map(len, docs)]).astype(np.int64)
    return RankedLists(indptr, np.fromiter((doc for ranked in docs for doc in ranked), np.int64, int(indptr[-1])))


def _json_line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _tsv_line(fields: list[str]) -> bytes:
    buffer = StringIO()
    csv.writer(buffer, delimiter="\t", quoting=csv.QUOTE_MINIMAL).writerow(fields)
    return buffer.getvalue().encode()
