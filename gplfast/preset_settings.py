"""The presets: settings over the defaults of `gplfast.config`, as plain mappings."""

from __future__ import annotations

from typing import Any

AUTO = 0

# The numbers of the GPL paper (arXiv:2112.07577) and its code; GenQ: batch 24 and 10 % warm-up as in its tutorial.
_PAPER: dict[str, Any] = {
    # GPL keeps copies, and draws no more where queries were equal.
    "generate": {"model": "BeIR/query-gen-msmarco-t5-base-v1", "copied": "keep", "extra_draws": 0.0},
    "mine": {
        "retrievers": (
            "sentence-transformers/msmarco-distilbert-base-v3",
            "sentence-transformers/msmarco-MiniLM-L-6-v3",
        ),
        "metrics": ("cosine",),
    },
    "label": {"model": "cross-encoder/ms-marco-MiniLM-L-6-v2"},
    "train": {"base": "distilbert-base-uncased", "similarity": "dot", "steps": 140_000},
    "genq": {
        "base": "distilbert-base-uncased",
        "similarity": "cosine",
        "visits_per_query": 1.0,
        "batch_size": 24,
        "warmup_steps": 0,
        "warmup_share": 0.1,
    },
}

# The offline default: small bundled models. The numbers were chosen so that a run takes minutes on two cores.
_NANO_STUDENT: dict[str, Any] = {
    "base": "nano:student",
    "similarity": "cosine",
    "max_seq_length": AUTO,
    "warmup_steps": 0,
    "warmup_share": 0.1,
    "checkpoint_steps": 200,
}
_NANO: dict[str, Any] = {
    "generate": {
        "model": "nano:generator",
        "queries_per_passage": 3,
        "max_queries": 4_800,
        "window": "random",
        "temperature": 1.1,
        "passage_tokens": 96,
        "max_new_tokens": 32,
    },
    "mine": {"retrievers": ("nano:student", "bm25"), "metrics": ("cosine",), "negatives_per_query": 30},
    "label": {"model": "nano:teacher", "max_seq_length": 256, "keep_share": 0.6},
    "train": {**_NANO_STUDENT, "visits_per_query": 2.0, "max_steps": 200, "learning_rate": 1e-4},
    "refresh": {"every": AUTO},
    "genq": {**_NANO_STUDENT, "visits_per_query": 1.0, "max_steps": 200, "batch_size": 24, "learning_rate": 5e-5},
}

PRESETS: dict[str, dict[str, Any]] = {"nano": _NANO, "paper": _PAPER}

# What `gplfast demo` changes of the preset nano, to end within six minutes on two cores.
DEMO: dict[str, Any] = {
    "generate": {"max_queries": 1_500},
    "train": {"visits_per_query": 2.0},
    "genq": {"max_steps": 60},
}
