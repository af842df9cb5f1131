"""Generating, scoring and embedding against peers on this machine, written to results/serving.json.

The bundled models, T5 and MiniLM shapes with random weights (benchmarks/random_models.py; made in --work at first use)
and the real all-MiniLM-L6-v2. Generation and embedding read SciFact; pairs have passages cut to lengths like MSMARCO's.

    python benchmarks/bench_serving.py --data ../shared/data --work /tmp/serving
    python benchmarks/bench_serving.py --data ../shared/data --work /tmp/serving --only score --precision auto fp32
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import machine
import numpy as np
import random_models

from gplfast.store.corpus import load_corpus, load_queries

RESULT = Path(__file__).parent / "results" / "serving.json"
OPERATIONS = ("generate", "score", "embed")
LOWEST = {"generate": "int8", "score": "bf16", "embed": "bf16"}
# Words of a passage, log-normal: with the queries pairs of about 102 tokens, 5 % above about 175.
MEAN_WORDS, SPREAD, N_PASSAGES = 55, 0.45, 4000


def short_corpus(scifact: Path, folder: Path) -> Path:
    """SciFact's queries, and passages cut to lengths like MSMARCO's."""
    if (folder / "queries.jsonl").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    texts = load_corpus(scifact).texts()[:N_PASSAGES]
    random = np.random.default_rng(0)
    limits = np.exp(random.normal(np.log(MEAN_WORDS) - SPREAD**2 / 2, SPREAD, len(texts))).astype(int) + 5
    words = [text.split()[:limit] for text, limit in zip(texts, limits, strict=True)]
    queries = load_queries(scifact).texts
    _write(folder / "corpus.jsonl", [" ".join(row) for row in words])
    _write(folder / "queries.jsonl", queries)
    return folder


def _write(path: Path, texts: list[str]) -> None:
    rows = (json.dumps({"_id": str(i), "text": text}) + "\n" for i, text in enumerate(texts))
    path.write_text("".join(rows), encoding="utf-8")


def runs(operation: str, args: argparse.Namespace) -> list[list[str]]:
    """Flags of `gplfast bench` for each checkpoint."""
    scifact = str(args.data / "scifact")
    common = ["--repeats", str(args.repeats)]
    made = random_models.make(args.work, args.data / "t5_tokenizer", args.models)
    if operation == "generate":
        flags = ["--corpus", scifact, "--passage-tokens", "128", *common]
        real, shapes = ["nano:generator"], _of(made, random_models.T5)
    elif operation == "score":
        corpus = str(short_corpus(Path(scifact), args.work / "short"))
        flags = ["--corpus", corpus, "--pairs", str(args.pairs), *common]
        real, shapes = ["nano:teacher"], _of(made, random_models.CROSS_ENCODERS)
    else:
        flags = ["--corpus", scifact, "--texts", str(args.texts), *common]
        flags += ["--qrels", scifact] if args.quality else []
        real, shapes = [str(random_models.word_pieces()), "nano:student"], []
    # Of random weights the gates say nothing: their scores hardly differ, so the precision is asked for by name.
    low = LOWEST[operation]
    return [
        *(["--model", name, *flags, *_size(operation, name, args), "--precision", *args.precision] for name in real),
        *(["--model", name, *flags, *_size(operation, name, args), "--precision", low, "fp32"] for name in shapes),
    ]


def _size(operation: str, name: str, args: argparse.Namespace) -> list[str]:
    """How many passages: of t5-base a quarter, as transformers takes a minute for them."""
    if operation != "generate":
        return []
    return ["--passages", str(args.passages // 4 if name.endswith("t5-base") else args.passages)]


def _of(made: dict[str, Path], kinds: dict[str, Any]) -> list[str]:
    return [str(folder) for name, folder in made.items() if name in kinds]


def main() -> None:
    """Command line."""
    names = [*random_models.T5, *random_models.CROSS_ENCODERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with scifact and t5_tokenizer")
    parser.add_argument("--work", type=Path, required=True, help="folder of the random checkpoints, kept")
    parser.add_argument("--only", nargs="+", choices=OPERATIONS, default=OPERATIONS, help="others keep their results")
    parser.add_argument("--models", nargs="*", choices=names, default=names, help="random checkpoints (all)")
    parser.add_argument("--passages", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--precision", nargs="+", default=["auto", "fp32"], help="of gplfast for real weights, a row each"
    )
    parser.add_argument("--no-quality", dest="quality", action="store_false", help="no nDCG@10, which takes long")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    result: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    for operation in args.only:
        for made in machine.measured(operation, runs(operation, args)):
            # After each run: what was measured is kept when a later run fails.
            result[operation] = made
            args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
