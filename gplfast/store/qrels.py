"""Relevance judgements in BEIR's form."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from gplfast.errors import DataError
from gplfast.store.lines import csv_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gplfast.store.corpus import Corpus, Queries

Qrels: TypeAlias = dict[str, dict[str, int]]
"""Query id to document id to grade; 0 means judged and not relevant."""

logger = logging.getLogger(__name__)
HEADER = ["query-id", "corpus-id", "score"]
_MOST_LISTED = 5
_GRADE = re.compile(r"-?\d+")


def load_qrels(
    path: str | Path,
    split: str = "test",
    corpus: Corpus | None = None,
    queries: Queries | None = None,
    *,
    allow_unknown: bool = False,
) -> Qrels:
    """Load judgements: tab-separated `query-id`, `corpus-id`, `score` with a header, line ends LF or CRLF.

    Args:
        path: a BEIR folder (reads `qrels/<split>.tsv`), a folder with `<split>.tsv`, or a file.
        split: which file of a folder.
        corpus: when given, document ids are checked against it. Documents that were skipped because they are empty
            are known: they stay in the judgements, as nobody can find them. Of a split corpus, source ids are known.
        queries: when given, query ids are checked against them.
        allow_unknown: drop rows that name unknown ids, with a warning, instead of raising.

    Returns:
        Grades by query and document, in the order of the file.

    Raises:
        DataError: when the file is missing or malformed (naming the line), rates a pair twice differently, or names
            unknown ids (counted, the first ones listed).
    """
    file = _find(Path(path), split)
    known_queries = None if queries is None else {*queries.ids, *queries.empty_ids}
    known_docs = None if corpus is None else {*corpus.parent_ids, *corpus.empty_ids}
    qrels: Qrels = {}
    unknown_queries: dict[str, None] = {}
    unknown_docs: dict[str, None] = {}
    n_unknown = 0
    for line, query, doc, grade in _rows(file):
        if known_queries is not None and query not in known_queries:
            unknown_queries[query] = None
        if known_docs is not None and doc not in known_docs:
            unknown_docs[doc] = None
        if query in unknown_queries or doc in unknown_docs:
            n_unknown += 1
            continue
        if qrels.setdefault(query, {}).setdefault(doc, grade) != grade:
            raise DataError(
                f"{file}: line {line}: rates {query!r}, {doc!r} as {grade} but an earlier line as "
                f"{qrels[query][doc]}; keep one"
            )
    if n_unknown:
        problem = f"{file}: {n_unknown} rows name ids that are not there: {_listed(unknown_queries, unknown_docs)}"
        if not allow_unknown:
            raise DataError(
                f"{problem}; give the collection that the judgements belong to, or leave these rows out (allow_unknown)"
            )
        logger.warning("%s; these rows are left out", problem)
    if not qrels:
        raise DataError(f"{file}: no judgements{' of known ids' if n_unknown else ''}; give at least one")
    return qrels


def _find(path: Path, split: str) -> Path:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check the path")
    if path.is_file():
        return path
    folder = path / "qrels" if (path / "qrels").is_dir() else path
    if not (folder / f"{split}.tsv").is_file():
        there = ", ".join(sorted(file.stem for file in folder.glob("*.tsv"))) or "none"
        raise DataError(f"{folder}: no judgements {split}.tsv; splits that are there: {there}")
    return folder / f"{split}.tsv"


def _rows(file: Path) -> Iterable[tuple[int, str, str, int]]:
    rows = csv_rows(file, "\t")
    number, header = next(rows, (1, []))
    if header != HEADER:
        raise DataError(f"{file}: line {number}: {_header_problem(header)}; write the header {' <tab> '.join(HEADER)}")
    for line, row in rows:
        if len(row) != len(HEADER):
            raise DataError(f"{file}: line {line}: has {len(row)} columns but 3 are expected, separated by tabs")
        query, doc, grade = row
        if not _GRADE.fullmatch(grade):
            raise DataError(f"{file}: line {line}: score is {grade!r}, should be a whole number")
        yield line, query, doc, int(grade)


def _header_problem(header: list[str]) -> str:
    if not header:
        return "the file is empty"
    if len(header) == 1 and len(header[0].split()) > 1:
        return f"the columns of {header[0]!r} are not separated by tabs"
    if len(header) == len(HEADER) and _GRADE.fullmatch(header[2]):
        return "the header is missing"
    return f"the header is {' <tab> '.join(header)!r}"


def _listed(queries: Iterable[str], docs: Iterable[str]) -> str:
    parts = []
    for what, ids in (("queries", list(queries)), ("documents", list(docs))):
        if ids:
            more = ", …" if len(ids) > _MOST_LISTED else ""
            parts.append(f"{len(ids)} {what} ({', '.join(ids[:_MOST_LISTED])}{more})")
    return " and ".join(parts)
