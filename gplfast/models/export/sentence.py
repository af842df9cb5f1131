"""Sentence embeddings: sentence-transformers' modules after the Transformer, in the same graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import ModelError
from gplfast.models.checkpoint import Checkpoint, Weights, read_json
from gplfast.models.export.encoder import EncoderGraph
from gplfast.models.export.graph import Graph, activate

if TYPE_CHECKING:
    from pathlib import Path

_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING = tuple(_LEGACY_POOLING.values())
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
_ACTIVATIONS = {"Tanh": "tanh", "Identity": "identity", "ReLU": "relu", "GELU": "gelu", "Sigmoid": "sigmoid"}
_LOWEST = float(np.finfo(np.float32).min)


def pooling_modes(config: dict[str, Any]) -> tuple[str, ...]:
    """Pooling modes of a Pooling module, in the order of their outputs.

    Raises:
        ModelError: a mode that is not known.
    """
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY_POOLING.items() if config.get(key)] or ["mean"]
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    unknown = [mode for mode in modes if mode not in _POOLING]
    if unknown:
        message = f"export: pooling_mode is {unknown[0]!r} but must be one of {', '.join(_POOLING)}"
        raise ModelError(message)
    return modes


def pooling_config(checkpoint: Checkpoint, plain: str = "mean") -> dict[str, Any]:
    """The Pooling module's settings; a plain directory gets `plain`."""
    for module in checkpoint.modules:
        if module["type"] == "Pooling":
            return read_json(checkpoint.directory / module["path"] / "config.json")
    return {"pooling_mode": plain}


def bi_encoder_graph(checkpoint: Checkpoint, plain_pooling: str = "mean", precision: str = "fp32") -> tuple[Graph, int]:
    """From token ids to `embedding` (batch, dim) float32; `precision` as of `Graph`.

    Where the Pooling module leaves prompts out, the graph takes a further input pooling_mask, int32 (batch, sequence).

    Returns:
        The graph and dim.

    Raises:
        ModelError: a module that is not supported.
    """
    graph = Graph("bi-encoder", precision)
    encoder = EncoderGraph(graph, checkpoint)
    value, dim = encoder.hidden_states(), encoder.dim
    modules = checkpoint.modules or [{"type": "Transformer", "path": ""}, {"type": "Pooling", "path": ""}]
    pooled = False
    for module in modules:
        kind, folder = module["type"], checkpoint.directory / module["path"]
        if kind not in _MODULES:
            message = f"export: {checkpoint.directory} has a module {kind} but only {', '.join(_MODULES)} are supported"
            raise ModelError(message)
        if kind == "Pooling":
            value, dim = _pool(graph, value, dim, pooling_config(checkpoint, plain_pooling))
            pooled = True
        elif kind == "Dense":
            value, dim = _dense(graph, value, folder, module["path"])
        elif kind == "Normalize":
            value = _normalize(graph, value)
    if not pooled:
        message = (
            f"export: {checkpoint.directory} has no Pooling module in modules.json, so it gives no sentence embedding"
        )
        raise ModelError(message)
    graph.output(value, "embedding", np.float32, ("batch", dim))
    return graph, dim


def _pool(graph: Graph, hidden: str, dim: int, config: dict[str, Any]) -> tuple[str, int]:
    mask = "attention_mask"
    if not config.get("include_prompt", True):
        mask = graph.input("pooling_mask", np.int32, ("batch", "sequence"))
    weights = graph.op("Unsqueeze", graph.op("Cast", mask, to=1), graph.constant([2]))  # 1: float32
    modes = pooling_modes(config)
    parts = [_pool_one(graph, hidden, mask, weights, mode) for mode in modes]
    return (parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=1)), dim * len(parts)


def _pool_one(graph: Graph, hidden: str, mask: str, weights: str, mode: str) -> str:
    tokens = graph.constant([1])
    if mode in {"cls", "lasttoken"}:
        last = (
            1 if mode == "lasttoken" else 0
        )  # the first or the last index of the mask's ones; padding is on the right
        index = graph.op("ArgMax", mask, axis=1, keepdims=1, select_last_index=last)
        return graph.op("GatherND", hidden, index, batch_dims=1)
    if mode == "max":
        masked = graph.op(
            "Mul", graph.op("Sub", graph.constant(1, np.float32), weights), graph.constant(_LOWEST, np.float32)
        )
        return graph.op("ReduceMax", graph.op("Add", hidden, masked), tokens, keepdims=0)
    if mode == "weightedmean":
        order = graph.op("CumSum", graph.op("Cast", "attention_mask", to=1), graph.constant(1))
        weights = graph.op("Mul", weights, graph.op("Unsqueeze", order, graph.constant([2])))
    total = graph.op("ReduceSum", graph.op("Mul", hidden, weights), tokens, keepdims=0)
    count = graph.op("Max", graph.op("ReduceSum", weights, tokens, keepdims=0), graph.constant(1e-9, np.float32))
    return graph.op("Div", total, graph.op("Sqrt", count) if mode == "mean_sqrt_len_tokens" else count)


def _dense(graph: Graph, value: str, folder: Path, name: str) -> tuple[str, int]:
    config = read_json(folder / "config.json")
    activation = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    if activation not in _ACTIVATIONS:
        message = f"export: {folder} has activation_function {activation} but only {', '.join(_ACTIVATIONS)} are known"
        raise ModelError(message)
    outside = [config.get(key) for key in ("module_input_name", "module_output_name")]
    if config.get("use_residual") or any(key not in {None, "sentence_embedding"} for key in outside):
        message = f"export: {folder}: Dense with a residual or over token embeddings is not supported"
        raise ModelError(message)
    if not (folder / "model.safetensors").exists():
        message = f"export: {folder} has no model.safetensors; save the model again with sentence-transformers >= 3"
        raise ModelError(message)
    weights = Weights([folder / "model.safetensors"])
    bias = weights["linear.bias"] if config.get("bias", True) else None
    product = graph.linear(value, f"{name}.linear", weights["linear.weight"], bias, exact=True)
    return activate(graph, product, _ACTIVATIONS[activation]), weights.shape("linear.weight")[0]


def _normalize(graph: Graph, value: str) -> str:
    length = graph.op("ReduceL2", value, graph.constant([1]), keepdims=1)
    return graph.op("Div", value, graph.op("Max", length, graph.constant(1e-12, np.float32)))
