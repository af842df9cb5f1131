"""The text the nano models learn from: SQuAD train, PubMedQA and Perspectrum, never a reported collection."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")


@dataclass(frozen=True)
class Passage:
    """One document of a training corpus."""

    id: str
    title: str
    text: str

    def sentences(self) -> list[str]:
        """The passage's sentences, split at sentence-final punctuation."""
        return [s for s in SENTENCE_END.split(self.text) if s.strip()]


@dataclass(frozen=True)
class Question:
    """A labelled query and the passages judged relevant to it."""

    text: str
    positives: tuple[str, ...]


def _jsonl(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def passages(data: Path, name: str, *, split: str = "train") -> list[Passage]:
    """Passages of one collection. SQuAD's dev passages are reported on, so only `split="test"` gives them."""
    rows = _jsonl(data / name / "corpus.jsonl")
    if name == "squad_v1.1":
        prefix = {"train": "train-", "test": "dev-"}[split]
        rows = [row for row in rows if row["_id"].startswith(prefix)]
    return [Passage(r["_id"], r.get("title", ""), r["text"]) for r in rows if r["text"].strip()]


def questions(data: Path, name: str, split: str = "train") -> list[Question]:
    """The labelled queries of one split, in the order of its qrels."""
    texts = {row["_id"]: row["text"] for row in _jsonl(data / name / "queries.jsonl")}
    positives: dict[str, list[str]] = {}
    for line in (data / name / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query_id, doc_id, score = line.split("\t")
        if int(score) > 0:
            positives.setdefault(query_id, []).append(doc_id)
    return [Question(texts[q], tuple(p)) for q, p in positives.items()]
