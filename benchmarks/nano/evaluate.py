"""Hold the preset nano against its bars, as gplfast serves it, and write benchmarks/results/nano.json.

Generator: on SQuAD's test passages, how often BM25 finds a query's own passage in its top 10, among all passages and
among the test passages. Teacher: BM25's top 50 reranked. Student: zero-shot. SQuAD's test queries are a sample.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import corpora
import machine

from gplfast.config import load_config
from gplfast.mining.bm25 import Bm25
from gplfast.pipeline import Pipeline
from gplfast.store.corpus import load_corpus
from gplfast.store.manifest import Manifest

RESULT = Path(__file__).parent.parent / "results" / "nano.json"
REPORTED = ("scifact", "medquad_liveqa", "cranfield")
TOP = 10


def generator(data: Path, work: Path, n_passages: int) -> dict[str, Any]:
    """Queries for `n_passages` of SQuAD's test passages, and where BM25 ranks their passages."""
    test = corpora.passages(data, "squad_v1.1", split="test")
    chosen = np.sort(np.random.default_rng(0).permutation(len(test))[:n_passages])
    folder = work / "squad-passages"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"_id": test[i].id, "title": test[i].title, "text": test[i].text}) for i in chosen]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = load_config(preset="nano", overrides={"generate": {"max_queries": 0}})
    pipeline = Pipeline(folder, work / "generator", config)
    with pipeline.work:
        queries = pipeline.generate()
        counts = Manifest.read(pipeline.directory("generate")).counts
    everything = test + corpora.passages(data, "squad_v1.1")
    found = {}
    for name, passages in (("all 20,958 passages", everything), ("the 2,067 test passages", test)):
        ranking = Bm25([f"{p.title} {p.text}".strip() for p in passages]).search(queries.texts, TOP)
        own = chosen[queries.passages][:, None]
        found[name] = float((ranking.ids == own).any(axis=1).mean())
    sample = [queries.texts[i] for i in np.random.default_rng(1).permutation(len(queries))[:20]]
    return {
        "queries": len(queries),
        "found_in_top_10": found,
        "empty_or_duplicate": (counts["empty"] + counts["duplicate"]) / counts["drawn"],
        "copied": counts["copied"] / counts["drawn"],
        "sample": sample,
    }


def sampled(data: Path, name: str, work: Path, n_queries: int) -> Path:
    """The collection with at most `n_queries` of its test queries."""
    folder = work / f"{name}-{n_queries}"
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for file in ("corpus.jsonl", "queries.jsonl"):
        target = folder / file
        if not target.exists():
            target.symlink_to((data / name / file).resolve())
    head, *lines = (data / name / "qrels/test.tsv").read_text(encoding="utf-8").splitlines()
    ids = sorted({line.split("\t")[0] for line in lines})
    kept = {ids[i] for i in np.random.default_rng(0).permutation(len(ids))[:n_queries]}
    text = "\n".join([head, *(line for line in lines if line.split("\t")[0] in kept)]) + "\n"
    (folder / "qrels/test.tsv").write_text(text, encoding="utf-8")
    return folder


def reranking(data: Path, name: str, work: Path, n_queries: int) -> dict[str, Any]:
    """BM25, BM25 + teacher and the zero-shot student on one collection."""
    folder = sampled(data, name, work, n_queries)
    systems = ("bm25", "bm25+teacher", "zero-shot")
    config = load_config(preset="nano", overrides={"evaluate": {"systems": systems}})
    pipeline = Pipeline(folder, work / name, config)  # what adapt.py measured in this folder is not measured again
    with pipeline.work:
        report = pipeline.evaluate()
    return {
        "queries": report["queries"],
        "nDCG@10": {s: report["systems"][s]["nDCG@10"] for s in systems},
        "p_values": report["p_values"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="work directories; may be those of adapt.py")
    parser.add_argument("--queries", type=int, default=500, help="SQuAD test queries in the sample")
    parser.add_argument("--passages", type=int, default=500, help="SQuAD test passages to generate for")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    preset = Path(load_corpus.__code__.co_filename).parents[1] / "presets" / "nano"
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "megabytes": sum(p.stat().st_size for p in preset.rglob("*") if p.is_file()) / 1e6,
        "generator": generator(args.data, args.work, args.passages),
        "collections": {},
    }
    for name in ("squad_v1.1", *REPORTED):
        result["collections"][name] = reranking(args.data, name, args.work, args.queries)
        logging.info("%s: %s", name, result["collections"][name])
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
