"""DPR's training data: a JSON list of questions with contexts; Contriever, Spider and AugTriever read it too.

`{question, answers, positive_ctxs, negative_ctxs, hard_negative_ctxs}`, a context `{title, text, passage_id, score}`.
Mined documents are hard negatives; `negative_ctxs` stay empty and `answers` too, as there are none. DPR reads a `.json`
list; a file that ends in .jsonl is written and read line by line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gplfast.errors import DataError
from gplfast.interop.examples import Example, Passage
from gplfast.interop.fields import Record, json_bytes, records, write_lines
from gplfast.store.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FILE = "dpr.json"
_KIND = "a DPR file"


def write(path: str | Path, examples: Iterable[Example]) -> int:
    """Write the list (or lines, for .jsonl), one question in memory; returns how many.

    Questions without positives are left out, as DPR does when it reads.
    """
    items = (_item(example) for example in examples if example.positives)
    if Path(path).suffix == ".jsonl":
        return write_lines(path, items)
    n = 0
    with atomic_write(path) as file:
        file.write(b"[")
        for item in items:
            file.write((b",\n" if n else b"\n") + json_bytes(item))
            n += 1
        file.write(b"\n]\n")
    return n


def read(path: str | Path) -> Iterator[Example]:
    """Read a file; `negative_ctxs` and `hard_negative_ctxs` both become negatives, hard ones first.

    A .json list is in memory as a whole, which is what its form asks for; .jsonl is read line by line.

    Raises:
        DataError: Naming file and line (of a list: the item).
    """
    for record in _records(Path(path)):
        sides = []
        for names, grade in ((("positive_ctxs",), 1), (("hard_negative_ctxs", "negative_ctxs"), 0)):
            contexts = [item for name in names if name in record or grade for item in record.objects(name)]
            sides.append([_passage(item, grade) for item in contexts])
        yield Example(record.text("question"), sides[0], sides[1])


def _records(path: Path) -> Iterator[Record]:
    if path.suffix == ".jsonl":
        yield from records(path, _KIND)
        return
    try:
        items = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DataError(f"{path}: broken JSON ({error}); a list of questions is expected") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f"{path}: is not a list of objects; this is not {_KIND}")
    for number, item in enumerate(items):
        yield Record(item, f"{path}: item {number}", _KIND)


def _item(example: Example) -> dict[str, Any]:
    return {
        "question": example.query,
        "answers": [],
        "positive_ctxs": [_context(passage) for passage in example.positives],
        "negative_ctxs": [],
        "hard_negative_ctxs": [_context(passage) for passage in example.negatives],
    }


def _context(passage: Passage) -> dict[str, Any]:
    score = {} if passage.score is None else {"score": passage.score}
    return {"title": passage.title, "text": passage.text, "passage_id": passage.id, **score}


def _passage(item: Record, grade: int) -> Passage:
    name = item.values.get("passage_id", "")
    score = item.values.get("score")
    known = isinstance(score, (int, float)) and not isinstance(score, bool)
    return Passage(
        item.text("text"),
        item.text("title", ""),
        str(name),
        grade,
        teacher=float(score) if known and score is not None else None,
    )
