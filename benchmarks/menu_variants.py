"""The rows of the menu: what each changes of the preset, and nothing else; `menu.py` runs them."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row.

    Attributes:
        name: As the table and `--only` name it.
        group: The part of the table.
        overrides: Settings over the preset and the budget.
        student: Which student is trained and measured; "" for systems that are not trained.
        share: Of the budget's steps.
        base: The row whose student this one starts from.
    """

    name: str
    group: str
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    student: str = "gpl"
    share: float = 1.0
    base: str = ""


REFERENCE = "GPL"  # what the others are compared with
N = 30  # negatives per query, as the preset has them from each retriever


def _mine(*sources: str, **settings: Any) -> dict[str, Any]:
    return {"mine": {"sources": sources, **settings}}


def _dense(section: str = "filter", **settings: Any) -> dict[str, Any]:
    return {**_mine(f"dense:{N}"), section: settings}


def _loss(loss: str, **settings: Any) -> dict[str, Any]:
    return {"train": {"loss": loss, **settings}}


# Contrastive losses at GenQ's learning rate: GPL's is for MarginMSE.
_CONTRASTIVE = {"learning_rate": 5e-5}

SYSTEMS = [
    Variant("BM25", "systems", student="bm25"),
    Variant("zero-shot", "systems", student="zero-shot"),
    Variant("BM25 + teacher", "systems", student="bm25+teacher"),
    Variant(REFERENCE, "systems"),
    Variant("GenQ", "systems", student="genq"),
    Variant("R-GPL, 3 refreshes", "systems", {"refresh": {"every": 0}}, "rgpl"),
    Variant("R-GPL, lists joined", "systems", {"refresh": {"every": 0, "keep": "join"}}, "rgpl"),
    Variant("R-GPL, async", "systems", {"refresh": {"every": 0, "mode": "async"}}, "rgpl"),
    Variant("R-GPL, adaptive", "systems", {"refresh": {"every": 0, "mode": "adaptive"}}, "rgpl"),
    Variant("ANCE: R-GPL with mnrl", "systems", {"refresh": {"every": 0}, **_loss("mnrl", **_CONTRASTIVE)}, "rgpl"),
    Variant("GenQ, half the steps", "systems", student="genq", share=0.5),
    Variant("GPL from it, the other half", "systems", share=0.5, base="GenQ, half the steps"),
    Variant("GPL, best of ten steps", "systems", {"train": {"dev_share": 0.1}}),
    Variant("GenQ, best of ten steps", "systems", {"train": {"dev_share": 0.1}}, "genq"),
]

NEGATIVES = [
    Variant("random", "negatives", _mine(f"random:{N}")),
    Variant("gold", "negatives", _mine(f"gold:{N}")),
    Variant("bm25", "negatives", _mine(f"bm25:{N}")),
    Variant("dense", "negatives", _mine(f"dense:{N}")),
    Variant("dense, ranks 10 to 39", "negatives", _mine(f"dense@10-40:{N}")),
    Variant("dense, 30 of ranks 10 to 209", "negatives", _mine(f"dense@10-210:{N}", sampling="random")),
    Variant("dense, semi-hard", "negatives", _mine(f"dense@semi-hard:{N}")),
    Variant("dense 25, bm25 20, random 5", "negatives", _mine("dense:25", "bm25:20", "random:5")),
    Variant("bm25 15, random 15", "negatives", _mine("bm25:15", "random:15")),
    Variant("dense, FAISS HNSW", "negatives", _mine(f"dense:{N}", search="faiss-hnsw")),
    Variant("dense, FAISS IVF", "negatives", _mine(f"dense:{N}", search="faiss-ivf")),
]

FILTERS = [
    Variant("dense, absolute margin 0.05", "filters", _dense(absolute_margin=0.05)),
    Variant("dense, relative margin 0.05", "filters", _dense(relative_margin=0.05)),
    Variant("dense, near-duplicate of the positive 0.95", "filters", _dense(near_positive=0.95)),
    Variant("dense, near-duplicate negatives 0.95", "filters", _dense(near_negative=0.95)),
    Variant("dense, teacher margin 0.05", "filters", _dense(teacher_margin=0.05)),
    Variant("dense, denoised 0.1", "filters", _dense(denoise=0.1)),
    Variant("dense, promoted above 0.9", "filters", _dense(pseudo_positive=0.9, promote=True)),
    Variant("dense, score 0.2 to 0.6", "filters", _dense(min_score=0.2, max_score=0.6)),
    Variant(
        "dense, a function of one's own",
        "filters",
        _dense(function="own_filter.py:keep"),
    ),
    Variant("dense, round trip 10", "filters", _mine(f"dense:{N}", round_trip_top=10)),
]

LOSSES = [
    Variant("margin-mse, 4 negatives", "losses", _loss("margin-mse", negatives_per_row=4)),
    Variant("margin-mse, margins as they are", "losses", _loss("margin-mse", rescale="none")),
    Variant("kl, 4 negatives", "losses", _loss("kl", negatives_per_row=4)),
    Variant("mnrl, 1 hard negative", "losses", _loss("mnrl", **_CONTRASTIVE)),
    Variant("mnrl, in-batch hard 2", "losses", _loss("mnrl", in_batch_hard=2, **_CONTRASTIVE)),
    Variant("triplet", "losses", _loss("triplet", **_CONTRASTIVE)),
    Variant("triplet, in-batch hard 2", "losses", _loss("triplet", in_batch_hard=2, **_CONTRASTIVE)),
    Variant("gist", "losses", _loss("gist", **_CONTRASTIVE)),
    Variant("cached-gist, 4 negatives", "losses", _loss("cached-gist", negatives_per_row=4, **_CONTRASTIVE)),
    Variant("GenQ, adore", "losses", {"genq": {"loss": "adore"}}, "genq"),
    # A batch four times as large in a quarter of the steps: the same rows.
    Variant(
        "GenQ, cached-mnrl, batch 128", "losses", {"genq": {"loss": "cached-mnrl", "batch_size": 128}}, "genq", 0.25
    ),
    Variant("GenQ, gist", "losses", {"genq": {"loss": "gist"}}, "genq"),
    Variant("GenQ, in-batch hard 2", "losses", {"genq": {"loss": "mnrl", "in_batch_hard": 2}}, "genq"),
]

# Compared as GenQ trains: what a pair is worth without a teacher. The row of T5's queries is "GenQ".
METHODS: dict[str, dict[str, Any]] = {
    "ict": {"method": "ict"},
    "crop": {"method": "crop"},
    "spans": {"method": "spans"},
    "noise": {"method": "noise"},
    "noise, words masked": {"method": "noise", "noise_delete": 0.0, "noise_mask": 0.1},
    "noise, words replaced": {"method": "noise", "noise_delete": 0.0, "noise_replace": 0.1},
    "neighbours": {"method": "neighbours"},
    "title": {"method": "title"},
    "salient": {"method": "salient"},
    "salient by an encoder": {"method": "salient", "salient_by": "encoder"},
    "salient, masked": {"method": "salient", "salient_masked": True},
    "bm25": {"method": "bm25"},
}
POSITIVES = [
    Variant(f"GenQ of {name}", "positives", {"generate": settings}, "genq") for name, settings in METHODS.items()
]

VARIANTS: tuple[Variant, ...] = (*SYSTEMS, *NEGATIVES, *FILTERS, *LOSSES, *POSITIVES)
