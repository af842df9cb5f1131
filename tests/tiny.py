"""Tiny random models of the real architectures and a tiny judged corpus, for tests of the pipeline."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - the dataclass names it
from typing import TYPE_CHECKING

import numpy as np
from models.conftest import WORDS, build_encoder, build_t5

from gplfast import cli
from gplfast.store.corpus import Corpus, load_corpus

if TYPE_CHECKING:
    import pytest

_built: dict[str, World] = {}


@dataclass(frozen=True)
class World:
    """Directories of the models and of the corpus."""

    corpus: Path
    student: Path
    teacher: Path
    generator: Path
    cache: Path

    def settings(self, **overrides: dict) -> dict:
        """A configuration with these models, as small as a run can be."""
        base = {
            "generate": {"model": str(self.generator), "queries_per_passage": 2, "max_new_tokens": 8, "window": "head"},
            "mine": {"retrievers": [str(self.student), "bm25"], "negatives_per_query": 5},
            "label": {"model": str(self.teacher), "max_seq_length": 32},
            "train": {
                "base": str(self.student),
                "similarity": "cosine",
                "steps": 4,
                "batch_size": 4,
                "checkpoint_steps": 2,
                "precision": "fp32",
            },
            "genq": {"steps": 2, "batch_size": 4},
            "threads": 1,
        }
        for section, values in overrides.items():
            base[section] = {**base.get(section, {}), **values} if isinstance(values, dict) else values
        return base

    def flags(self) -> list[str]:
        """The same as command line flags."""
        return [
            *("--generator", str(self.generator), "--teacher", str(self.teacher), "--student", str(self.student)),
            *("--retrievers", str(self.student), "bm25", "--mine-negatives-per-query", "5", "--threads", "1"),
            *("--generate-queries-per-passage", "2", "--generate-max-new-tokens", "8", "--generate-window", "head"),
            *(
                "--train-steps",
                "4",
                "--train-batch-size",
                "4",
                "--train-precision",
                "fp32",
                "--label-max-seq-length",
                "32",
            ),
        ]


def world(factory) -> World:
    """Build everything once per test run; `factory` is pytest's tmp_path_factory."""
    if "world" not in _built:
        root = factory.mktemp("tiny")
        _built["world"] = World(
            write_corpus(root / "corpus", 40),
            build_encoder(_folder(root / "student"), "bert"),
            build_encoder(_folder(root / "teacher"), "minilm", n_labels=1),
            build_t5(_folder(root / "generator"), "v1.1"),
            root / "cache",
        )
    return _built["world"]


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def write_corpus(folder: Path, n_docs: int, n_words: int = 40) -> Path:
    """A BEIR folder: random words, 10 queries made of their documents' words."""
    draw = random.Random(7)
    (folder / "qrels").mkdir(parents=True)
    docs = [
        {"_id": f"d{i}", "title": draw.choice(WORDS), "text": " ".join(draw.choices(WORDS, k=draw.randint(5, n_words)))}
        for i in range(n_docs)
    ]
    queries = [{"_id": f"q{i}", "text": " ".join(docs[i]["text"].split()[:4])} for i in range(10)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    rows = [f"q{i}\td{i}\t1\n" for i in range(10)]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return folder


def texts(n: int, seed: int = 0) -> list[str]:
    """n different random texts."""
    draw = random.Random(seed)
    return [f"{' '.join(draw.choices(WORDS, k=6))} {number}" for number in range(n)]


def corpus(n: int) -> Corpus:
    """A corpus in memory."""
    return load_corpus(texts(n))


class HashEncoder:
    """A bi-encoder without a model: each text has a vector of its own."""

    def __init__(self, fingerprint: str = "hash-encoder", dim: int = 16, scale: float = 1.0) -> None:
        self.fingerprint, self.dim, self.scale = fingerprint, dim, scale
        self.n_texts = 0

    def encode(self, texts, *, kind, batch_size, progress):
        self.n_texts += len(texts)
        rows = [np.random.default_rng(list(text.encode())).standard_normal(self.dim) for text in texts]
        lengths = np.array([[1.0 + self.scale * (len(text) % 7)] for text in texts])
        return np.ascontiguousarray(np.array(rows).reshape(len(texts), self.dim) * lengths, np.float32)


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str, str]:
    """Exit status, stdout and stderr of a command in this process."""
    try:
        status: object = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def lines_of(path: Path) -> list[dict]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
