"""How many floating-point operations a network needs for texts of given lengths, from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

# Hidden size, layers, inner size: as BERT and its line name them, and as DistilBERT does.
_NAMES = (("hidden_size", "num_hidden_layers", "intermediate_size"), ("dim", "n_layers", "hidden_dim"))


def encoder_flop(config: Mapping[str, Any], lengths: NDArray[np.int64]) -> float:
    """Of the matrix products of an encoder's layers, a multiply-add counting two.

    Of each layer: four d x d projections and two d x f of the feed-forward part for every token, and the scores and
    the weighted sum of attention, both n^2 d, for every text of n tokens. Padding, embeddings, norms, activations and
    the head are not counted.

    Args:
        config: config.json.
        lengths: (n_texts,) tokens of each text or pair.

    Raises:
        ModelError: The configuration does not name the sizes.
    """
    for names in _NAMES:
        if all(name in config for name in names):
            dim, layers, inner = (int(config[name]) for name in names)
            tokens = lengths.astype(np.float64)
            per_token = 8 * dim * dim + 4 * dim * inner
            return float(layers * (per_token * tokens.sum() + 4 * dim * (tokens**2).sum()))
    raise ModelError(f"bench: config.json has none of {', '.join(_NAMES[0])}, so its operations cannot be counted")
