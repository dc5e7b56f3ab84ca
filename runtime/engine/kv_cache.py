"""The KV cache: arrays that the graphs read, and write in place or have written by the runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..artifact.manifest import CacheSpec, TensorSpec

ALIGNMENT = 64  # bytes: a vector load of a kernel then touches one cache line


def aligned_zeros(shape: Sequence[int], dtype: str) -> np.ndarray:
    """Zeros that begin at a multiple of ALIGNMENT. A page costs memory once it is written, not before (calloc)."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    return raw[first : first + size].view(dtype).reshape(shape)


class KVCache:
    """Every cache array of an artifact, by the name of the graph input it is bound to.

    k_cache.{l} and v_cache.{l} are [B, G, C, D]; k_scale.{l} and v_scale.{l} [B, G, C] beside an int8 cache.
    worth_copying: from how many tokens on copying them from one row to another costs less than computing them.
    """

    worth_copying = 1

    def __init__(self, spec: CacheSpec) -> None:
        self.spec = spec
        self.arrays: dict[str, np.ndarray] = {}

    def bind(self, wanted: TensorSpec) -> np.ndarray:
        """The array for this graph input, made when first asked for. Its type is the graph's: MindSpore Lite would
        turn a float16 input into float32, so such a cache passes for int16."""
        if wanted.name not in self.arrays:
            self.arrays[wanted.name] = aligned_zeros(wanted.shape, wanted.dtype)
        return self.arrays[wanted.name]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def write(self, rows: Sequence[np.ndarray], start: np.ndarray, length: np.ndarray) -> None:
        """Put what a graph returned in its place (policy "returned").

        rows: k_new.0, v_new.0, k_new.1, ... each [B, G, S, D]; row b's first length[b] tokens go to start[b] on.
        """
        for row in np.flatnonzero(length):
            first, count = int(start[row]), int(length[row])
            for index, new in enumerate(rows):
                layer, which = divmod(index, 2)
                cache = self.arrays[f"{'kv'[which]}_cache.{layer}"]
                cache[row, :, first : first + count] = new[row, :, :count]

    def reorder(self, source: np.ndarray, tokens: int) -> None:
        """Row b becomes what row source[b] was, in its first `tokens` positions. source: [B] row numbers."""
        moved = np.flatnonzero(source != np.arange(len(source)))
        if moved.size:
            for array in self.arrays.values():
                array[moved, :, :tokens] = array[source[moved], :, :tokens]

    def held(self, row: int, tokens: int) -> dict[str, np.ndarray]:
        """Views of the first `tokens` positions of `row`, by the arrays' names."""
        return {name: array[row, :, :tokens] for name, array in self.arrays.items()}

    def fill(self, row: int, tokens: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Give `row` the first `tokens` positions that `held` gave."""
        for name, mine in self.arrays.items():
            mine[row, :, :tokens] = arrays[name]
