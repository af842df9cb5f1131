"""T5 v1.0 (relu, tied) and v1.1 (gated, untied): an encoder graph and a graph of one decoding step with its cache.

In a graph of float16 or bfloat16 the products of weights, attention and the cached keys and values are of that type;
hidden states from layer to layer, norms and the best logits are float32. T5's hidden states pass float16's 65504, and
what the feed-forward parts add to them does too (transformers #5651, #9295): see `FEED_FORWARD_SCALE`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import ModelError
from gplfast.models.export.graph import FLOATS, Graph, activate, relative_buckets, self_attention_bias

if TYPE_CHECKING:
    from gplfast.models.checkpoint import Checkpoint

# In float16 the feed-forward part computes a 64th of its output, in a power of two and therefore with the same digits,
# and float32 takes it back: it then ends at 4 million. transformers multiplies its last matrix in float32 instead,
# without tensor cores.
FEED_FORWARD_SCALE = 2.0**-6


class T5:
    """The settings and weights of one T5 checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read the configuration.

        Raises:
            ModelError: not a T5, or an option that is not supported.
        """
        config = checkpoint.config
        if config.get("model_type") != "t5":
            message = (
                f"query generator: model_type is {config.get('model_type')!r} but must be 't5' ({checkpoint.directory})"
            )
            raise ModelError(message)
        self.weights = checkpoint.weights
        self.n_heads, self.head_dim, self.dim = (int(config[name]) for name in ("num_heads", "d_kv", "d_model"))
        self.n_layers = int(config["num_layers"])
        self.n_decoder_layers = int(config.get("num_decoder_layers") or self.n_layers)
        self.epsilon = float(config.get("layer_norm_epsilon", 1e-6))
        self.max_distance = int(config.get("relative_attention_max_distance", 128))
        projection = str(config.get("feed_forward_proj", "relu"))
        self.gated = projection.startswith("gated-")
        # transformers reads "gated-gelu" as the tanh form of GELU, for the sake of the first v1.1 checkpoints
        self.activation = "gelu_new" if projection == "gated-gelu" else projection.removeprefix("gated-")
        # transformers 5 saves scale_decoder_outputs; before, tie_word_embeddings=false meant v1.1, which does not scale
        scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True) is not False)
        self.logit_scale = float(self.dim) ** -0.5 if scaled else 1.0

    @property
    def embeddings(self) -> np.ndarray[Any, Any]:
        """(vocabulary, dim) float32 input embeddings."""
        for name in ("shared.weight", "encoder.embed_tokens.weight"):
            if name in self.weights:
                return self.weights[name]
        return self.weights["shared.weight"]

    @property
    def input_rows(self) -> int:
        """Rows of the input embedding."""
        name = "shared.weight" if "shared.weight" in self.weights else "encoder.embed_tokens.weight"
        return self.weights.shape(name)[0]

    @property
    def output_rows(self) -> int:
        """Tokens that can come out."""
        return self.weights.shape("lm_head.weight")[0] if "lm_head.weight" in self.weights else self.input_rows

    @property
    def output_embeddings(self) -> np.ndarray[Any, Any] | None:
        """(vocabulary, dim) float32 of an output layer of its own, or None when it is tied to the input."""
        return self.weights["lm_head.weight"] if "lm_head.weight" in self.weights else None  # noqa: SIM401  (no dict)

    def project(self, graph: Graph, value: str, name: str, scale: float = 1.0) -> str:
        """Multiply by a weight matrix, times `scale`; T5 has no biases. `value` is narrow, and so is the result."""
        weight = self.weights[name + ".weight"]
        return graph.linear(value, name, weight if scale == 1 else weight * np.float32(scale))

    def norm_weight(self, graph: Graph, name: str) -> str:
        """Scale of an RMS norm."""
        return graph.weight(name + ".weight", self.weights[name + ".weight"])

    def feed_forward(self, graph: Graph, normed: str, name: str) -> str:
        """The feed-forward part without its norm and residual, float32 to float32."""
        scale = FEED_FORWARD_SCALE if graph.float == "fp16" else 1.0
        value = graph.narrow(normed)
        if self.gated:
            gate = activate(graph, self.project(graph, value, name + ".wi_0"), self.activation)
            inner = graph.op("Mul", gate, self.project(graph, value, name + ".wi_1", scale))
        else:
            early = scale if self.activation == "relu" else 1.0  # what relu lets through scales with what goes in
            inner = activate(graph, self.project(graph, value, name + ".wi", early), self.activation)
        late = 1.0 if self.gated or self.activation == "relu" else scale
        output = graph.widen(self.project(graph, inner, name + ".wo", late))
        return output if scale == 1 else graph.op("Mul", output, graph.constant(1 / scale, np.float32))

    def first_norm(self, graph: Graph, value: str, name: str) -> str:
        """The RMS norm of a stack's input."""
        weight = self.norm_weight(graph, name)
        return graph.op("SimplifiedLayerNormalization", value, weight, axis=-1, epsilon=self.epsilon, stash_type=1)

    def add_and_norm(self, graph: Graph, value: str, skip: str, name: str) -> tuple[str, str]:
        """(skip + value, its RMS norm), all float32."""
        inputs = (value, skip, self.norm_weight(graph, name))
        outputs = graph.op_n("SkipSimplifiedLayerNormalization", inputs, 4, {"epsilon": self.epsilon})
        return outputs[3], outputs[0]


def t5_encoder_graph(t5: T5, precision: str = "fp32") -> Graph:
    """From input_ids and attention_mask, int32 (batch, sequence), to what the decoder needs of a passage.

    Outputs cross_key_i and cross_value_i for each decoder layer: (batch, n_heads, sequence, head_dim), float32, or of
    the half type of `precision` (as of `Graph`). They are computed once per passage and shared by all its samples and
    steps.
    """
    graph = Graph("t5-encoder", precision)
    ids = graph.input("input_ids", np.int32, ("batch", "sequence"))
    mask = graph.input("attention_mask", np.int32, ("batch", "sequence"))
    hidden = graph.widen(graph.op("Gather", graph.table("shared.weight", t5.embeddings), ids, axis=0))
    length = graph.op("Gather", graph.op("Shape", ids), graph.constant(1), axis=0)
    table = t5.weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    bias = self_attention_bias(graph, length, table, t5.max_distance, "relative_attention_bias")
    normed = t5.first_norm(graph, hidden, "encoder.block.0.layer.0.layer_norm")
    for index in range(t5.n_layers):
        layer = f"encoder.block.{index}.layer."
        qkv = (t5.project(graph, graph.narrow(normed), f"{layer}0.SelfAttention.{part}") for part in "qkv")
        attended = graph.op(
            "MultiHeadAttention", *qkv, "", mask, bias, num_heads=t5.n_heads, scale=1.0, mask_filter_value=graph.masked
        )
        output = graph.widen(t5.project(graph, attended, f"{layer}0.SelfAttention.o"))
        hidden, normed = t5.add_and_norm(graph, output, hidden, f"{layer}1.layer_norm")
        output = t5.feed_forward(graph, normed, f"{layer}1.DenseReluDense")
        following = f"encoder.block.{index + 1}.layer.0.layer_norm"
        following = "encoder.final_layer_norm" if index + 1 == t5.n_layers else following
        hidden, normed = t5.add_and_norm(graph, output, hidden, following)
    for index in range(t5.n_decoder_layers):
        for part, name in (("k", "key"), ("v", "value")):
            states = t5.project(graph, graph.narrow(normed), f"decoder.block.{index}.layer.1.EncDecAttention.{part}")
            split = graph.op("Reshape", states, graph.constant([0, 0, t5.n_heads, t5.head_dim]))
            heads = graph.op("Transpose", split, perm=[0, 2, 1, 3])
            graph.output(heads, f"cross_{name}_{index}", graph.element, ("batch", t5.n_heads, "sequence", t5.head_dim))
    return graph


def t5_decoder_graph(t5: T5, precision: str = "fp32") -> Graph:
    """One step of decoding for a batch of rows, each a sample of one of `n_docs` passages.

    Inputs: tokens int32 (rows,); distances int32 (rows or 1, past + 1): how far back each cached position lies, at
    most max_distance, and max_distance + 1 where a row must not look; past_key_i, past_value_i (rows, n_heads, past,
    head_dim); cross_key_i, cross_value_i (n_docs, n_heads, sequence, head_dim) and attention_mask int32 (n_docs,
    sequence) of the passages; slots int32 (n_docs, samples): the row of each sample of each passage (any row where
    there is none), so that a passage's keys are read once for all its samples; row_slots int32 (rows,): the inverse,
    into the flattened slots; n_best int64 (1,).

    Outputs: best_logits float32 and best_tokens int64, (rows, n_best), descending, ties to the lower token;
    key_i, value_i (rows, n_heads, past + 1, head_dim). Keys and values are float32, or of the half type of `precision`.
    """
    graph = Graph("t5-decoder", precision)
    tokens = graph.input("tokens", np.int32, ("rows",))
    hidden = graph.widen(graph.op("Gather", graph.table("shared.weight", t5.embeddings), tokens, axis=0))
    hidden = graph.op("Unsqueeze", hidden, graph.constant([1]))
    bias = _decoder_bias(graph, t5)
    cross = _CrossInputs(graph, t5)
    normed = t5.first_norm(graph, hidden, "decoder.block.0.layer.0.layer_norm")
    for index in range(t5.n_decoder_layers):
        layer = f"decoder.block.{index}.layer."
        attended = _cached_attention(graph, t5, graph.narrow(normed), bias, index)
        output = graph.widen(t5.project(graph, attended, f"{layer}0.SelfAttention.o"))
        hidden, normed = t5.add_and_norm(graph, output, hidden, f"{layer}1.layer_norm")
        attended = cross.attend(t5.project(graph, graph.narrow(normed), f"{layer}1.EncDecAttention.q"), index)
        output = graph.widen(t5.project(graph, attended, f"{layer}1.EncDecAttention.o"))
        hidden, normed = t5.add_and_norm(graph, output, hidden, f"{layer}2.layer_norm")
        output = t5.feed_forward(graph, normed, f"{layer}2.DenseReluDense")
        following = f"decoder.block.{index + 1}.layer.0.layer_norm"
        following = "decoder.final_layer_norm" if index + 1 == t5.n_decoder_layers else following
        hidden, normed = t5.add_and_norm(graph, output, hidden, following)
    _best_tokens(graph, t5, normed)
    return graph


def _decoder_bias(graph: Graph, t5: T5) -> str:
    """(rows or 1, n_heads, 1, past + 1) position bias; one more entry of the table is the mask."""
    table = t5.weights["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    back = -np.arange(t5.max_distance + 1)
    buckets = relative_buckets(back, bidirectional=False, n_buckets=len(table), max_distance=t5.max_distance)
    masked = np.full((1, table.shape[1]), graph.masked, np.float32)
    by_distance = graph.half_weight("relative_attention_bias", np.concatenate([table[buckets], masked]))
    distances = graph.input("distances", np.int32, ("bias_rows", "length"))
    bias = graph.op("Transpose", graph.op("Gather", by_distance, distances, axis=0), perm=[0, 2, 1])
    return graph.op("Unsqueeze", bias, graph.constant([2]))


def _cached_attention(graph: Graph, t5: T5, normed: str, bias: str, index: int) -> str:
    queries, keys, values = (
        t5.project(graph, normed, f"decoder.block.{index}.layer.0.SelfAttention.{part}") for part in "qkv"
    )
    past = [
        graph.input(f"past_{part}_{index}", graph.element, ("rows", t5.n_heads, "past", t5.head_dim))
        for part in ("key", "value")
    ]
    attended, key, value = graph.op_n(
        "MultiHeadAttention", (queries, keys, values, "", "", bias, *past), 3,
        {"num_heads": t5.n_heads, "scale": 1.0, "mask_filter_value": graph.masked},
    )  # fmt: skip
    shape = ("rows", t5.n_heads, "length", t5.head_dim)
    graph.output(key, f"key_{index}", graph.element, shape)
    graph.output(value, f"value_{index}", graph.element, shape)
    return attended


class _CrossInputs:
    """Cross-attention with the samples of a passage folded into its query axis."""

    def __init__(self, graph: Graph, t5: T5) -> None:
        self.graph, self.t5 = graph, t5
        self.mask = graph.input("attention_mask", np.int32, ("docs", "sequence"))
        self.slots = graph.input("slots", np.int32, ("docs", "samples"))
        self.row_slots = graph.input("row_slots", np.int32, ("rows",))

    def attend(self, queries: str, index: int) -> str:
        graph, t5 = self.graph, self.t5
        shape = ("docs", t5.n_heads, "sequence", t5.head_dim)
        key, value = (graph.input(f"cross_{part}_{index}", graph.element, shape) for part in ("key", "value"))
        flat = graph.op("Squeeze", queries, graph.constant([1]))
        grouped = graph.op("Gather", flat, self.slots, axis=0)
        attended = graph.op(
            "MultiHeadAttention",
            grouped,
            key,
            value,
            "",
            self.mask,
            num_heads=t5.n_heads,
            scale=1.0,
            mask_filter_value=graph.masked,
        )
        rows = graph.op("Reshape", attended, graph.constant([-1, t5.n_heads * t5.head_dim]))
        return graph.op("Unsqueeze", graph.op("Gather", rows, self.row_slots, axis=0), graph.constant([1]))


def _best_tokens(graph: Graph, t5: T5, normed: str) -> None:
    """Logits and their top n_best, in the graph: sorting 32 k logits per row outside would cost as much as the step.

    With either half type the product is of float16: both sides are bounded, and bfloat16's 8 bits would make ties of
    logits that are 3 % apart in probability.
    """
    flat = graph.op("Squeeze", normed, graph.constant([1]))
    own = t5.output_embeddings
    if graph.int8:
        matrix = t5.embeddings if own is None else own
        logits = graph.linear(flat, "lm_head", matrix * np.float32(t5.logit_scale))
    elif graph.half:
        name = "shared.weight" if own is None else graph.table("lm_head.weight", own)
        scaled = graph.op("Mul", flat, graph.constant(t5.logit_scale, np.float32))
        logits = graph.widen(graph.op("Gemm", graph.op("Cast", scaled, to=FLOATS["fp16"]), name, transB=1))
    else:
        name = "shared.weight" if own is None else graph.weight("lm_head.weight", own)
        logits = graph.op("Gemm", flat, name, transB=1, alpha=t5.logit_scale)
    n_best = graph.input("n_best", np.int64, (1,))
    values, tokens = graph.op_n("TopK", (logits, n_best), 2, {"axis": -1, "largest": 1, "sorted": 1})
    graph.output(values, "best_logits", np.float32, ("rows", "n_best"))
    graph.output(tokens, "best_tokens", np.int64, ("rows", "n_best"))
