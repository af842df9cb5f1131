# ruff: noqa: PLR0917 - inputs of an operator come by position
"""The operators of graphs of bfloat16 and float16, as they are defined: what ONNX's reference lacks, and strict types.

Every operator takes floats of one type, computes in float32 and rounds once to it, as a GPU's kernels do.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

MICROSOFT = "com.microsoft"
FUSED = ("SimplifiedLayerNormalization",)  # ONNX Runtime keeps it in ONNX's own domain, without a definition there


def same_type(*values: Any) -> np.dtype:
    """The type of floats that must agree; None stands for an input that is left out."""
    (dtype,) = {value.dtype for value in values if value is not None}
    return dtype


def wide(value: Any) -> Any:
    """In float32, or None."""
    return None if value is None else value.astype(np.float32)


def erf(value: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float32])(value)


class MatMul(OpRun):
    def _run(self, a, b):
        dtype = same_type(a, b)
        return ((wide(a) @ wide(b)).astype(dtype),)


class Gemm(OpRun):
    def _run(self, a, b, c=None, alpha=1.0, beta=1.0, transA=0, transB=0):
        dtype = same_type(a, b)
        assert (c, transA) == (None, 0)
        return ((alpha * wide(a) @ (wide(b).T if transB else wide(b))).astype(dtype),)


class BiasGelu(OpRun):
    op_domain = MICROSOFT

    def _run(self, value, bias):
        dtype = same_type(value, bias)
        biased = wide(value) + wide(bias)
        return ((biased * 0.5 * (1 + erf(biased / np.sqrt(2)))).astype(dtype),)


class FastGelu(OpRun):
    op_domain = MICROSOFT

    def _run(self, value):
        x = wide(value)
        return ((0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))).astype(value.dtype),)


def rms(value: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    return value / np.sqrt(np.mean(value**2, axis=-1, keepdims=True) + epsilon) * scale


class SimplifiedLayerNormalization(OpRun):
    op_domain = MICROSOFT  # where `evaluate` puts it

    def _run(self, value, scale, axis=-1, epsilon=0.0, stash_type=1):
        assert same_type(value, scale) == np.float32, "norms are float32"
        return (rms(value, scale, epsilon),)


class SkipSimplifiedLayerNormalization(OpRun):
    op_domain = MICROSOFT

    def _run(self, value, skip, scale, epsilon=0.0):
        assert same_type(value, skip, scale) == np.float32, "norms and sums over layers are float32"
        total = value + skip
        return rms(total, scale, epsilon), np.zeros(1), np.zeros(1), total


class SkipLayerNormalization(OpRun):
    op_domain = MICROSOFT

    def _run(self, value, skip, scale, shift, bias, epsilon=0.0):
        assert same_type(value, skip, scale, shift, bias) == np.float32, "norms and sums over layers are float32"
        total = value + skip + bias
        centred = total - total.mean(axis=-1, keepdims=True)
        return (rms(centred, scale, epsilon) + shift,)


class MultiHeadAttention(OpRun):
    op_domain = MICROSOFT

    def _run(
        self, query, key, value, bias=None, mask=None, attention_bias=None, past_key=None, past_value=None,
        num_heads=0, scale=0.0, mask_filter_value=-10000.0,
    ):  # fmt: skip
        dtype = same_type(query, key, value, bias, attention_bias, past_key, past_value)
        parts = [query, key, value]
        if bias is not None:
            parts = [wide(part) + each for part, each in zip(parts, np.split(wide(bias), 3), strict=True)]
        q, k, v = (wide(part) if part.ndim == 4 else split(wide(part), num_heads) for part in parts)
        if past_key is not None:
            k, v = np.concatenate([wide(past_key), k], 2), np.concatenate([wide(past_value), v], 2)
        scores = (q @ k.swapaxes(2, 3) * (scale or q.shape[-1] ** -0.5)).astype(dtype).astype(np.float32)
        scores = scores if attention_bias is None else scores + wide(attention_bias)
        scores = scores if mask is None else scores + np.float32(mask_filter_value) * (mask == 0)[:, None, None, :]
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(dtype).astype(np.float32)
        output = (weights @ v).transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1).astype(dtype)
        return (output, k.astype(dtype), v.astype(dtype)) if len(self.onnx_node.output) == 3 else (output,)


def split(value: np.ndarray, n_heads: int) -> np.ndarray:
    return value.reshape(*value.shape[:2], n_heads, -1).transpose(0, 2, 1, 3)


OPERATORS = [
    MatMul, Gemm, BiasGelu, FastGelu, SimplifiedLayerNormalization, SkipSimplifiedLayerNormalization,
    SkipLayerNormalization, MultiHeadAttention,
]  # fmt: skip


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that ONNX's checker takes, after it has."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type in FUSED:
            node.domain = MICROSOFT
    onnx.checker.check_model(copy)
    onnx.shape_inference.infer_shapes(copy, check_type=True, strict_mode=True)
    return copy


def evaluate(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a graph by name."""
    graph = ReferenceEvaluator(checked(model), new_ops=OPERATORS)
    return dict(zip(graph.output_names, graph.run(None, feed), strict=True))
