"""What `--help` of each command ends with: examples."""

from __future__ import annotations

EPILOGS: dict[str | None, str] = {
    None: """examples:
  gplfast run --corpus my_documents/ --work W             adapt a retriever to a folder of .txt and .md files
  gplfast run --corpus scifact/ --work W --evaluate       ... and measure it on the judged queries in the folder
  gplfast ask "who are the normans" --model W/train/gpl/model --model nano:student --corpus my_documents/
  gplfast demo                                            all of it on a bundled collection, about five minutes""",
    "run": """examples:
  gplfast run --corpus scifact --preset nano --work W --evaluate
  gplfast run --corpus scifact --work W --dry-run         what is fresh, what is stale and why
  gplfast run --corpus scifact --work W --students genq   GenQ: the same queries, MultipleNegativesRanking
  gplfast run --corpus scifact --work W --students gpl rgpl --evaluate   GPL beside R-GPL, which mines as it trains
  gplfast run --corpus docs.csv --input-text-column body --work W --config my.toml --train-steps 500
A run that was killed goes on where it was when it is started again.""",
    "generate": "example:\n  gplfast generate --corpus scifact --work W --queries-per-passage 3",
    "mine": """examples:
  gplfast mine --corpus C --work W --retrievers nano:student bm25             the best 50 of each
  gplfast mine --corpus C --work W --sources dense:50,bm25:25,random:5        a hybrid, each with its number
  gplfast mine --corpus C --work W --sources dense@10-210:15 --sampling random
                                                            15 drawn from ranks 10 to 209
  gplfast mine --corpus C --work W --sources dense@semi-hard:20 gold:5
                                                            the best below the positive; others' positives
  gplfast mine --corpus C --work W --sources explicit:10 --explicit own.jsonl
                                                            {"qid": "genQ1", "neg": ["d7", "d9"]} per line
  gplfast mine --corpus C --work W --search faiss-hnsw      approximate; its recall is measured and shown
Every source, with where it comes from: docs/negatives.md.
Labelled queries, from judgements to files of other tools (see docs/formats.md):
  gplfast mine --corpus scifact --queries scifact --qrels scifact/qrels/train.tsv --encoder nano:student \\
      --teacher nano:teacher --output mined --format negminer sentence-transformers-triplet
  gplfast mine --corpus scifact --qrels scifact --encoder nano:student bm25 --output mined --format tevatron
  gplfast mine --config negminer.yaml                     a configuration file of negminer, as it is
  gplfast mine --config negminer.yaml --keep 16 --format dpr
Work that was done is kept in --work, by default in the folder work of --output, and not done again.""",
    "label": "example:\n  gplfast label --corpus scifact --work W --model cross-encoder/ms-marco-MiniLM-L-6-v2",
    "train": "examples:\n  gplfast train --corpus scifact --work W --learning-rate 1e-4\n"
    "  gplfast train --corpus scifact --work W --students rgpl\n"
    "  torchrun --nproc-per-node 4 -m gplfast train --corpus scifact --work W   on four GPUs that share each batch",
    "evaluate": "example:\n  gplfast evaluate --corpus scifact --work W --model other/model --systems bm25 gpl",
    "ask": 'example:\n  gplfast ask "who are the normans" --model nano:student --model W/train/gpl/model --corpus C',
    "demo": "example:\n  gplfast demo --work demo",
    "export": """examples:
  gplfast export --corpus scifact --work W --output gpl_files                 GPL's own files
  gplfast export --corpus scifact --work W --output out --format sentence-transformers-margins tevatron
  gplfast export --corpus scifact --work W --output out --format flag-embedding --teacher nano:teacher""",
    "bench": """examples:
  gplfast bench search --docs 200000 --dim 384 --queries 1 16 4096
  gplfast bench dedup --embeddings mine.npy --threshold 0.9
  gplfast bench margins --queries 2000000 --negatives 50
  gplfast bench score --model nano:teacher --corpus scifact/
  gplfast bench search --help                             what is measured, what is compared, the columns""",
    "info": "example:\n  gplfast info",
}
