"""From a cross-encoder's logits to one score per pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gplfast.errors import ConfigError, ModelError
from gplfast.models.sampling import softmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from gplfast.models.checkpoint import Checkpoint

Values = npt.NDArray[np.float32]
ACTIVATIONS = ("identity", "sigmoid", "softmax", "default")


def activate(logits: Values, activation: str) -> Values:
    """Apply an activation.

    Args:
        logits: (n, n_labels) float32.
        activation: "identity", "sigmoid", "softmax" (over the labels) or another one of `configured_activation`.

    Returns:
        (n, n_labels) float32.
    """
    # in float64, where exp of a large negative logit does not overflow
    return _FUNCTIONS[activation](logits.astype(np.float64)).astype(np.float32)


def saved_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """What config_sentence_transformers.json says of a cross-encoder; the library reads it beside modules.json only."""
    return checkpoint.optional("config_sentence_transformers.json") if checkpoint.modules else {}


def configured_activation(checkpoint: Checkpoint, n_labels: int) -> str:
    """What sentence-transformers' CrossEncoder.predict applies to this model unless told otherwise.

    In its order: activation_fn of config_sentence_transformers.json (version 5 on), sentence_transformers.activation_fn
    of config.json (version 4), sbert_ce_default_activation_function there (before), and with none of them sigmoid for
    one label, identity for several.

    Raises:
        ModelError: a function that is not known; sentence-transformers runs any code that is named there when told to.
    """
    saved = checkpoint.config.get("sentence_transformers") or {}
    found = (
        saved_settings(checkpoint).get("activation_fn")
        or saved.get("activation_fn")
        or checkpoint.config.get("sbert_ce_default_activation_function")
    )
    if found is None:
        return "sigmoid" if n_labels == 1 else "identity"
    name = str(found).rsplit(".", 1)[-1].lower()
    if not str(found).startswith("torch.") or name not in _FUNCTIONS:
        known = ", ".join(_FUNCTIONS)
        message = (
            f"cross-encoder: {checkpoint.directory} names the activation {found!r} but only torch's {known} are known; "
            "choose one yourself: activation = 'identity' gives the raw logits"
        )
        raise ModelError(message)
    return name


def label_index(checkpoint: Checkpoint, label: int | str | None, n_labels: int) -> int:
    """Which logit is the relevance.

    Args:
        checkpoint: whose id2label names them.
        label: a name of id2label, a number (also as text), or None where there is one label only.
        n_labels: how many there are.

    Raises:
        ModelError: several labels and none chosen.
        ConfigError: no such label.
    """
    names = {str(name): int(number) for number, name in (checkpoint.config.get("id2label") or {}).items()}
    names = {name: number for name, number in names.items() if number < n_labels}
    choices = ", ".join(names) or f"0 to {n_labels - 1}"
    if label is None:
        if n_labels == 1:
            return 0
        message = (
            f"cross-encoder: {checkpoint.directory} has {n_labels} labels ({choices}) but a teacher must have 1, the "
            "relevance; say which one it is (label.relevance_label; in Python label=), or choose a model for ranking"
        )
        raise ModelError(message)
    if str(label) in names:
        return names[str(label)]
    index = int(label) if str(label).isdecimal() else -1
    if not 0 <= index < n_labels:
        message = (
            f"cross-encoder: label is {label!r} but {checkpoint.directory} has {choices}; give a name, or a number "
            f"below {n_labels}"
        )
        raise ConfigError(message)
    return index


def chosen_activation(asked: str, configured: Callable[[], str], n_labels: int) -> str:
    """The activation to apply for the one that a caller asks for.

    Raises:
        ConfigError: unknown, or softmax where there is one label, which would make every score 1.
        ModelError: see `configured_activation`.
    """
    if asked not in ACTIVATIONS:
        message = f"score: activation is {asked!r} but must be one of {', '.join(ACTIVATIONS)}"
        raise ConfigError(message)
    if asked == "softmax" and n_labels == 1:
        message = "score: activation is 'softmax' but this model has 1 label, whose softmax is always 1; use 'sigmoid'"
        raise ConfigError(message)
    return configured() if asked == "default" else asked


def _sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    probabilities: npt.NDArray[np.float64] = 1 / (1 + np.exp(-logits))
    return probabilities


_FUNCTIONS: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "identity": lambda logits: logits,
    "sigmoid": _sigmoid,
    "softmax": softmax,
    "tanh": np.tanh,
}
