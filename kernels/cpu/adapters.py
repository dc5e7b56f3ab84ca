"""The library's tables of low-rank adapters (cpu/layer/adapters.h): one for each model."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..weight_format import PANEL, panel_count
from .library import library

PARTS = ("qkv", "o", "gate_up", "down")  # the weights of a layer, in the order of DecoderLayerArgs


class Matrices(NamedTuple):
    """The low-rank addition of an adapter to one weight: y += B A x.

    Attributes:
        layer: the number of the layer.
        part: of PARTS.
        a: float32 [rank, inputs].
        b: float32 [outputs, rank], in the order of the weight's packed columns, with the adapter's scale.
    """

    layer: int
    part: str
    a: NDArray[np.float32]
    b: NDArray[np.float32]


class AdapterTable:
    """The adapters of one model. Do not call its methods while the model runs."""

    def __init__(self, key_caches: Sequence[NDArray[np.generic]]) -> None:
        """Make an empty table.

        Args:
            key_caches: of each layer, [B, G, C, D], as the graphs are bound to them: a kernel finds the table by their
                addresses. The table keeps them alive.

        Raises:
            LibraryError: the library is not built.
            ValueError: one of them has a table already.
        """
        lib = library()
        lib.edgellama_adapters_new.restype = ctypes.c_void_p
        self.rows = len(key_caches[0])
        self._keep = list(key_caches)
        addresses = (ctypes.c_void_p * len(key_caches))(*(cache.ctypes.data for cache in key_caches))
        self._table = ctypes.c_void_p(lib.edgellama_adapters_new(self.rows, len(key_caches), addresses))
        if not self._table:
            raise ValueError("a key cache has a table of adapters already, or there is no memory for one")
        # The arguments keep the caches: no other model gets their addresses before the table is gone.
        finalizer = weakref.finalize(self, _free, self._table, self._keep)
        finalizer.atexit = False  # a thread may run the model while the process ends
        self._chosen = np.zeros(self.rows, np.int32)

    def add(self, number: int, matrices: Matrices) -> None:
        """Store matrices of adapter `number`, which is above 0.

        Raises:
            ValueError: a size does not fit, or the adapter has matrices for this weight already.
            MemoryError: there is no memory for them.
        """
        a = np.ascontiguousarray(matrices.a, np.float32)
        b = np.ascontiguousarray(matrices.b, np.float32)
        (rank, inputs), panels = a.shape, panel_count(len(b))
        if b.shape[1] != rank:
            raise ValueError(f"A has {rank} rows, and B has {b.shape[1]} columns")
        if len(b) % PANEL:
            b = np.concatenate([b, np.zeros((-len(b) % PANEL, rank), np.float32)])
        code = library().edgellama_adapters_add(
            self._table, number, matrices.layer, PARTS.index(matrices.part), rank, inputs, panels, _pointer(a),
            _pointer(b),
        )  # fmt: skip
        if code == -3:
            raise MemoryError
        if code:
            raise ValueError(f"adapter {number} does not fit {matrices.part} of layer {matrices.layer} (code {code})")

    def remove(self, number: int) -> None:
        """Forget an adapter. No row has one afterwards."""
        library().edgellama_adapters_remove(self._table, number)
        self._chosen[:] = 0

    def choose(self, numbers: NDArray[np.int32]) -> None:
        """Set the adapter of each row for the next runs, int32 [rows]; 0: none.

        Raises ValueError for one that is not loaded.
        """
        if np.array_equal(numbers, self._chosen):
            return
        wanted = np.ascontiguousarray(numbers, np.int32)
        if len(wanted) != self.rows or library().edgellama_adapters_select(self._table, _pointer(wanted)):
            raise ValueError(f"adapters {wanted.tolist()}: {self.rows} rows, and one of them is not loaded")
        self._chosen = wanted.copy()


def _free(table: ctypes.c_void_p, caches: list[NDArray[np.generic]]) -> None:
    library().edgellama_adapters_free(table)


def _pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
