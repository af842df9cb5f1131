"""gplfast: adapt a dense retriever to your documents without labels, and mine hard negatives exactly.

The public names below are loaded on first use, so that `import gplfast` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from gplfast import errors

if TYPE_CHECKING:
    from gplfast.exports import mine_labelled
    from gplfast.mining.user_filter import UserFilter, filter_negatives
    from gplfast.ops import Dedup, Gram, Hits, Index, Margins, dedup, gram, margins, merge_hits, search
    from gplfast.pipeline import adapt
    from gplfast.steps import evaluate, generate, label, mine, train

    __version__: str

__all__ = [
    "Dedup",
    "Gram",
    "Hits",
    "Index",
    "Margins",
    "UserFilter",
    "__version__",
    "adapt",
    "dedup",
    "errors",
    "evaluate",
    "filter_negatives",
    "generate",
    "gram",
    "label",
    "margins",
    "merge_hits",
    "mine",
    "mine_labelled",
    "search",
    "train",
]

_HOME = {
    "Dedup": "gplfast.ops",
    "Gram": "gplfast.ops",
    "Hits": "gplfast.ops",
    "Index": "gplfast.ops",
    "Margins": "gplfast.ops",
    "dedup": "gplfast.ops",
    "gram": "gplfast.ops",
    "margins": "gplfast.ops",
    "merge_hits": "gplfast.ops",
    "search": "gplfast.ops",
    "UserFilter": "gplfast.mining.user_filter",
    "filter_negatives": "gplfast.mining.user_filter",
    "adapt": "gplfast.pipeline",
    "evaluate": "gplfast.steps",
    "generate": "gplfast.steps",
    "label": "gplfast.steps",
    "mine": "gplfast.steps",
    "mine_labelled": "gplfast.exports",
    "train": "gplfast.steps",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # 20 ms that most imports do not need

        value: object = version("gplfast")
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        message = f"module 'gplfast' has no attribute {name!r}"
        raise AttributeError(message)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
