"""The library's packer: writes the same bytes as kernels/weight_format.py, on several threads.

Its functions raise LibraryError when the library is not built.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from ..weight_format import FORMATS, packed_bytes
from .library import library


def pack(w: NDArray[np.float32], fmt: str, threads: int) -> NDArray[np.uint8]:
    """Pack floats [N, K] in the format "f32", "bf16", "int8" or "int4". Returns weight_format.packed_bytes bytes."""
    w = np.ascontiguousarray(w, np.float32)
    return _pack(fmt, w.shape, threads, w=w)


def pack_quantized(fmt: str, scales: NDArray[np.uint16], q: NDArray[np.uint8], threads: int) -> NDArray[np.uint8]:
    """Pack a matrix that is already quantized: scale cells [N, K/32] and q [N, K] as in weight_format.pack_groups.

    Raises:
        ValueError: the shapes do not fit each other, or K is not a multiple of 32.
    """
    scales, q = np.ascontiguousarray(scales, np.uint16), np.ascontiguousarray(q, np.uint8)
    if scales.shape != (q.shape[0], q.shape[1] // 32) or q.shape[1] % 32:
        raise ValueError(f"scales {scales.shape} do not fit q {q.shape}")
    return _pack(fmt, q.shape, threads, scales=scales, q=q)


def _pack(fmt: str, shape: tuple[int, ...], threads: int, **arrays: NDArray[np.generic]) -> NDArray[np.uint8]:
    lib, (n, k) = library(), shape
    out = np.empty(packed_bytes(fmt, n, k), np.uint8)
    pointers = [_pointer(arrays.get(name)) for name in ("w", "scales", "q")]
    code = lib.edgellama_pack(
        lib.edgellama_best_isa(), threads, FORMATS.index(fmt), ctypes.c_long(n), ctypes.c_long(k), *pointers,
        _pointer(out),
    )  # fmt: skip
    if code:
        raise ValueError(f"the packer refuses {fmt} [{n}, {k}] (code {code})")
    return out


def _pointer(array: NDArray[np.generic] | None) -> ctypes.c_void_p | None:
    return None if array is None else ctypes.c_void_p(array.ctypes.data)
