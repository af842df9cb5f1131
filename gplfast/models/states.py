"""Keys and values that the decoding loop keeps between steps: arrays of the host here, a device's in `bound_session`.

The loop hands them from one run to the next and never looks inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]
Handles = list[Any]  # one for each layer's keys and values, (rows, n_heads, positions, head_dim) each


class Places(Protocol):
    """Cross-attention keys and values of passages, each passage's at an index of its own."""

    def put(self, places: Array, values: Handles) -> None:
        """Set what is at some places, with no more tokens than there is room for; more tokens hold anything."""

    def move(self, new: Array, old: Array) -> None:
        """Set what is at the places `new` to what is at `old`; none is in both."""

    def narrowed(self, used: Array, n_tokens: int) -> Places:
        """With room for fewer tokens; only what is at the places `used` need be kept."""

    def first(self, n_places: int) -> Handles:
        """What is at the first places, for a run."""


class States(Protocol):
    """Makes and changes what a decoder's runs take and give.

    Attributes:
        item_bytes: of one number.
    """

    item_bytes: int

    def given(self, array: Array) -> Any:  # noqa: ANN401
        """An input of many runs, where the graph runs."""

    def empty(self, n_rows: int) -> Handles:
        """The cache of rows before their first step."""

    def rows(self, cache: Handles, kept: Array) -> Handles:
        """A cache with these rows only, in this order."""

    def cut(self, cache: Handles, n_positions: int) -> Handles:
        """A cache without its first positions."""

    def places(self, n_places: int, n_tokens: int) -> Places:
        """Room for passages."""


class HostStates:
    """NumPy arrays."""

    def __init__(self, n_arrays: int, n_heads: int, head_dim: int, dtype: type[np.generic] = np.float32) -> None:
        """Of `n_arrays` arrays, two for each layer."""
        self._n_arrays, self._n_heads, self._head_dim, self._dtype = n_arrays, n_heads, head_dim, dtype
        self.item_bytes = np.dtype(dtype).itemsize

    def given(self, array: Array) -> Array:
        """The array itself."""
        return array

    def empty(self, n_rows: int) -> Handles:
        """See `States`."""
        return self._zeros(n_rows, 0)

    def rows(self, cache: Handles, kept: Array) -> Handles:
        """See `States`."""
        return [values[kept] for values in cache]

    def cut(self, cache: Handles, n_positions: int) -> Handles:
        """See `States`."""
        return [np.ascontiguousarray(values[:, :, n_positions:]) for values in cache]

    def places(self, n_places: int, n_tokens: int) -> HostPlaces:
        """See `States`."""
        return HostPlaces(self._zeros(n_places, n_tokens))

    def _zeros(self, n_rows: int, n_positions: int) -> Handles:
        shape = (n_rows, self._n_heads, n_positions, self._head_dim)
        return [np.zeros(shape, self._dtype) for _ in range(self._n_arrays)]


class HostPlaces:
    """Arrays that are written in place; what a run gets is a view."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        """Of arrays (n_places, n_heads, n_tokens, head_dim)."""
        self._arrays = arrays

    def put(self, places: Array, values: Handles) -> None:
        """See `Places`."""
        for array, new in zip(self._arrays, values, strict=True):
            array[places, :, : new.shape[2]] = new

    def move(self, new: Array, old: Array) -> None:
        """See `Places`."""
        for array in self._arrays:
            array[new] = array[old]

    def narrowed(self, used: Array, n_tokens: int) -> HostPlaces:
        """See `Places`."""
        copies = []
        for array in self._arrays:
            n_places, n_heads, _, head_dim = array.shape
            copies.append(np.zeros((n_places, n_heads, n_tokens, head_dim), array.dtype))
            copies[-1][used] = array[used, :, :n_tokens]
        return HostPlaces(copies)

    def first(self, n_places: int) -> Handles:
        """See `Places`."""
        return [array[:n_places] for array in self._arrays]
