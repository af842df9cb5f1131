"""Peak memory of generating, scoring and embedding with the bundled models while the corpus grows, in fresh processes.

Passages are a few words, so that 100,000 take minutes; what grows with the corpus is the same as with long ones. Peaks
are the largest resident set, and of it what is not mapped from files (sampled; embeddings are written through a map).
Written to results/memory.json.

    python benchmarks/bench_memory.py
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import machine

from gplfast.bench import memory

RESULT = Path(__file__).parent / "results" / "memory.json"
OPERATIONS = ("generate", "score", "embed")
WORDS = ["protein", "gene", "cell", "heart", "drug", "dose", "river", "king", "water", "light", "wave", "energy"]
SAMPLE_SECONDS = 0.05


def passages(n: int) -> list[str]:
    """Short texts that differ."""
    draw = random.Random(0)
    return [f"{' '.join(draw.choices(WORDS, k=draw.randint(6, 14)))} {i}" for i in range(n)]


def anonymous_bytes() -> int:
    """Resident memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def generate(n: int, work: Path) -> None:
    """The pipeline's step."""
    import gplfast

    settings = {"generate": {"queries_per_passage": 1, "max_queries": 0, "max_new_tokens": 8, "window": "head"}}
    gplfast.generate(passages(n), work=work, preset="nano", config=settings)


def score(n: int, _: Path) -> None:
    """Pairs of a short query and each passage."""
    from gplfast.models import CrossEncoder

    texts = passages(n)
    CrossEncoder.open("nano:teacher").score([" ".join(text.split()[:4]) for text in texts], texts)


def embed(n: int, work: Path) -> None:
    """As mining embeds: shard by shard into a file."""
    from gplfast.mining import dense
    from gplfast.models import BiEncoder
    from gplfast.store.corpus import load_corpus

    corpus = load_corpus(passages(n))
    encoder = BiEncoder.open("nano:student")
    dense.embed(encoder, corpus.texts, n, work, texts_fingerprint=corpus.fingerprint, kind="document")


def measure(operation: str, n: int) -> dict[str, Any]:
    """Do it in this process."""
    largest, done = 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(SAMPLE_SECONDS):
            largest = max(largest, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with tempfile.TemporaryDirectory() as work:
            {"generate": generate, "score": score, "embed": embed}[operation](n, Path(work))
    finally:
        done.set()
        watcher.join()
    return {"n": n, "peak_rss_bytes": memory.peak_bytes(), "peak_anonymous_bytes": largest}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--only", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # an operation and a size in a process of its own
    args = parser.parse_args()
    if args.one:
        sys.stdout.write(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    result: dict[str, Any] = {"machine": machine.describe(), "operations": {}}
    for operation in args.only:
        rows = result["operations"][operation] = []
        for n in args.sizes:
            command = [sys.executable, __file__, "--one", operation, str(n)]
            rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
            sys.stdout.write(f"{operation}: {rows[-1]}\n")
            args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
