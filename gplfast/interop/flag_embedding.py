"""FlagEmbedding's training data: JSON lines `query`, `pos`, `neg`, with `pos_scores` and `neg_scores` of a teacher.

Scores are what its knowledge distillation reads. `pos` and `neg` are lists always: its own miner splits a string into
characters.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gplfast.interop.examples import Example, Passage
from gplfast.interop.fields import records, write_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FILE = "flag-embedding.jsonl"
_KIND = "a FlagEmbedding file"


def write(path: str | Path, examples: Iterable[Example], *, prompt: str = "") -> int:
    """Write the lines, one query in memory; returns how many.

    Args:
        path: The file.
        examples: Queries with at least one positive and one negative; others are left out, as its loader draws from
            both.
        prompt: Written into each line when not empty: the instruction put before the query.
    """

    def lines() -> Iterator[dict[str, Any]]:
        for example in examples:
            if not (example.positives and example.negatives):
                continue
            line: dict[str, Any] = {
                "query": example.query,
                "pos": [passage.full for passage in example.positives],
                "neg": [passage.full for passage in example.negatives],
            }
            if all(passage.score is not None for passage in example.passages):
                line["pos_scores"] = [passage.score for passage in example.positives]
                line["neg_scores"] = [passage.score for passage in example.negatives]
            if prompt:
                line["prompt"] = prompt
            yield line

    return write_lines(path, lines())


def read(path: str | Path) -> Iterator[Example]:
    """Read the lines, one in memory; scores become the teacher's.

    Raises:
        DataError: Naming file and line.
    """
    for record in records(Path(path), _KIND):
        sides = []
        for name, grade in (("pos", 1), ("neg", 0)):
            texts = record.texts(name)
            scores = record.optional_numbers(f"{name}_scores", len(texts))
            sides.append([Passage(text, grade=grade, teacher=s) for text, s in zip(texts, scores, strict=True)])
        yield Example(record.text("query"), sides[0], sides[1])
