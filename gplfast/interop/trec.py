"""TREC run files: `query Q0 document rank score tag`, and qrels in TREC's form: `query 0 document grade`.

A run holds all candidates of a query, positives among them, by (score descending, order of the candidates). Ranks are
counted from 1 (BEIR's writer leaves them 0); evaluators sort by score, so the order of rank and score agree.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from gplfast.errors import ConfigError, DataError
from gplfast.interop.examples import Example, Passage
from gplfast.store.atomic import atomic_write
from gplfast.store.lines import text_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RUN_FILE, QRELS_FILE = "trec/run.trec", "trec/qrels.trec"


def write_run(path: str | Path, examples: Iterable[Example], *, tag: str = "gplfast") -> int:
    """Write a run, one query in memory; returns how many queries.

    Scores are the teacher's where there is one, else cosines; a candidate without one is left out.

    Raises:
        ConfigError: No candidate of any query has a score, or the tag has a space.
        DataError: An id has a space, which the format cannot hold.
    """
    if not tag or len(tag.split()) != 1:
        raise ConfigError(f"tag is {tag!r} but must be one word; it is the last column of a run")
    n = n_lines = 0
    with atomic_write(path) as file:
        for example in examples:
            scored = [(passage.score, passage.id) for passage in example.passages if passage.score is not None]
            for rank, (score, doc) in enumerate(sorted(scored, key=lambda item: -item[0]), 1):
                file.write(f"{_word(example.id)} Q0 {_word(doc)} {rank} {score!r} {tag}\n".encode())
                n_lines += 1
            n += 1
        if n and not n_lines:
            raise ConfigError("a TREC run needs scores; mine with an encoder or a teacher")
    return n


def read_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Read a run: query to document to score, in the order of the file.

    Raises:
        DataError: Naming file and line.
    """
    found: dict[str, dict[str, float]] = {}
    for where, (query, _, doc, _, score, _) in _columns(Path(path), 6, "query Q0 document rank score tag"):
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{where}: score is {score!r}, should be a finite number")
        if doc in found.setdefault(query, {}):
            raise DataError(f"{where}: ranks {doc!r} twice for query {query!r}; keep one")
        found[query][doc] = value
    return found


def write_qrels(path: str | Path, examples: Iterable[Example]) -> int:
    """Write the positives as judgements in TREC's form, for `trec_eval` beside the run; returns how many queries."""
    n = 0
    with atomic_write(path) as file:
        for example in examples:
            for passage in example.positives:
                file.write(f"{_word(example.id)} 0 {_word(passage.id)} {passage.grade}\n".encode())
            n += 1
    return n


def read(path: str | Path, qrels: str | Path) -> Iterator[Example]:
    """Read a run with its judgements: what has a grade above 0 is positive, the rest negative, by score.

    Raises:
        DataError: Naming file and line.
    """
    grades: dict[str, dict[str, int]] = {}
    for where, (query, _, doc, grade) in _columns(Path(qrels), 4, "query 0 document grade"):
        if not grade.lstrip("-").isdigit():
            raise DataError(f"{where}: grade is {grade!r}, should be a whole number")
        grades.setdefault(query, {})[doc] = int(grade)
    for query, scores in read_run(path).items():
        known = grades.get(query, {})
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        passages = [Passage("", id=doc, grade=known.get(doc, 0), teacher=score) for doc, score in ranked]
        positives = [passage for passage in passages if passage.grade > 0]
        yield Example("", positives, [passage for passage in passages if passage.grade <= 0], query)


def _columns(path: Path, n: int, form: str) -> Iterator[tuple[str, list[str]]]:
    for line, text in text_lines(path):
        fields = text.split()
        if len(fields) != n:
            raise DataError(f"{path}: line {line}: has {len(fields)} columns but {n} are expected: {form}")
        yield f"{path}: line {line}", fields


def _word(name: str) -> str:
    if name.split() != [name]:
        raise DataError(f"id {name!r} is empty or has a space, which a TREC run cannot hold; rename it")
    return name
