"""Cut the collection that `gplfast demo` adapts to from MedQuAD (CC BY 4.0): the pages of NINDS, a US institute.

Every answer is a document and its question a test query: the right disease and the right aspect must be found.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SOURCE = "NINDS_"
CARD = """# The demo collection
{docs} answers about neurological disorders and {queries} questions, one relevant answer each, in BEIR layout.

Source: MedQuAD (Ben Abacha and Demner-Fushman, BMC Bioinformatics 2019), the part from the US National Institute of
Neurological Disorders and Stroke. Licence: CC BY 4.0. Changes: the question-answer pairs were converted to BEIR's
files
(document = answer with the page's focus as title; query = the pair's question). The nano models have seen none
of it. Made by `benchmarks/make_demo.py`.
"""


def rows(path: Path) -> dict[str, dict[str, str]]:
    """JSON lines by `_id`."""
    return {row["_id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--medquad", type=Path, required=True, help="MedQuAD in BEIR layout")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "gplfast/presets/demo")
    args = parser.parse_args()
    corpus, queries = rows(args.medquad / "corpus.jsonl"), rows(args.medquad / "queries.jsonl")
    judged = [
        line.split("\t") for line in (args.medquad / "qrels/train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    ]
    kept = [(q, d) for q, d, score in judged if d.startswith(SOURCE) and int(score) > 0]
    (args.out / "qrels").mkdir(parents=True, exist_ok=True)
    docs = sorted({d for _, d in kept})

    def write(name: str, lines: list[str]) -> None:
        (args.out / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    write(
        "corpus.jsonl",
        [json.dumps({k: corpus[d][k] for k in ("_id", "title", "text")}, ensure_ascii=False) for d in docs],
    )
    write("queries.jsonl", [json.dumps({"_id": q, "text": queries[q]["text"]}, ensure_ascii=False) for q, _ in kept])
    write("qrels/test.tsv", ["query-id\tcorpus-id\tscore", *(f"{q}\t{d}\t1" for q, d in kept)])
    write("README.md", CARD.format(docs=len(docs), queries=len(kept)).splitlines())


if __name__ == "__main__":
    main()
