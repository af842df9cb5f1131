"""Graphs whose outputs may stay on the device they run on, for a later run: ONNX Runtime's I/O binding.

What stays is an OrtValue. The host gets what it asks for; the decoding loop asks for the best tokens and their logits.
Caches are rearranged on the device too, by graphs of one Gather for each of their arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.models.export.graph import FLOATS, Graph
from gplfast.models.session import Session, import_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from gplfast.models.states import Array, Handles

_ELEMENTS = {"tensor(float)": "fp32", "tensor(float16)": "fp16", "tensor(bfloat16)": "bf16"}


class BoundSession(Session):
    """One loaded ONNX graph; see `Session`. Inputs are arrays, or what a run of another such session kept."""

    def __init__(
        self,
        path: Path | bytes,
        *,
        threads: int | None = None,
        provider: str = "cuda",
        streams: bool = False,
        growing: bool = False,
    ) -> None:
        """As `Session`'s; `provider` "cpu" is for tests: nothing is gained by it (research: -1 to +3 %)."""
        super().__init__(path, threads=threads, provider=provider, streams=streams, growing=growing)
        self._provider = self._device = provider  # ONNX Runtime's names of these devices are the same

    def run(
        self, feed: Mapping[str, Any], outputs: Sequence[str] | None = None, kept: Collection[str] = ()
    ) -> list[Any]:
        """Run the graph once.

        Args:
            feed: arrays, or OrtValues that a run kept.
            outputs: names; None: all.
            kept: those that stay on the device, as OrtValues; the others come as arrays.
        """
        binding = self._session.io_binding()
        for name, value in feed.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(name, value)
        names = self.outputs if outputs is None else outputs
        for name in names:
            binding.bind_output(name, self._device if name in kept else "cpu")
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        found = binding.get_outputs()
        return [value if name in kept else value.numpy() for name, value in zip(names, found, strict=True)]

    def states(self, n_arrays: int, n_heads: int, head_dim: int) -> BoundStates:
        """What this decoder keeps between steps, on the device."""
        return BoundStates(self._provider, self.element, n_arrays, (n_heads, head_dim))

    @property
    def element(self) -> str:
        """What its caches are of, of `FLOATS`."""
        kinds = {node.type for node in self._session.get_inputs() if node.name.startswith("past_")}
        return _ELEMENTS[kinds.pop()] if kinds else "fp32"


class BoundStates:
    """Keys and values on a device; see `gplfast.models.states.States`."""

    def __init__(self, provider: str, element: str, n_arrays: int, size: tuple[int, int]) -> None:
        """Of `n_arrays` arrays of a type of `FLOATS`, of (n_heads, head_dim) each."""
        self._provider, self._element, self._n_arrays, self._size = provider, element, n_arrays, size
        self._sessions: dict[str, BoundSession] = {}
        self.item_bytes = 4 if element == "fp32" else 2

    def given(self, array: Array) -> Any:  # noqa: ANN401
        """A copy on the device."""
        values = import_onnxruntime().OrtValue
        return values.ortvalue_from_numpy(np.ascontiguousarray(array), self._provider, 0)

    def empty(self, n_rows: int) -> Handles:
        """See `States`."""
        make = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type
        shape = [n_rows, self._size[0], 0, self._size[1]]
        return [make(shape, FLOATS[self._element], self._provider, 0) for _ in range(self._n_arrays)]

    def rows(self, cache: Handles, kept: Array) -> Handles:
        """See `States`."""
        return self.taken(cache, kept, axis=0)

    def cut(self, cache: Handles, n_positions: int) -> Handles:
        """See `States`."""
        return self.taken(cache, np.arange(n_positions, cache[0].shape()[2]), axis=2)

    def places(self, n_places: int, n_tokens: int) -> BoundPlaces:  # noqa: ARG002  (memory is taken as they fill)
        """See `States`."""
        return BoundPlaces(self, n_tokens)

    def taken(self, arrays: Handles, index: Array, *, axis: int) -> Handles:
        """numpy.take of each array."""
        graph = self._graph(f"take-{axis}")
        feed = {f"array_{i}": value for i, value in enumerate(arrays)}
        return graph.run(feed | {"index": index.astype(np.int64)}, kept=graph.outputs)

    def merged(self, arrays: Handles, new: Handles, tokens: Array, rows: Array) -> Handles:
        """`rows` of each array followed by `tokens` of each new one."""
        graph = self._graph("merge")
        feed = {f"array_{i}": value for i, value in enumerate(arrays)}
        feed |= {f"new_{i}": value for i, value in enumerate(new)}
        return graph.run(feed | {"tokens": tokens.astype(np.int64), "index": rows.astype(np.int64)}, kept=graph.outputs)

    def _graph(self, kind: str) -> BoundSession:
        if kind not in self._sessions:
            content = _moving_graph(kind, self._element, self._n_arrays, self._size).model().SerializeToString()
            self._sessions[kind] = BoundSession(content, provider=self._provider, growing=True)
        return self._sessions[kind]


class BoundPlaces:
    """Passages on a device; see `gplfast.models.states.Places`.

    Each change makes new arrays, which have as many rows as the last place in use: a copy on the device costs less than
    the encoder's run that comes with it.
    """

    def __init__(self, states: BoundStates, n_tokens: int, arrays: Handles | None = None, n_rows: int = 0) -> None:
        """Of arrays of `n_rows` rows; None: nothing is there yet."""
        self._states, self._n_tokens, self._arrays = states, n_tokens, arrays
        self._order = np.arange(n_rows)  # the row of each place

    def put(self, places: Array, values: Handles) -> None:
        """See `Places`."""
        n_before = len(self._order)
        n_rows = max(n_before, int(places.max()) + 1)
        rows = np.concatenate([self._order, np.zeros(n_rows - n_before, np.int64)])  # a free place may hold anything
        rows[places] = (n_before if self._arrays is not None else 0) + np.arange(len(places))
        tokens = np.arange(self._n_tokens)
        tokens[values[0].shape()[2] :] = 0  # masked: anything finite will do
        if self._arrays is None:
            self._arrays = self._states.taken(self._states.taken(values, tokens, axis=2), rows, axis=0)
        else:
            self._arrays = self._states.merged(self._arrays, values, tokens, rows)
        self._order = np.arange(n_rows)

    def move(self, new: Array, old: Array) -> None:
        """See `Places`."""
        self._order[new] = self._order[old]

    def narrowed(self, used: Array, n_tokens: int) -> BoundPlaces:  # noqa: ARG002  (all that are there)
        """See `Places`."""
        arrays = self.first(len(self._order))
        cut = None if self._arrays is None else self._states.taken(arrays, np.arange(n_tokens), axis=2)
        return BoundPlaces(self._states, n_tokens, cut, len(self._order))

    def first(self, n_places: int) -> Handles:
        """See `Places`."""
        if self._arrays is None:
            return []
        if n_places != len(self._order) or (self._order != np.arange(n_places)).any():
            self._arrays = self._states.taken(self._arrays, self._order[:n_places], axis=0)
            self._order = np.arange(n_places)
        return self._arrays


def _moving_graph(kind: str, element: str, n_arrays: int, size: tuple[int, int]) -> Graph:
    """Of "take-0" and "take-2": Gather over that axis; of "merge": see `BoundStates.merged`."""
    graph = Graph(kind, element)
    index = graph.input("index", np.int64, ("kept",))
    tokens = graph.input("tokens", np.int64, ("tokens",)) if kind == "merge" else ""
    for i in range(n_arrays):
        value = graph.input(f"array_{i}", graph.element, ("rows", size[0], "positions", size[1]))
        axis = 2 if kind == "take-2" else 0
        if kind == "merge":
            new = graph.input(f"new_{i}", graph.element, ("new", size[0], "new_positions", size[1]))
            value = graph.op("Concat", value, graph.op("Gather", new, tokens, axis=2), axis=0)
        taken = graph.op("Gather", value, index, axis=axis)
        graph.output(taken, f"taken_{i}", graph.element, ("r", size[0], "p", size[1]))
    return graph
