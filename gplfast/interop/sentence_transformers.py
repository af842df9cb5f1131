"""Datasets as sentence-transformers' `mine_hard_negatives` gives them, as files that `datasets.load_dataset` reads.

| layout | columns | with scores |
| --- | --- | --- |
| triplet | anchor, positive, negative | + scores: [positive, negative] |
| n-tuple | anchor, positive, negative_1 … negative_n | + scores: [positive, negative_1, …] |
| labeled-pair | anchor, document, label (1 or 0) | score in place of label |
| labeled-list | anchor, documents, labels | scores in place of labels |
| margins | anchor, positive, negative, label: the teacher's margin | |

Triplets and n-tuples have one row per positive; a labeled list has all positives of its query. A query with fewer than
n negatives has no n-tuple. Files end in .parquet or .jsonl.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gplfast.errors import ConfigError, DataError
from gplfast.interop.examples import Example, Passage
from gplfast.interop.fields import Record, records, write_lines
from gplfast.store.atomic import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow as pa

    from gplfast.store.corpus import Corpus
    from gplfast.store.margins import Margins

Layout = Literal["triplet", "n-tuple", "labeled-pair", "labeled-list", "margins"]
LAYOUTS: tuple[Layout, ...] = ("triplet", "n-tuple", "labeled-pair", "labeled-list", "margins")
_BATCH_ROWS = 4096
_KIND = "a dataset for sentence-transformers"
Row = dict[str, Any]


def write(
    path: str | Path, examples: Iterable[Example], layout: Layout, *, scores: bool = True, negatives: int = 0
) -> int:
    """Write a dataset, 4,096 rows in memory; returns how many rows.

    Args:
        path: Ends in .parquet or .jsonl.
        examples: Queries with positives and negatives; others are left out.
        layout: One of `LAYOUTS`.
        scores: Write scores, the teacher's where there is one, else cosines.
        negatives: Per query at most, 0: all of them; of n-tuples exactly so many, as every row has the same columns.

    Raises:
        ConfigError: Scores are asked for and not known, an n-tuple has no number of negatives, no row came out, or the
            file's ending is another.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout is {layout!r} but must be one of {', '.join(LAYOUTS)}")
    if layout == "n-tuple" and negatives < 1:
        raise ConfigError(f"n-tuple: negatives is {negatives} but every row has the same columns; give how many")
    rows = _rows(examples, layout, scores=scores or layout == "margins", negatives=negatives)
    return _write(path, _not_empty(rows, layout, negatives))


def write_margins(path: str | Path, corpus: Corpus, queries: Sequence[str], margins: Margins) -> int:
    """Write the layout "margins" of rows as they are trained on, for MarginMSELoss; returns how many rows.

    Args:
        path: Ends in .parquet or .jsonl.
        corpus: The documents.
        queries: The query texts.
        margins: The rows.

    Raises:
        ConfigError: There is no row, or the file's ending is another.
    """

    def rows() -> Iterator[Row]:
        for start in range(0, len(margins), _BATCH_ROWS):
            part = slice(start, start + _BATCH_ROWS)
            docs, at = np.unique(np.stack([margins.positives[part], margins.negatives[part]]), return_inverse=True)
            texts, at = corpus.texts(docs), at.reshape(2, -1)
            for query, positive, negative, margin in zip(
                margins.queries[part].tolist(), *at.tolist(), margins.margins[part], strict=True
            ):
                row = {"anchor": queries[query], "positive": texts[positive], "negative": texts[negative]}
                yield {**row, "label": float(str(margin))}

    return _write(path, _not_empty(rows(), "margins", 0))


def read(path: str | Path) -> Iterator[Example]:
    """Read a file of any of the layouts, row by row; scores become the teacher's.

    Each row is an example of its own; `collect` joins those of one query. The label of the layout "margins" becomes
    `Example.margin`, which `collect` leaves out: it is no score of a passage.

    Raises:
        DataError: Naming file and line (of Parquet: the row).
    """
    for record in _records(Path(path)):
        if "documents" in record:
            yield _labelled(record, record.texts("documents"), "labels", "scores")
        elif "document" in record:
            yield _labelled(record, [record.text("document")], "label", "score")
        else:
            yield _tuple(record)


def _rows(examples: Iterable[Example], layout: Layout, *, scores: bool, negatives: int) -> Iterator[Row]:
    for example in examples:
        found = example.negatives[: negatives or None]
        if not (example.positives and found):
            continue
        margin = example.margin if layout == "margins" else None
        if scores and margin is None and any(passage.score is None for passage in (*example.positives, *found)):
            raise ConfigError(
                f"scores of query {example.id or example.query!r} are not known; give a teacher, or scores=False"
            )
        if layout == "n-tuple" and len(found) < negatives:
            continue
        if layout == "labeled-list":
            yield _list_row(example, found, scores=scores)
        elif layout == "labeled-pair":
            yield from _pair_rows(example, found, scores=scores)
        else:
            yield from _tuple_rows(example, found, layout, scores=scores, margin=margin)


def _tuple_rows(
    example: Example, found: list[Passage], layout: Layout, *, scores: bool, margin: float | None
) -> Iterator[Row]:
    groups = [found] if layout == "n-tuple" else [[negative] for negative in found]
    for positive in example.positives:
        for group in groups:
            names = [f"negative_{i}" for i in range(1, len(group) + 1)] if layout == "n-tuple" else ["negative"]
            row: Row = {"anchor": example.query, "positive": positive.full}
            row |= {name: negative.full for name, negative in zip(names, group, strict=True)}
            if layout == "margins":
                row["label"] = _known(positive) - _known(group[0]) if margin is None else margin
            elif scores:
                row["scores"] = [_known(passage) for passage in (positive, *group)]
            yield row


def _pair_rows(example: Example, found: list[Passage], *, scores: bool) -> Iterator[Row]:
    for passage in (*example.positives, *found):
        value = {"score": passage.score} if scores else {"label": int(passage.grade > 0)}
        yield {"anchor": example.query, "document": passage.full, **value}


def _list_row(example: Example, found: list[Passage], *, scores: bool) -> Row:
    passages = [*example.positives, *found]
    values = [passage.score if scores else int(passage.grade > 0) for passage in passages]
    documents = [passage.full for passage in passages]
    return {"anchor": example.query, "documents": documents, "scores" if scores else "labels": values}


def _known(passage: Passage) -> float:
    assert passage.score is not None
    return passage.score


def _not_empty(rows: Iterator[Row], layout: Layout, negatives: int) -> Iterator[Row]:
    first = next(rows, None)
    if first is None:
        wanted = f" with {negatives} negatives; ask for fewer" if layout == "n-tuple" and negatives else ""
        raise ConfigError(f"{layout}: no query has a positive and a negative{wanted}")
    yield first
    yield from rows


def _write(path: str | Path, rows: Iterator[Row]) -> int:
    suffix = Path(path).suffix
    if suffix == ".jsonl":
        return write_lines(path, rows)
    if suffix == ".parquet":
        return _write_parquet(path, rows)
    raise ConfigError(f"{path}: ends in {suffix!r} but must end in .parquet or .jsonl")


def _write_parquet(path: str | Path, rows: Iterator[Row]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = 0
    with atomic_path(path) as temporary:
        first = list(islice(rows, _BATCH_ROWS))
        schema = pa.schema([pa.field(name, _kind(value)) for name, value in first[0].items()])
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            batch = first
            while batch:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                n += len(batch)
                batch = list(islice(rows, _BATCH_ROWS))
    return n


def _kind(value: object) -> pa.DataType:
    """Types that `datasets` knows as string, int64, float64 and lists of these."""
    import pyarrow as pa

    if isinstance(value, list):
        return pa.list_(_kind(value[0]))
    return {str: pa.string(), int: pa.int64(), float: pa.float64()}[type(value)]


def _records(path: Path) -> Iterator[Record]:
    if path.suffix != ".parquet":
        yield from records(path, _KIND)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            row = 0
            for batch in file.iter_batches(_BATCH_ROWS):
                for values in batch.to_pylist():
                    yield Record(values, f"{path}: row {row}", _KIND)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]}); check the path") from error


def _tuple(record: Record) -> Example:
    names = [name for name in record.values if name == "negative" or name.startswith("negative_")]
    texts = [record.text("positive"), *(record.text(name) for name in names)]
    scores = record.optional_numbers("scores", len(texts))
    passages = [
        Passage(text, grade=int(i == 0), teacher=score)
        for i, (text, score) in enumerate(zip(texts, scores, strict=True))
    ]
    margin = _listed(record).numbers("label", 1)[0] if "label" in record else None
    return Example(record.text("anchor"), passages[:1], passages[1:], margin=margin)


def _listed(record: Record) -> Record:
    """The record with each value a list."""
    values = {name: value if isinstance(value, list) else [value] for name, value in record.values.items()}
    return Record(values, record.where, _KIND)


def _labelled(record: Record, documents: list[str], labels: str, scores: str) -> Example:
    n, one = len(documents), _listed(record)
    if labels not in record:
        # Scores alone do not say which are positive: all are candidates, with their scores.
        teacher = one.numbers(scores, n)
        return Example(
            record.text("anchor"), [], [Passage(t, teacher=s) for t, s in zip(documents, teacher, strict=True)]
        )
    grades = one.numbers(labels, n)
    passages = [Passage(text, grade=int(grade or 0)) for text, grade in zip(documents, grades, strict=True)]
    return Example(record.text("anchor"), [p for p in passages if p.grade > 0], [p for p in passages if p.grade <= 0])
