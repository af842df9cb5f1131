"""Graphs run by OpenVINO, on any x86-64 processor: float32, or bfloat16 where the processor multiplies in it.

The package is used directly. ONNX Runtime's plugin provider of it offers no device on processors of other makers than
Intel, and what it runs is the same.
"""

from __future__ import annotations

import functools
import queue
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import MissingExtraError, ModelError
from gplfast.models.session import default_threads, first_line
from gplfast.models.states import HostStates, States

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

_HINTS = {"fp32": "f32", "bf16": "bf16"}


@functools.cache
def _core() -> Any:  # noqa: ANN401  (openvino's types are not needed to check ours)
    try:
        import openvino
    except ImportError as error:
        message = "models: openvino is not installed; run: pip install 'gplfast[openvino]'"
        raise MissingExtraError(message) from error
    # Its bindings (2026.4) look NumPy up at the first array, and hang for good when two threads bring theirs at once:
    # one holds what the other waits for. Of 25 processes with two threads 6 hung, of 25 that made this first none.
    openvino.Tensor(np.zeros(1, np.float32))
    return openvino.Core()


@functools.cache
def precisions() -> tuple[str, ...]:
    """What this processor computes in: "fp32", and "bf16" where that is native."""
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("fp32", "bf16") if "BF16" in capabilities else ("fp32",)


class OpenVinoSession:
    """One loaded ONNX graph of float32 weights: named arrays in, arrays out in the order of the graph's outputs.

    Attributes:
        inputs: names.
        outputs: names.
        streams: how many threads should call `run` at a time, each with a batch of its own; more of them wait.
        batch_tokens: 0, see `Session`.
        batch_rows: 0, see `Session`.
    """

    def __init__(
        self, path: Path, *, threads: int | None = None, precision: str = "fp32", streams: bool = False
    ) -> None:
        """Load and compile the graph at `path`.

        Args:
            path: an .onnx file.
            threads: None takes every CPU this process may use.
            precision: "fp32" or "bf16".
            streams: run one batch on each thread, instead of one batch on all of them.

        Raises:
            MissingExtraError: openvino is not installed.
            ModelError: the file is damaged, not an ONNX graph, or has a node that OpenVINO does not know.
        """
        n_threads = threads if threads is not None else default_threads()
        self.streams, self.batch_tokens, self.batch_rows = n_threads if streams else 1, 0, 0
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": n_threads,
            **({"NUM_STREAMS": n_threads} if streams else {"PERFORMANCE_HINT": "LATENCY"}),
        }
        try:
            self._model = _core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            message = f"session: {path} cannot be loaded by openvino: {first_line(error)}; use provider cpu"
            raise ModelError(message) from error
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.streams):
            self._requests.put(self._model.create_infer_request())
        self.inputs: tuple[str, ...] = tuple(port.get_any_name() for port in self._model.inputs)
        self.outputs: tuple[str, ...] = tuple(port.get_any_name() for port in self._model.outputs)

    def output_dim(self, name: str) -> int:
        """Last dimension of an output, where the graph fixes it."""
        return int(self._model.output(name).get_partial_shape()[-1].get_length())

    def run(
        self,
        feed: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        kept: Collection[str] = (),  # noqa: ARG002
    ) -> list[Any]:
        """Run the graph once; results, those to be `kept` too, are copies, which the next run does not change."""
        request = self._requests.get()
        try:
            found = request.infer(dict(feed), share_inputs=True)
            return [found[name].copy() for name in (self.outputs if outputs is None else outputs)]
        finally:
            self._requests.put(request)

    def states(self, n_arrays: int, n_heads: int, head_dim: int) -> States:
        """What a decoder keeps between steps; see `Session`."""
        return HostStates(n_arrays, n_heads, head_dim)
