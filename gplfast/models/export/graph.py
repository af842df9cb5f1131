"""A small writer of ONNX graphs: one call per node, weights by name, ONNX Runtime's fused operators by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

OPSET = 20
IR_VERSION = 9
# protobuf cannot hold 2 GiB in one message; weights beyond this go to a file beside the graph.
EXTERNAL_DATA_BYTES = 1_800_000_000
_MICROSOFT = {
    "MultiHeadAttention",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "BiasGelu",
    "FastGelu",
    "DynamicQuantizeMatMul",
}
MASKED = -1e9  # an attention score that is masked; finite, so that a row without any key gives no NaN
# The same where float16 must hold it: far below any score, far from -65504, a sum with a score of which is infinite.
_MASKED_FP16 = -3e4
# What matrix products may be made in, by ONNX's numbers of types.
FLOATS = {"fp32": 1, "fp16": 10, "bf16": 16}


def import_onnx() -> ModuleType:
    """Import onnx, or say how to get it.

    Raises:
        MissingExtraError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        message = "export: onnx is not installed; run: pip install 'gplfast[cpu]'  (or 'gplfast[gpu]')"
        raise MissingExtraError(message) from error
    return onnx


class Graph:
    """Collects nodes, weights, inputs and outputs, and writes them as one ONNX model."""

    def __init__(self, name: str, precision: str = "fp32") -> None:
        """Start an empty graph.

        Args:
            name: of the graph.
            precision: "int8": `linear` keeps weights as int8 with a scale per output, and multiplies integers: the
                values going in are rounded to 8 bits at run time, with one scale for the whole batch. "fp16", "bf16":
                `linear` keeps weights in that type, takes a value in it (`narrow`) and gives one (`widen` it).
                "fp32": neither.
        """
        self._onnx = import_onnx()
        self._name = name
        self.int8 = precision == "int8"
        self.float = "fp32" if self.int8 else precision
        self._narrowed: dict[str, str] = {}
        self._bf16: set[str] = set()  # weights that are kept as bits
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._weights: dict[str, np.ndarray[Any, Any]] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    @property
    def element(self) -> int:
        """ONNX's number of the type that products are made in."""
        return FLOATS[self.float]

    @property
    def half(self) -> bool:
        """Whether products are made in a float of two bytes."""
        return self.float != "fp32"

    @property
    def masked(self) -> float:
        """An attention score that is masked."""
        return _MASKED_FP16 if self.float == "fp16" else MASKED

    def narrow(self, value: str) -> str:
        """A float32 value in the type that products are made in; once, however often it is asked for."""
        if not self.half:
            return value
        if value not in self._narrowed:
            self._narrowed[value] = self.op("Cast", value, to=self.element)
        return self._narrowed[value]

    def widen(self, value: str) -> str:
        """A value of that type in float32: for sums over layers, norms, and what leaves the graph."""
        return self.op("Cast", value, to=FLOATS["fp32"]) if self.half else value

    def input(self, name: str, dtype: type[np.generic] | int, shape: Sequence[int | str]) -> str:
        """Declare an input of a NumPy type or of ONNX's number of one; string dimensions are free."""
        self._inputs.append(self._value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: type[np.generic] | int, shape: Sequence[int | str]) -> None:
        """Declare `value` as the output `name`; `dtype` as of `input`."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name]))
        self._outputs.append(self._value_info(name, dtype, shape))

    def weight(self, name: str, value: np.ndarray[Any, Any]) -> str:
        """Add a weight under its own name; the same name twice must be the same weight."""
        # ascontiguousarray would turn a 0-d array into a 1-d one
        self._weights.setdefault(name, np.asarray(value, order="C"))
        return name

    def half_weight(self, name: str, value: np.ndarray[Any, Any]) -> str:
        """Add a float weight in the type that products are made in."""
        if self.float == "bf16":
            self._bf16.add(name)
            return self.weight(name, bf16_bits(value))
        return self.weight(name, fp16(value, name) if self.half else value)

    def table(self, name: str, value: np.ndarray[Any, Any]) -> str:
        """Add rows to look up: with either half type float16, which rounds 8 times less than bfloat16."""
        return self.weight(name, fp16(value, name) if self.half else value)

    def constant(self, value: float | list[int], dtype: type[np.generic] = np.int64) -> str:
        """Add a small constant, once."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(f"constant_{len(self._constants)}", array)
        return self._constants[key]

    def op(self, kind: str, *inputs: str, **attributes: float | list[int]) -> str:
        """Add a node with one output; an empty name leaves an optional input out."""
        return self.op_n(kind, inputs, 1, attributes)[0]

    def op_n(self, kind: str, inputs: Sequence[str], n_outputs: int, attributes: Mapping[str, Any]) -> list[str]:
        """Add a node with several outputs."""
        self._count += 1
        names = [f"{kind.lower()}_{self._count}" + (f"_{i}" if i else "") for i in range(n_outputs)]
        domain = "com.microsoft" if kind in _MICROSOFT else ""
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def linear(
        self,
        value: str,
        name: str,
        weight: np.ndarray[Any, Any],
        bias: np.ndarray[Any, Any] | None = None,
        *,
        exact: bool = False,
    ) -> str:
        """X @ weight.T + bias, for torch's (out, in) layout; `exact` in float32 whatever the graph multiplies in."""
        if self.int8 and not exact:
            rounded, scales = quantized(weight)
            inputs = [value, self.weight(f"{name}.weight.int8", rounded.T), self.weight(f"{name}.scales", scales)]
            inputs += [] if bias is None else ["", self.weight(f"{name}.bias", bias)]
            return self.op("DynamicQuantizeMatMul", *inputs)
        add = self.weight if exact else self.half_weight
        product = self.op("MatMul", value, add(f"{name}.weight.T", weight.T))
        return product if bias is None else self.op("Add", product, add(f"{name}.bias", bias))

    def save(self, path: Path) -> None:
        """Write the model; weights beyond protobuf's limit go to `<path>.data`."""
        model = self.model()
        if sum(value.nbytes for value in self._weights.values()) > EXTERNAL_DATA_BYTES:
            self._onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
        else:
            self._onnx.save_model(model, str(path))

    def model(self) -> Any:  # noqa: ANN401  (onnx has no types)
        """The ONNX model."""
        helper = self._onnx.helper
        initializers = [self._initializer(name, value) for name, value in self._weights.items()]
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, initializers)
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="gplfast")

    def _initializer(self, name: str, value: np.ndarray[Any, Any]) -> Any:  # noqa: ANN401
        tensor = self._onnx.numpy_helper.from_array(value, name)
        if name in self._bf16:
            tensor.data_type = FLOATS["bf16"]
        return tensor

    def _value_info(self, name: str, dtype: type[np.generic] | int, shape: Sequence[int | str]) -> Any:  # noqa: ANN401
        of_numpy = self._onnx.helper.np_dtype_to_tensor_dtype
        element = dtype if isinstance(dtype, int) else of_numpy(np.dtype(dtype))
        return self._onnx.helper.make_tensor_value_info(name, element, list(shape))


def quantized(
    weight: np.ndarray[Any, Any],
) -> tuple[np.ndarray[Any, np.dtype[np.int8]], np.ndarray[Any, np.dtype[np.float32]]]:
    """Weights as integers from -127 to 127 with a scale per row: weight is about rounded * scales[:, None].

    Args:
        weight: (out, in) float32.

    Returns:
        (out, in) int8 and (out,) float32; a row of zeros has scale 1.
    """
    largest = np.abs(weight).max(axis=1)
    scales = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    return np.rint(weight / scales[:, None]).astype(np.int8), scales


def fp16(value: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Weights rounded to float16.

    Raises:
        ModelError: one is beyond float16's range.
    """
    largest = np.abs(value).max(initial=0)
    if largest > np.finfo(np.float16).max:
        raise ModelError(f"export: weight {name} has {largest:g} but float16 ends at 65504; use precision fp32 or bf16")
    return value.astype(np.float16)


def bf16_bits(value: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Finite weights rounded to bfloat16 (ties to even), as bits: NumPy has no such type."""
    bits = np.asarray(value, np.float32, order="C").view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def activate(graph: Graph, value: str, activation: str, bias: str | None = None) -> str:
    """Apply a network's activation by its transformers name, after adding `bias`, to a value of either float type.

    Raises:
        ModelError: an activation that is not known.
    """
    if activation == "gelu" and bias is not None:
        return graph.op("BiasGelu", value, bias)
    if activation in {"gelu_new", "gelu_pytorch_tanh", "gelu_fast"}:
        return graph.op("FastGelu", value, *([bias] if bias is not None else []))
    biased = value if bias is None else graph.op("Add", value, bias)
    if activation == "gelu":
        return graph.op("Gelu", biased)
    if activation == "relu":
        return graph.op("Relu", biased)
    if activation in {"silu", "swish"}:
        return graph.op("Mul", biased, graph.op("Sigmoid", biased))
    if activation == "tanh":
        return graph.op("Tanh", biased)
    if activation == "sigmoid":
        return graph.op("Sigmoid", biased)
    if activation == "identity":
        return biased
    message = f"export: activation is {activation!r} but only gelu, gelu_new, relu, silu, tanh and sigmoid are known"
    raise ModelError(message)


def relative_buckets(
    distance: np.ndarray[Any, Any], *, bidirectional: bool, n_buckets: int, max_distance: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """T5's bucket of each key-minus-query distance (Raffel et al. 2020; float32 as transformers computes it).

    Args:
        distance: int64, any shape.
        bidirectional: True for encoders; False for decoders, where keys after the query fall into bucket 0.
        n_buckets: buckets in all.
        max_distance: from here on every distance falls into the last bucket.
    """
    buckets = np.zeros_like(distance)
    if bidirectional:
        n_buckets //= 2
        buckets += (distance > 0) * n_buckets
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = n_buckets // 2
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    scaled = np.log(ratio) / np.float32(np.log(max_distance / exact)) * np.float32(n_buckets - exact)
    large = np.minimum(exact + scaled.astype(np.int64), n_buckets - 1)
    return buckets + np.where(distance < exact, distance, large)


def self_attention_bias(graph: Graph, sequence: str, table: np.ndarray[Any, Any], max_distance: int, name: str) -> str:
    """Relative position bias of a bidirectional encoder.

    Args:
        graph: where to add the nodes.
        sequence: name of the sequence length, an int64 scalar value.
        table: (n_buckets, n_heads) float32.
        max_distance: see `relative_buckets`; beyond it the bias is constant, so distances are clipped there.
        name: of the weight.

    Returns:
        Name of a (1, n_heads, sequence, sequence) value, of the type that products are made in.
    """
    distances = np.arange(-max_distance, max_distance + 1)
    buckets = relative_buckets(distances, bidirectional=True, n_buckets=len(table), max_distance=max_distance)
    by_distance = graph.half_weight(name, table[buckets].astype(np.float32))
    positions = graph.op("Range", graph.constant(0), sequence, graph.constant(1))
    keys = graph.op("Unsqueeze", positions, graph.constant([0]))
    queries = graph.op("Unsqueeze", positions, graph.constant([1]))
    shifted = graph.op("Add", graph.op("Sub", keys, queries), graph.constant(max_distance))
    clipped = graph.op("Clip", shifted, graph.constant(0), graph.constant(2 * max_distance))
    bias = graph.op("Gather", by_distance, clipped, axis=0)
    return graph.op("Unsqueeze", graph.op("Transpose", bias, perm=[2, 0, 1]), graph.constant([0]))
