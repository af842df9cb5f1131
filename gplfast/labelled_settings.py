"""Settings of mining for labelled queries, beside those of a run."""

from __future__ import annotations

import dataclasses

from gplfast.settings import Checked, setting

FILE_TYPES = ("parquet", "jsonl")
# The formats that `gplfast.interop.formats` writes; here because asking for help should not load what writes them.
FORMATS = (
    "negminer",
    "gpl",
    "sentence-transformers-triplet",
    "sentence-transformers-n-tuple",
    "sentence-transformers-labeled-pair",
    "sentence-transformers-labeled-list",
    "sentence-transformers-margins",
    "flag-embedding",
    "tevatron",
    "tevatron-legacy",
    "dpr",
    "trec",
)
# Of these, what `gplfast export` writes: negminer's lines have cosines, which a work directory does not keep by pair.
EXPORTED = tuple(name for name in FORMATS if name != "negminer")


@dataclasses.dataclass(frozen=True)
class LabelledConfig(Checked):
    """What `mine` does with queries that have judgements: how texts are read, what is kept, how it is written."""

    split: str = setting("train", "which qrels/<split>.tsv, where qrels is a folder")
    allow_unknown: bool = setting(False, "leave out judgements of unknown queries and passages, with a warning")
    judged: bool = setting(
        True, "passages judged not relevant (grade 0 or less) are negatives too, ahead of the mined ones"
    )
    query_prompt: str = setting("", "put before each query for the encoder, in place of the model's own prompt")
    doc_prompt: str = setting("", "put before each passage for the encoder, in place of the model's own prompt")
    encoder_tokens: int = setting(0, "tokens the encoder reads at most (0: as the model says)", low=0)
    teacher_tokens: int = setting(
        0, "query and passage are each cut to this many teacher tokens (0: only a pair, by the teacher's window)", low=0
    )
    keep: int = setting(0, "negatives kept per query (0: all; in negminer's negatives.jsonl 8)", low=0)
    dup_threshold: float = setting(
        1.0,
        "drop negatives with a cosine above this to a candidate before them, positives too (1: off; negminer: 0.95)",
    )
    pos_neg_threshold: float | None = setting(
        None, "drop negatives whose teacher score + this is not below the lowest positive's (negminer: 0.05)"
    )
    pos_threshold: float | None = setting(None, "drop negatives with a teacher score of this or more")
    doc_doc_cos: bool = setting(True, "negminer.jsonl has the cosines of each query's passages, n x n")
    scores: bool = setting(
        True, "datasets of sentence-transformers have scores in place of 1 and 0 where they are known"
    )
    file_type: str = setting("parquet", "of datasets for sentence-transformers", choices=FILE_TYPES)
