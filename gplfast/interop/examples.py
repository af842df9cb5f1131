"""What the writers of other tools' files are given and their readers give: one query with its passages at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gplfast.errors import ConfigError, DataError
from gplfast.store.columns import ColumnBuilder
from gplfast.store.corpus import Corpus
from gplfast.store.mined import Mined

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

# Queries whose texts are in memory at a time; larger makes a look-up in the corpus no faster (256 to 4,096: the same).
BATCH_QUERIES = 256


class Passage(NamedTuple):
    """A document as a candidate of one query.

    Attributes:
        text: Without the title.
        title: "" where there is none.
        id: "" where the file has none.
        grade: Above 0 for a positive.
        cosine: Of query and document; None where it is not known.
        teacher: The cross-encoder's score; None where it is not known.
        asked: A cross-encoder was asked for all: where it gave no score there is none.
    """

    text: str
    title: str = ""
    id: str = ""
    grade: int = 0
    cosine: float | None = None
    teacher: float | None = None
    asked: bool = False

    @property
    def full(self) -> str:
        """Title and text as models see them."""
        return f"{self.title} {self.text}" if self.title and self.text else self.title or self.text

    @property
    def score(self) -> float | None:
        """The teacher's where it was asked or is known, else the cosine: scores of one source are on one scale."""
        return self.teacher if self.asked or self.teacher is not None else self.cosine


class Example(NamedTuple):
    """A query with its positives and negatives.

    Attributes:
        query: Its text.
        positives: In the order of the judgements.
        negatives: In rank order.
        id: "" where the file has none.
        matrix: float32 (n, n), cosines of all its passages, positives first, with each other; or None.
        margin: The teacher's, of the positive over the negative, where a file has no more than that; or None.
    """

    query: str
    positives: list[Passage]
    negatives: list[Passage]
    id: str = ""
    matrix: NDArray[np.float32] | None = None
    margin: float | None = None

    @property
    def passages(self) -> list[Passage]:
        """Positives, then negatives."""
        return [*self.positives, *self.negatives]


def examples(mined: Mined, *, matrix: bool = False, empty: bool = False) -> Iterator[Example]:
    """The queries of `mined` one by one; the texts of a batch of them are in memory.

    Args:
        mined: The candidates.
        matrix: Compute the cosines of each query's passages with each other (n^2 float32 per query).
        empty: Give queries without a positive or without a negative too.

    Raises:
        ConfigError: A matrix is wanted and there are no vectors.
    """
    if matrix and mined.vectors is None:
        raise ConfigError("cosines of documents with each other need an encoder; mine with one, or leave them out")
    for start in range(0, len(mined), BATCH_QUERIES):
        yield from _batch(mined, start, min(start + BATCH_QUERIES, len(mined)), matrix=matrix, empty=empty)


def _batch(mined: Mined, start: int, stop: int, *, matrix: bool, empty: bool) -> Iterator[Example]:
    begin, end = mined.indptr[start], mined.indptr[stop]
    rows, at = np.unique(mined.docs[begin:end], return_inverse=True)
    table = mined.corpus.table.take(rows).to_pylist()
    values = [_values(column, begin, end) for column in (mined.cosine, mined.teacher)]
    passages = [
        Passage(item["text"], item["title"], item["_id"], grade, cosine, teacher, mined.teacher is not None)
        for item, grade, cosine, teacher in zip(
            (table[i] for i in at), mined.grades[begin:end].tolist(), *values, strict=True
        )
    ]
    matrices = _matrices(mined, start, stop) if matrix else [None] * (stop - start)
    for query in range(start, stop):
        own = passages[mined.indptr[query] - begin : mined.indptr[query + 1] - begin]
        positives = [passage for passage in own if passage.grade > 0]
        negatives = own[len(positives) :]
        if empty or (positives and negatives):
            yield Example(mined.texts[query], positives, negatives, mined.ids[query], matrices[query - start])


def _matrices(mined: Mined, start: int, stop: int) -> list[NDArray[np.float32] | None]:
    from gplfast import ops

    assert mined.vectors is not None
    indptr = mined.indptr[start : stop + 1] - mined.indptr[start]
    rows = np.ascontiguousarray(mined.docs[mined.indptr[start] : mined.indptr[stop]])
    found = ops.gram(mined.vectors.docs, (np.ascontiguousarray(indptr), rows), metric="cosine")
    sizes = np.diff(indptr)
    return [
        found.values[found.indptr[i] : found.indptr[i + 1]].reshape(size, size).astype(np.float32, copy=False)
        for i, size in enumerate(sizes)
    ]


def _values(column: NDArray[np.float32] | None, begin: int, end: int) -> list[float | None]:
    if column is None:
        return [None] * int(end - begin)
    # The shortest decimals that are the same float32: what readers of the files see.
    return [None if math.isnan(value) else float(str(value)) for value in column[begin:end]]


def collect(found: Iterable[Example]) -> Mined:
    """Examples as candidates over a corpus of their own: the way from another tool's file into gplfast.

    A document is known by its id, or where it has none by title and text; a query by its id, or by its text. Examples
    of one query (triplets) become one list. Documents and queries without an id are numbered in order. Scores are
    taken over where all candidates have them.

    Raises:
        DataError: There is no example, none has a passage, or one id names two texts.
    """
    corpus = ColumnBuilder("examples", "document", ("_id", "title", "text"))
    rows: dict[tuple[str, ...], int] = {}
    contents: list[tuple[str, str]] = []
    lists: dict[tuple[str, ...], dict[int, Passage]] = {}
    texts: list[str] = []
    for example in found:
        key = (example.id,) if example.id else ("", example.query)
        if key not in lists:
            texts.append(example.query)
        own = lists.setdefault(key, {})
        for passage in example.passages:
            name = (passage.id,) if passage.id else ("", passage.title, passage.text)
            if name not in rows:
                rows[name] = len(rows)
                contents.append((passage.title, passage.text))
                corpus.add(rows[name], passage.id or str(rows[name]), passage.title, passage.text)
            elif contents[rows[name]] != (passage.title, passage.text):
                raise DataError(f"document {passage.id!r} has two texts; give each text an id of its own")
            known = own.get(rows[name])
            if known is None or (known.grade <= 0 < passage.grade):
                own[rows[name]] = passage
    if not lists:
        raise DataError("no examples; the file is empty")
    if not rows:
        raise DataError(f"none of {len(lists)} queries has a passage; give at least one positive or negative")
    ids = [key[0] or str(number) for number, key in enumerate(lists)]
    return _mined(Corpus(corpus.finish()), ids, texts, list(lists.values()))


def _mined(corpus: Corpus, ids: list[str], texts: list[str], lists: list[dict[int, Passage]]) -> Mined:
    ordered = [sorted(own.items(), key=lambda item: item[1].grade <= 0) for own in lists]
    flat = [item for own in ordered for item in own]
    indptr = np.cumsum([0, *map(len, ordered)]).astype(np.int64)
    columns = []
    for values in ([item[1].cosine for item in flat], [item[1].teacher for item in flat]):
        known = [value for value in values if value is not None]
        columns.append(np.array(known, np.float32) if known and len(known) == len(values) else None)
    docs, grades = (np.array(part, np.int64) for part in zip(*((row, item.grade) for row, item in flat), strict=True))
    return Mined(corpus, ids, texts, indptr, docs, grades, columns[0], columns[1])
