"""What can be found wrong before hours of work: a model of the wrong kind, a package that is not installed."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from gplfast.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gplfast.config import LabelConfig
    from gplfast.models.checkpoint import Checkpoint

# What a kind of work imports, and the extra of pyproject.toml that brings it ("" for what gplfast always brings).
_NEEDS = {
    "serving models": ("cpu", ("onnx", "onnxruntime")),
    "training": ("train", ("torch", "transformers", "sentence_transformers", "accelerate", "datasets")),
    "evaluation": ("eval", ("ir_measures", "scipy")),
    "bm25": ("", ("bm25s",)),
    "approximate search": ("faiss", ("faiss",)),
}


def require(kinds: Iterable[str]) -> None:
    """Check that the packages for some kinds of work are installed, without importing them.

    Args:
        kinds: Among "serving models", "training", "evaluation", "bm25" and
            "approximate search".

    Raises:
        MissingExtraError: One is not; the message names the extra that brings it.
    """
    for kind in kinds:
        extra, packages = _NEEDS[kind]
        for package in packages:
            if importlib.util.find_spec(package) is None:
                wanted = f"gplfast[{extra}]" if extra else "gplfast"
                name = package.replace("_", "-")
                raise MissingExtraError(f"{kind} needs {name}, which is not installed: pip install '{wanted}'")


def generator(path: Path) -> None:
    """Check that a checkpoint is a T5 that writes text.

    Raises:
        ModelError: It is another kind of model.
    """
    config = _checkpoint(path).config
    if config.get("model_type") != "t5" or _has(config.get("architectures"), "EncoderModel"):
        raise ModelError(
            f"generator: {path} is {_kind(config)} but must be a T5 with a decoder (T5ForConditionalGeneration)"
        )


def teacher(path: Path, config: LabelConfig) -> None:
    """Check that a checkpoint is a cross-encoder, and that the settings say which output is the relevance.

    Of the weights only their names and shapes are read.

    Raises:
        ModelError: It is another kind of model, or has several outputs and none is chosen.
        ConfigError: The label or the activation does not fit the model.
    """
    from gplfast.models.activation import chosen_activation, configured_activation, label_index
    from gplfast.models.export.encoder import n_labels

    checkpoint = _checkpoint(path)
    labels = n_labels(checkpoint)
    label_index(checkpoint, config.relevance_label or None, labels)
    chosen_activation(config.activation, lambda: configured_activation(checkpoint, labels), labels)


def bi_encoder(path: Path, role: str) -> None:
    """Check that a checkpoint turns a text into a vector.

    Args:
        path: Its directory.
        role: What it is wanted for, for the message.

    Raises:
        ModelError: It is another kind of model.
    """
    from gplfast.models.export.encoder import ARCHITECTURES

    config = _checkpoint(path).config
    if config.get("model_type") not in ARCHITECTURES:
        raise ModelError(f"{role}: {path} is {_kind(config)} but must be an encoder: {', '.join(ARCHITECTURES)}")
    if _has(config.get("architectures"), "ForSequenceClassification"):
        raise ModelError(
            f"{role}: {path} is {_kind(config)}, a cross-encoder, which scores pairs and has no vectors; "
            "give a bi-encoder"
        )


def _checkpoint(path: Path) -> Checkpoint:
    from gplfast.models.checkpoint import Checkpoint

    return Checkpoint(path)


def _has(architectures: object, ending: str) -> bool:
    return isinstance(architectures, list) and any(str(name).endswith(ending) for name in architectures)


def _kind(config: dict[str, object]) -> str:
    names = config.get("architectures")
    shown = ", ".join(map(str, names)) if isinstance(names, list) and names else "no architecture"
    return f"{shown} (model_type {config.get('model_type')!r})"
