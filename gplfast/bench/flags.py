"""The flags of `gplfast bench`. Imports nothing that is slow: the command line's help needs it."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SERVING = ("generate", "score", "embed")  # those that run a network
OPERATIONS = ("search", "dedup", "margins", *SERVING)
PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8")
SWEEPS = ("n_docs", "n_queries", "k", "dim", "threads")
_TEXTS = {
    "search": "Time exact search on your shapes beside faiss, torch, usearch and NumPy.",
    "dedup": "Time near-duplicate search on your shapes beside faiss, torch, sentence-transformers and NumPy.",
    "margins": "Time margins over ragged lists on your shapes beside NumPy and numba.",
    "generate": "Time a query generator on your passages beside transformers and CTranslate2.",
    "score": "Time a cross-encoder on your passages beside sentence-transformers.",
    "embed": "Time a bi-encoder on your passages beside sentence-transformers.",
}
_COLUMNS = """
columns:
  seconds     of a call: median of the repeats, in brackets (slowest - fastest) / median
  x time      seconds over gplfast's
  {rates}
  {shares}
  memory      by how much the process grew during a call
  agrees      with gplfast's result: yes, ties of rounding, or the recall of what is approximate
  setting     of those that the peer has, the fastest
A peer's result that differs by more than rounding is an error. Peers that are not installed are left out:
pip install 'gplfast[bench]' has them."""
_SHARES = """of float32  share of what the machine reaches with float32 multiply-adds on registers alone
  of int8     the same with bytes; a search that scans bytes may pass 100 % of float32
  of reading  share of what it reaches with reading memory, were the documents read once"""
_SERVED = """
columns:
  seconds     of a call, tokenising included: median of the repeats, in brackets (slowest - fastest) / median
  x time      seconds over those of gplfast's first row
  {rates}
  memory      by how much the process grew during a call
  {agrees}
  setting     gplfast's precision; of a peer's sizes of batches the fastest
Everything is compared with gplfast in fp32 before it is timed. A float32 peer that differs by more than rounding is an
error. Each --precision makes a row of its own. Peers that are not installed are left out: pip install
'gplfast[bench,train]' has them."""
_OF_GEMM = """of GEMM     operations of the layers' matrix products, without padding, a second, over what torch.matmul
              of two 2,048 x 2,048 matrices reaches, in float32 and in bfloat16"""
_EPILOGS = {
    "search": """examples:
  gplfast bench search --docs 200000 --dim 384 --queries 1 16 4096 --k 50
  gplfast bench search --embeddings mine.npy --metric cosine --json out.json --plot out.png
  gplfast bench search --docs 1000000 --queries 1024 --sweep n_docs      how our time grows with the documents
"""
    + _COLUMNS.format(rates="TFLOP/s     2 n_queries n_docs dim over the seconds", shares=_SHARES),
    "dedup": """examples:
  gplfast bench dedup --docs 50000 --dim 384 --threshold 0.9
  gplfast bench dedup --embeddings mine.npy --rule greedy --peers faiss --plot out.png
"""
    + _COLUMNS.format(rates="TFLOP/s     n_docs (n_docs - 1) dim over the seconds", shares=_SHARES),
    "margins": """examples:
  gplfast bench margins --queries 2000000 --negatives 50
  gplfast bench margins --queries 200000 --negatives 50 --positives 2 --reference mean --relative-margin 0.05
"""
    + _COLUMNS.format(
        rates="M/s, GB/s   millions of negatives a second; bytes of all lists and results a second",
        shares="of reading  share of what the machine reaches with reading memory (writing costs more)",
    ),
    "generate": """examples:
  gplfast bench generate --model nano:generator --corpus scifact/ --passages 64
  gplfast bench generate --model my-t5/ --corpus docs.jsonl --precision fp32 int8 --peers transformers ctranslate2-int8
"""
    + _SERVED.format(
        rates="passages/s  with all their queries\n  tokens/s    tokens of the queries, without ends and padding\n"
        "  tokens      of a query, on average; other systems draw other random numbers",
        agrees="agrees      on how many of 8 passages the most likely query is that of fp32, token by token",
    ),
    "score": """examples:
  gplfast bench score --model nano:teacher --corpus scifact/ --pairs 512
  gplfast bench score --model my-cross-encoder/ --corpus docs.jsonl --split-words 60 --precision auto fp32
Pairs are the queries of the folder's queries.jsonl, or first words of passages, each with passages drawn at random.
"""
    + _SERVED.format(
        rates=f"pairs/s, tokens/s  tokens as the network reads them, without padding\n  {_OF_GEMM}",
        agrees="agrees      Spearman's rank correlation with fp32, and the largest difference",
    ),
    "embed": """examples:
  gplfast bench embed --model nano:student --corpus scifact/ --texts 1000
  gplfast bench embed --model my-encoder/ --corpus scifact/ --qrels scifact/
"""
    + _SERVED.format(
        rates=f"texts/s, tokens/s  tokens as the network reads them, without padding\n  {_OF_GEMM}",
        agrees="agrees      lowest cosine with fp32, and the share of the ten nearest texts in common\n"
        "  nDCG@10     with --qrels, over the whole corpus",
    ),
}


def add_commands(bench: argparse.ArgumentParser) -> None:
    """Add one command for each operation."""
    commands = bench.add_subparsers(metavar="operation", required=True)
    for name in OPERATIONS:
        made = commands.add_parser(
            name,
            allow_abbrev=False,
            help=_TEXTS[name],
            description=_TEXTS[name],
            epilog=_EPILOGS[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(operation=name)
        add = {"search": _search, "dedup": _dedup, "margins": _margins, "generate": _generate, "score": _score}
        add.get(name, _embed)(made)
        _common(made)


def _search(made: argparse.ArgumentParser) -> None:
    _vectors(made, 200_000)
    made.add_argument(
        "--query-embeddings", type=Path, metavar="FILE", help=".npy of float32 queries (with --embeddings)"
    )
    made.add_argument(
        "--queries", type=count, nargs="+", default=[1, 16, 4096], metavar="N", help="numbers of queries (1 16 4096)"
    )
    made.add_argument("--k", type=count, default=50, metavar="N", help="documents of each query (default 50)")
    made.add_argument("--metric", choices=("ip", "cosine"), default="ip", help="default ip, the inner product")
    made.add_argument(
        "--sweep", choices=SWEEPS, help="time gplfast alone over a range of this, up to its value, and fit the growth"
    )
    made.add_argument(
        "--sweep-points", type=count, default=5, metavar="N", help="values of the sweep, each half the next (default 5)"
    )


def _dedup(made: argparse.ArgumentParser) -> None:
    _vectors(made, 50_000)
    made.add_argument("--threshold", type=number, default=0.9, metavar="X", help="score of duplicates (default 0.9)")
    made.add_argument("--rule", choices=("components", "greedy", "any-earlier"), default="components")
    made.add_argument("--metric", choices=("cosine", "ip"), default="cosine", help="default cosine")
    made.add_argument(
        "--copies", type=number, default=0.1, metavar="X", help="share of drawn rows that are near copies (default 0.1)"
    )


def _margins(made: argparse.ArgumentParser) -> None:
    made.add_argument("--queries", type=count, default=200_000, metavar="N", help="default 200000")
    made.add_argument("--negatives", type=count, default=50, metavar="N", help="of each query (default 50)")
    made.add_argument("--positives", type=count, default=1, metavar="N", help="of each query (default 1)")
    made.add_argument("--reference", choices=("min", "mean", "max", "first"), default="min", help="default min")
    made.add_argument(
        "--ranks", type=int, nargs=2, metavar=("FIRST", "END"), help="keep these places of each list only"
    )
    for name, text in (
        ("min-score", "drop lower scores"),
        ("max-score", "drop higher scores"),
        ("absolute-margin", "drop what is nearer to the reference"),
        ("relative-margin", "the same, as a share of the reference"),
    ):
        made.add_argument(f"--{name}", type=number, metavar="X", help=text)


def _generate(made: argparse.ArgumentParser) -> None:
    _served(made, "T5: a directory, nano:generator or a hub name")
    made.add_argument("--passages", type=count, metavar="N", help="drawn from the corpus (default 64, or all)")
    made.add_argument("--samples", type=count, default=3, metavar="N", help="queries of each passage (default 3)")
    made.add_argument("--max-new-tokens", type=count, default=64, metavar="N", help="of a query (default 64)")
    made.add_argument(
        "--passage-tokens", type=count, metavar="N", help="of a passage that are read (default: the model's window)"
    )
    made.add_argument("--top-k", type=int, default=25, metavar="N", help="of the sampling (default 25)")
    made.add_argument("--top-p", type=number, default=0.95, metavar="X", help="of the sampling (default 0.95)")
    made.add_argument("--temperature", type=number, default=1.0, metavar="X", help="of the sampling (default 1)")


def _score(made: argparse.ArgumentParser) -> None:
    _served(made, "cross-encoder with one label: a directory, nano:teacher or a hub name")
    made.add_argument("--pairs", type=count, default=256, metavar="N", help="of queries and passages (default 256)")


def _embed(made: argparse.ArgumentParser) -> None:
    _served(made, "bi-encoder: a directory, nano:student or a hub name")
    made.add_argument("--texts", type=count, metavar="N", help="drawn from the corpus (default 256, or all)")
    made.add_argument(
        "--qrels",
        type=Path,
        metavar="PATH",
        help="judgements (file or BEIR folder): nDCG@10 of each system over the whole corpus, which takes long",
    )
    made.add_argument("--split", default="test", metavar="NAME", help="of the judgements in a folder (default test)")


def _served(made: argparse.ArgumentParser, what: str) -> None:
    made.add_argument("--model", required=True, metavar="MODEL", help=what)
    made.add_argument(
        "--corpus",
        type=Path,
        required=True,
        metavar="PATH",
        help="BEIR folder, folder of .txt/.md, or .jsonl, .csv, .tsv, .parquet file",
    )
    made.add_argument("--split-words", type=count, metavar="N", help="cut longer passages into pieces of so many words")
    made.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        default=["auto"],
        metavar="NAME",
        help=f"of gplfast, a row each: {', '.join(PRECISIONS)} (default auto)",
    )
    made.add_argument("--provider", default="auto", metavar="NAME", help="of ONNX Runtime, for gplfast (default auto)")


def _vectors(made: argparse.ArgumentParser, n_docs: int) -> None:
    made.add_argument(
        "--docs", type=count, metavar="N", help=f"number of documents ({n_docs}; all rows of --embeddings)"
    )
    made.add_argument("--dim", type=count, metavar="N", help="of drawn documents (default 384)")
    made.add_argument(
        "--embeddings", type=Path, metavar="FILE", help=".npy of float32 rows, memory-mapped, in place of drawn ones"
    )
    made.add_argument(
        "--isas", nargs="+", default=[], metavar="ISA", help="also gplfast on these instruction sets (see gplfast info)"
    )
    made.set_defaults(default_docs=n_docs)


def _common(made: argparse.ArgumentParser) -> None:
    made.add_argument("--threads", type=count, metavar="N", help="of every system (default: all CPUs of this process)")
    made.add_argument(
        "--peers", nargs="+", metavar="NAME", help="peers to compare with, or none (default: all there are)"
    )
    made.add_argument("--repeats", type=count, default=3, metavar="N", help="samples of each system (default 3)")
    made.add_argument(
        "--peak-seconds", type=number, default=0.1, metavar="S", help="of each sample of a peak (0.1; 0: no shares)"
    )
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default 0)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    made.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (.png, .svg, .pdf); needs matplotlib")
    made.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help="no progress, warnings only")


def _checked(convert: Callable[[str], float], accept: Callable[[float], bool], what: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not accept(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


count = _checked(int, lambda value: value >= 1, "a whole number of at least 1")
number = _checked(float, math.isfinite, "a finite number")
