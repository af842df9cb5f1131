"""A user's own negatives: JSON lines that name a query and documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gplfast.errors import DataError
from gplfast.mining.lists import Lists, from_sequences
from gplfast.store.lines import describe, json_objects

if TYPE_CHECKING:
    from pathlib import Path

    from gplfast.store.corpus import Corpus
    from gplfast.store.labelled import Positives

_ID_KEYS = ("qid", "_id", "query_id")


def read_explicit(path: Path, corpus: Corpus, queries: Positives) -> Lists:
    """Read one JSON object per line: {"qid": "q1", "neg": ["d7", "d9"]}.

    The query is named by its id ("qid", "_id" or "query_id") or by its text ("query": then every query of that text is
    meant). "neg" holds document ids in order of preference; as in GPL's hard-negatives.jsonl it may be an object of
    such lists by retriever. Several lines of one query are joined, repeats left out.

    Args:
        path: The file, plain or gzip.
        corpus: Its ids are what "neg" may name.
        queries: Their ids and texts are what a line may name.

    Returns:
        Document rows per query.

    Raises:
        DataError: A line is malformed, or names a query or document that is not there; with file and line.
    """
    by_id = {name: row for row, name in enumerate(queries.ids)}
    by_text: dict[str, list[int]] = {}
    for row, text in enumerate(queries.texts):
        by_text.setdefault(text, []).append(row)
    found: list[dict[int, None]] = [{} for _ in range(len(queries))]
    for line, item in json_objects(path):
        where = f"{path}: line {line}"
        rows = _queries(item, by_id, by_text, where)
        for name in _names(item, where):
            if not corpus.has(name):
                raise DataError(
                    f"{where}: neg names {name[:60]!r}, which is no id of the corpus of {len(corpus)} documents; "
                    "give ids, not texts, of this corpus"
                )
            for row in rows:
                found[row][corpus.row(name)] = None
    return from_sequences([list(rows) for rows in found])


def _queries(item: dict[str, Any], by_id: dict[str, int], by_text: dict[str, list[int]], where: str) -> list[int]:
    key = next((key for key in _ID_KEYS if key in item), "query" if "query" in item else "")
    if not key:
        raise DataError(f'{where}: names no query; give "qid" (its id) or "query" (its text)')
    name = item[key]
    if not isinstance(name, str):
        raise DataError(f"{where}: {key} is {describe(name)} but must be a string")
    if key == "query" and name in by_text:
        return by_text[name]
    if key != "query" and name in by_id:
        return [by_id[name]]
    raise DataError(f"{where}: {key} is {name[:60]!r}, which none of the {len(by_id)} queries has")


def _names(item: dict[str, Any], where: str) -> list[str]:
    given = item.get("neg")
    names = []
    for part in given.values() if isinstance(given, dict) else [given]:
        if not isinstance(part, list) or not all(isinstance(name, str) for name in part):
            raise DataError(f'{where}: neg must be a list of document ids, such as ["d7", "d9"]')
        names += part
    return names
