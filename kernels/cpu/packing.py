"""The library's packer: writes the same bytes as kernels/weight_format.py, on several threads.

Its functions raise LibraryError when the library is not built.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from ..weight_format import FORMATS, W4_GROUPS, packed_bytes, scale_count
from .library import library


def pack(w: NDArray[np.float32], fmt: str, threads: int) -> NDArray[np.uint8]:
    """Pack floats [N, K] in the format "f32", "bf16", "int8" or "int4". Returns weight_format.packed_bytes bytes."""
    w = np.ascontiguousarray(w, np.float32)
    return _pack(fmt, w.shape, threads, w=w)


def pack_quantized(
    fmt: str,
    scales: NDArray[np.uint16],
    q: NDArray[np.uint8],
    threads: int,
    zeros: NDArray[np.int8] | None = None,
) -> NDArray[np.uint8]:
    """Pack a matrix that is already quantized, from the arrays of weight_format.pack_groups, with any N.

    Raises:
        ValueError: the shapes do not fit each other or the format, or K is not a multiple of 32.
    """
    scales, q = np.ascontiguousarray(scales, np.uint16), np.ascontiguousarray(q, np.uint8)
    if scales.shape != (q.shape[0], scale_count(fmt, q.shape[1])) or q.shape[1] % 32:
        raise ValueError(f"scales {scales.shape} do not fit q {q.shape}")
    if (fmt in W4_GROUPS) != (zeros is not None) or (zeros is not None and zeros.shape != scales.shape):
        raise ValueError(f"zero points {None if zeros is None else zeros.shape} do not fit {fmt} scales {scales.shape}")
    if zeros is None:
        return _pack(fmt, q.shape, threads, scales=scales, q=q)
    return _pack(fmt, q.shape, threads, scales=scales, zeros=np.ascontiguousarray(zeros, np.int8), q=q)


def _pack(fmt: str, shape: tuple[int, ...], threads: int, **arrays: NDArray[np.generic]) -> NDArray[np.uint8]:
    lib, (n, k) = library(), shape
    out = np.empty(packed_bytes(fmt, n, k), np.uint8)
    pointers = [_pointer(arrays.get(name)) for name in ("w", "scales", "zeros", "q")]
    code = lib.edgellama_pack(
        lib.edgellama_best_isa(), threads, FORMATS.index(fmt), ctypes.c_long(n), ctypes.c_long(k), *pointers,
        _pointer(out),
    )  # fmt: skip
    if code:
        raise ValueError(f"the packer refuses {fmt} [{n}, {k}] (code {code})")
    return out


def _pointer(array: NDArray[np.generic] | None) -> ctypes.c_void_p | None:
    return None if array is None else ctypes.c_void_p(array.ctypes.data)
