"""The encoder family of BERT: BERT, MiniLM, DistilBERT, MPNet, RoBERTa, XLM-R; and their classification heads.

In a graph of float16 or bfloat16 the products of weights, attention and activations are of that type; hidden states
from layer to layer, norms, heads and pooling are float32, so that rounding does not add up over layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import ModelError
from gplfast.models.export.graph import Graph, activate, self_attention_bias

if TYPE_CHECKING:
    from gplfast.models.checkpoint import Checkpoint, Weights

_MPNET_BUCKETS_MAX_DISTANCE = 128  # fixed in transformers' MPNetEncoder, not a setting
_MPNET_PADDING_ID = 1  # fixed in transformers' MPNetEmbeddings, whatever the configuration says


@dataclass(frozen=True)
class Names:
    """Where an architecture keeps the weights of one layer, relative to `layer`."""

    layer: str = "encoder.layer.{}."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    hidden: str = "intermediate.dense"
    hidden_out: str = "output.dense"
    hidden_norm: str = "output.LayerNorm"


_BERT = Names()
_DISTILBERT = Names(
    "transformer.layer.{}.", "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
    "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm",
)  # fmt: skip
_MPNET = Names(
    query="attention.attn.q", key="attention.attn.k", value="attention.attn.v", attention_out="attention.attn.o",
    attention_norm="attention.LayerNorm",
)  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """What tells one member of the family from another."""

    names: Names
    prefix: str
    head: str  # "pooler", "distilbert" or "roberta"
    positions_after_padding: bool = False
    segments: str = "input"  # token types: "input", "first" (always type 0) or "none"


# RoBERTa and its line have a type table that their tokenizers never use: of type 0 is everything
_ROBERTA = Architecture(_BERT, "roberta.", "roberta", positions_after_padding=True, segments="first")
ARCHITECTURES = {
    "bert": Architecture(_BERT, "bert.", "pooler"),
    "distilbert": Architecture(_DISTILBERT, "distilbert.", "distilbert", segments="none"),
    "mpnet": Architecture(_MPNET, "mpnet.", "roberta", positions_after_padding=True, segments="none"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
}


def architecture(config: dict[str, Any]) -> Architecture:
    """The architecture of a configuration.

    Raises:
        ModelError: a model type or an option that is not supported.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        message = f"export: model_type is {kind!r} but an encoder must be one of {', '.join(ARCHITECTURES)}"
        raise ModelError(message)
    if config.get("position_embedding_type", "absolute") not in {"absolute", None}:
        message = f"export: position_embedding_type is {config['position_embedding_type']!r} but must be 'absolute'"
        raise ModelError(message)
    return ARCHITECTURES[kind]


def padding_id(config: dict[str, Any]) -> int:
    """The id that pads, which position numbers of the RoBERTa line depend on."""
    kind = architecture(config)
    default = 1 if kind.positions_after_padding else 0
    value = config.get("pad_token_id")
    return default if value is None or config["model_type"] == "mpnet" else int(value)


def max_positions(config: dict[str, Any]) -> int:
    """Tokens that fit: the position table's rows, less those before the first position of the RoBERTa line."""
    rows = int(config.get("max_position_embeddings", 512))
    return rows - padding_id(config) - 1 if architecture(config).positions_after_padding else rows


class EncoderGraph:
    """The nodes from token ids to hidden states."""

    def __init__(self, graph: Graph, checkpoint: Checkpoint) -> None:
        """Read the configuration; nodes are added by the methods."""
        self.graph = graph
        self.config = checkpoint.config
        self.kind = architecture(self.config)
        self.weights: Weights = checkpoint.weights
        probe = "embeddings.word_embeddings.weight"
        self.prefix = self.kind.prefix if self.kind.prefix + probe in self.weights else ""
        # DistilBERT's LayerNorm has no setting; its configuration's own names for sizes
        self.epsilon = float(self.config.get("layer_norm_eps", 1e-12))
        self.n_layers = int(self._setting("num_hidden_layers", "n_layers"))
        self.n_heads = int(self._setting("num_attention_heads", "n_heads"))
        self.activation = str(self._setting("hidden_act", "activation"))

    def _setting(self, name: str, distilbert_name: str) -> Any:  # noqa: ANN401  (JSON)
        key = distilbert_name if self.config["model_type"] == "distilbert" else name
        if key not in self.config:
            message = (
                f"export: config.json has no {key!r}, which {self.config['model_type']} needs; copy the whole model"
            )
            raise ModelError(message)
        return self.config[key]

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return self.weights.shape(self.prefix + "embeddings.word_embeddings.weight")[1]

    def _weight(self, name: str, *, own: bool = True) -> np.ndarray[Any, Any]:
        full = (self.prefix if own else "") + name
        if full not in self.weights:  # checkpoints converted from TensorFlow (bert-base-uncased) have the old names
            old = full.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            full = old if old in self.weights else full
        return self.weights[full]

    def _stored(self, name: str) -> str:
        return self.graph.weight(name, self._weight(name))

    def _table(self, name: str) -> str:
        return self.graph.table(name, self._weight(name))

    def hidden_states(self) -> str:
        """Add inputs input_ids, attention_mask and, where there are types, token_type_ids: int32 (batch, sequence).

        Returns:
            Name of the (batch, sequence, dim) float32 value of the last layer.
        """
        graph, shape = self.graph, ("batch", "sequence")
        ids = graph.input("input_ids", np.int32, shape)
        mask = graph.input("attention_mask", np.int32, shape)
        hidden = self._embeddings(ids)
        bias = ""
        if self.config["model_type"] == "mpnet":
            length = graph.op("Gather", graph.op("Shape", ids), graph.constant(1), axis=0)
            table = self._weight("encoder.relative_attention_bias.weight")
            bias = self_attention_bias(graph, length, table, _MPNET_BUCKETS_MAX_DISTANCE, "relative_attention_bias")
        for index in range(self.n_layers):
            hidden = self._layer(hidden, mask, bias, self.kind.names.layer.format(index))
        return hidden

    def _embeddings(self, ids: str) -> str:
        graph = self.graph
        words = graph.widen(graph.op("Gather", self._table("embeddings.word_embeddings.weight"), ids, axis=0))
        table = self._table("embeddings.position_embeddings.weight")
        if self.kind.positions_after_padding:
            pad = _MPNET_PADDING_ID if self.config["model_type"] == "mpnet" else padding_id(self.config)
            is_pad = graph.op("Equal", ids, graph.constant(pad, np.int32))
            real = graph.op("Cast", graph.op("Not", is_pad), to=6)  # 6: int32
            counted = graph.op("Mul", graph.op("CumSum", real, graph.constant(1)), real)
            positions = graph.op("Gather", table, graph.op("Add", counted, graph.constant(pad, np.int32)), axis=0)
        else:
            length = graph.op("Gather", graph.op("Shape", ids), graph.constant([1]), axis=0)
            positions = graph.op("Slice", table, graph.constant([0]), length, graph.constant([0]))
        total = graph.op("Add", words, graph.widen(positions))
        if self.kind.segments == "first":
            first = self._weight("embeddings.token_type_embeddings.weight")[0]
            total = graph.op("Add", total, graph.weight("embeddings.first_token_type", first))
        elif self.kind.segments == "input":
            types = self.graph.input("token_type_ids", np.int32, ("batch", "sequence"))
            type_table = self._table("embeddings.token_type_embeddings.weight")
            total = graph.op("Add", total, graph.widen(graph.op("Gather", type_table, types, axis=0)))
        norm = "embeddings.LayerNorm."
        scale, shift = self._stored(norm + "weight"), self._stored(norm + "bias")
        return graph.op("LayerNormalization", total, scale, shift, axis=-1, epsilon=self.epsilon)

    def _layer(self, hidden: str, mask: str, bias: str, layer: str) -> str:
        graph, names = self.graph, self.kind.names
        projections = (names.query, names.key, names.value)
        queries, keys, values = (
            graph.linear(graph.narrow(hidden), layer + n, self._weight(f"{layer}{n}.weight")) for n in projections
        )
        biases = np.concatenate([self._weight(f"{layer}{n}.bias") for n in projections])
        stored = graph.half_weight(layer + "attention.bias", biases)
        attended = graph.op(
            "MultiHeadAttention", queries, keys, values, stored, mask, bias,
            num_heads=self.n_heads, mask_filter_value=graph.masked,
        )  # fmt: skip
        hidden = self._add_and_norm(attended, hidden, layer + names.attention_out, layer + names.attention_norm)
        inner = graph.linear(graph.narrow(hidden), layer + names.hidden, self._weight(f"{layer}{names.hidden}.weight"))
        inner_bias = f"{layer}{names.hidden}.bias"
        inner = activate(graph, inner, self.activation, graph.half_weight(inner_bias, self._weight(inner_bias)))
        return self._add_and_norm(inner, hidden, layer + names.hidden_out, layer + names.hidden_norm)

    def _add_and_norm(self, value: str, skip: str, dense: str, norm: str) -> str:
        product = self.graph.widen(self.graph.linear(value, dense, self._weight(dense + ".weight")))
        inputs = (
            product,
            skip,
            self._stored(norm + ".weight"),
            self._stored(norm + ".bias"),
            self._stored(dense + ".bias"),
        )
        return self.graph.op("SkipLayerNormalization", *inputs, epsilon=self.epsilon)

    def logits(self, hidden: str) -> str:
        """Add the classification head over the first token.

        Returns:
            Name of the (batch, n_labels) float32 raw logits.
        """
        first = self.graph.op("Gather", hidden, self.graph.constant(0), axis=1)
        if self.kind.head == "pooler":
            pooled = self._dense(first, self.prefix + "pooler.dense", "tanh")
            return self._dense(pooled, "classifier", "identity")
        if self.kind.head == "distilbert":
            return self._dense(self._dense(first, "pre_classifier", "relu"), "classifier", "identity")
        return self._dense(self._dense(first, "classifier.dense", "tanh"), "classifier.out_proj", "identity")

    def _dense(self, value: str, name: str, activation: str) -> str:
        weight, bias = self._weight(name + ".weight", own=False), self._weight(name + ".bias", own=False)
        return activate(self.graph, self.graph.linear(value, name, weight, bias, exact=True), activation)


def n_labels(checkpoint: Checkpoint) -> int:
    """Outputs of the classification head.

    Raises:
        ModelError: the checkpoint has no such head.
    """
    head = "classifier.out_proj.weight" if architecture(checkpoint.config).head == "roberta" else "classifier.weight"
    if head not in checkpoint.weights:
        message = (
            f"cross-encoder: {checkpoint.directory} has no {head} but a cross-encoder needs a classification head; "
            f"its architectures are {checkpoint.config.get('architectures')}"
        )
        raise ModelError(message)
    return checkpoint.weights.shape(head)[0]


def cross_encoder_graph(checkpoint: Checkpoint, precision: str = "fp32") -> Graph:
    """From a pair's token ids to `logits` (batch, n_labels) float32; `precision` as of `Graph`."""
    graph = Graph("cross-encoder", precision)
    encoder = EncoderGraph(graph, checkpoint)
    logits = encoder.logits(encoder.hidden_states())
    graph.output(logits, "logits", np.float32, ("batch", n_labels(checkpoint)))
    return graph
