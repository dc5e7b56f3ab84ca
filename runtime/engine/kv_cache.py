"""The KV cache in host memory: the graphs read it, and either they or the runtime write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..artifact.manifest import TensorSpec
from ..artifact.private_copy import private_memory
from ..backend.resources import available_memory

ALIGNMENT = 64  # bytes: a vector load of a kernel then touches one cache line
LARGE_SHARE = 4  # a cache of more than a quarter of the available memory takes memory only as it is filled


class KVCache:
    """Every cache array of an artifact, by the name of its graph input.

    Attributes:
        arrays: k_cache.{l} and v_cache.{l} [B, G, C, D]; with an int8 cache also k_scale.{l} and v_scale.{l} [B, G, C].
        worth_copying: from this many tokens on, copying them to another row is cheaper than computing them.
    """

    worth_copying = 1

    def __init__(self, expected: int = 0) -> None:
        """Make an empty cache.

        Args:
            expected: bytes of all arrays, which are allocated at once.
        """
        self._expected = expected
        self.arrays: dict[str, np.ndarray] = {}
        self._free = np.empty(0, np.uint8)  # of the memory that the arrays share

    def bind(self, wanted: TensorSpec) -> np.ndarray:
        """Return the array of this graph input, allocated at the first call.

        It has the graph's type. That is int16 for float16 values, as MindSpore Lite would convert a float16 input to
        float32.
        """
        if wanted.name not in self.arrays:
            self.arrays[wanted.name] = self._zeros(wanted.nbytes).view(wanted.dtype).reshape(wanted.shape)
        return self.arrays[wanted.name]

    def _zeros(self, size: int) -> np.ndarray:
        """Return zeros, uint8 [size], that begin at a multiple of ALIGNMENT.

        All arrays are cut from one block on huge pages: with them a decode step at 2,000 tokens takes 0.8 to 0.9 of the
        time. A huge page takes its memory as soon as one of its bytes is written.
        """
        whole = -(-size // ALIGNMENT) * ALIGNMENT
        if self._free.size < whole:
            needed = whole if self.arrays else max(whole, self._expected)
            limit = available_memory()
            huge = limit is None or LARGE_SHARE * needed <= limit.available
            self._free = private_memory(needed, huge=huge)
        found, self._free = self._free[:size], self._free[whole:]
        return found

    @property
    def nbytes(self) -> int:
        """Size of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def write(self, rows: Sequence[np.ndarray], start: np.ndarray, length: np.ndarray) -> None:
        """Write the keys and values that a graph returned (cache policy "returned").

        Args:
            rows: k_new.0, v_new.0, k_new.1, ..., each [B, G, S, D].
            start: position of the first token of each row, [B].
            length: valid tokens of each row, [B].
        """
        for row in np.flatnonzero(length):
            first, count = int(start[row]), int(length[row])
            for index, new in enumerate(rows):
                layer, which = divmod(index, 2)
                cache = self.arrays[f"{'kv'[which]}_cache.{layer}"]
                cache[row, :, first : first + count] = new[row, :, :count]

    def reorder(self, source: np.ndarray, tokens: int) -> None:
        """Replace the first `tokens` positions of each row b by those of row source[b]; source: int [B]."""
        moved = np.flatnonzero(source != np.arange(len(source)))
        if moved.size:
            for array in self.arrays.values():
                array[moved, :, :tokens] = array[source[moved], :, :tokens]

    def held(self, row: int, tokens: int) -> dict[str, np.ndarray]:
        """Return views of the first `tokens` positions of `row`, by array name."""
        return {name: array[row, :, :tokens] for name, array in self.arrays.items()}

    def fill(self, row: int, tokens: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the first `tokens` positions of `row`, with arrays as `held` returns them."""
        for name, mine in self.arrays.items():
            mine[row, :, :tokens] = arrays[name]

    def write_blocks(self, row: int, start: int, blocks: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Write blocks of tokens one after the other into `row` from position `start` on, each as `held` returns it."""
        for name, mine in self.arrays.items():
            first = start
            for block in blocks:
                count = block[name].shape[1]
                mine[row, :, first : first + count] = block[name]
                first += count
