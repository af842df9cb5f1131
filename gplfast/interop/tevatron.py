"""Tevatron's training data, in its format of today (ids, and a corpus file) and in its older one (texts).

| file | content of a line |
| --- | --- |
| tevatron/train.jsonl | `query_id`, `query_text`, `positive_document_ids`, `negative_document_ids` |
| tevatron/corpus.jsonl | `docid`, `title` left out, `text`: title and text, as its TrainDataset reads `text` alone |
| tevatron-legacy.jsonl | `query_id`, `query`, `positive_passages`, `negative_passages`: each `docid`, `title`, `text` |

Its README names the corpus' field document_text; its code reads `text` (retriever/dataset.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gplfast.errors import DataError
from gplfast.interop.examples import Example, Passage
from gplfast.interop.fields import records, write_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gplfast.store.corpus import Corpus

TRAIN_FILE, CORPUS_FILE, LEGACY_FILE = "tevatron/train.jsonl", "tevatron/corpus.jsonl", "tevatron-legacy.jsonl"
_KIND = "a Tevatron file"


def write_corpus(path: str | Path, corpus: Corpus) -> int:
    """Write the documents, one batch of rows in memory; returns how many."""

    def lines() -> Iterator[dict[str, Any]]:
        for batch in corpus.table.to_batches(max_chunksize=16_384):
            for row in batch.to_pylist():
                yield {"docid": row["_id"], "text": Passage(row["text"], row["title"]).full}

    return write_lines(path, lines())


def write(path: str | Path, examples: Iterable[Example]) -> int:
    """Write train.jsonl, one query in memory; returns how many. Queries without positives or negatives are left out."""
    return write_lines(
        path,
        (
            {
                "query_id": example.id,
                "query_text": example.query,
                "positive_document_ids": [passage.id for passage in example.positives],
                "negative_document_ids": [passage.id for passage in example.negatives],
            }
            for example in examples
            if example.positives and example.negatives
        ),
    )


def write_legacy(path: str | Path, examples: Iterable[Example]) -> int:
    """Write the older format, one query in memory; returns how many. Queries without both sides are left out."""
    return write_lines(
        path,
        (
            {
                "query_id": example.id,
                "query": example.query,
                "positive_passages": [_legacy(passage) for passage in example.positives],
                "negative_passages": [_legacy(passage) for passage in example.negatives],
            }
            for example in examples
            if example.positives and example.negatives
        ),
    )


def read_corpus(path: str | Path) -> dict[str, str]:
    """Read corpus.jsonl: id to text.

    Raises:
        DataError: Naming file and line; an id twice.
    """
    found: dict[str, str] = {}
    for record in records(Path(path), _KIND):
        name = record.text("docid")
        if name in found:
            raise DataError(f"{record.where}: docid {name!r} was already used; ids must be unique")
        found[name] = record.text("text")
    return found


def read(path: str | Path, texts: dict[str, str] | None = None) -> Iterator[Example]:
    """Read train.jsonl or the older format, one line in memory.

    Args:
        path: The file.
        texts: Of `read_corpus`; needed for train.jsonl's texts, which are "" without it.

    Raises:
        DataError: Naming file and line.
    """
    for record in records(Path(path), _KIND):
        name = record.text("query_id")
        if "positive_passages" in record:
            sides = [
                [
                    Passage(item.text("text"), item.text("title", ""), item.text("docid"), grade)
                    for item in record.objects(side)
                ]
                for side, grade in (("positive_passages", 1), ("negative_passages", 0))
            ]
            yield Example(record.text("query"), sides[0], sides[1], name)
            continue
        sides = []
        for side, grade in (("positive_document_ids", 1), ("negative_document_ids", 0)):
            ids = record.texts(side)
            for doc in ids if texts is not None else ():
                if texts is not None and doc not in texts:
                    raise DataError(f"{record.where}: no document has the id {doc!r}; give the corpus of this file")
            sides.append([Passage("" if texts is None else texts[doc], id=doc, grade=grade) for doc in ids])
        yield Example(record.text("query_text"), sides[0], sides[1], name)


def _legacy(passage: Passage) -> dict[str, str]:
    return {"docid": passage.id, "title": passage.title, "text": passage.text}
