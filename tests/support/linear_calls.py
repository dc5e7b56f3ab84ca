"""Calls the CPU's Linear and its definition with the same random arrays."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellama.kernels import reference
from edgellama.kernels import weight_format as wf
from edgellama.kernels.activations import FINE_TOKENS
from edgellama.kernels.cpu.library import ISAS, library

EPILOGUES = {"none": 0, "residual_add": 1, "swiglu": 2, "geglu": 3}
GATED = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}  # the activation of each
TILE_ROWS = 12  # AMX multiplies from this number of rows on


def c_pointer(array: NDArray[Any] | None) -> ctypes.c_void_p | None:
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def guarded(array: NDArray[Any]) -> NDArray[Any]:
    """Copies the array between two ranges of 0xff bytes, to an address that is a multiple of 64, as for weights."""
    size = array.nbytes
    raw = np.full(size + 192, 0xFF, np.uint8)
    first = 64 + -(raw.ctypes.data + 64) % 64
    raw[first : first + size] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return raw[first : first + size].view(array.dtype).reshape(array.shape)


def packed_matrix(rng: np.random.Generator, n: int, k: int, fmt: str) -> NDArray[np.uint8]:
    w = rng.standard_normal((n, k), dtype=np.float32) / np.float32(k**0.5)
    if fmt != "q4_0":
        return wf.pack(w, fmt)
    n, k = -(-n // wf.PANEL) * wf.PANEL, -(-k // wf.GROUP) * wf.GROUP
    scales = (rng.standard_normal((n, k // wf.GROUP)) / k**0.5 / 4).astype(np.float16).view(np.uint16)
    return wf.pack_groups(fmt, scales, rng.integers(0, 16, (n, k), dtype=np.uint8))


def awkward_weights() -> NDArray[np.float32]:
    """Returns Gaussian rows, and groups that are zero, of one sign, constant, tiny, huge, far from zero or with one
    outlier."""
    w = np.random.default_rng(5).standard_normal((37, 100)).astype(np.float32) / 20
    w[0], w[1], w[2, :32], w[3] = 0, np.abs(w[1]), 0.25, -np.abs(w[3])
    w[4] *= 1e-7
    w[5] *= 1e5
    w[6, 3] = 30
    w[7], w[8] = -0.4 - np.abs(w[7]), 0.4 + np.abs(w[8])
    return w


class Linear:
    """One call with random contents for these sizes and options, for the kernel and for the definition."""

    def __init__(
        self,
        fmt: str,
        length: list[int],
        tokens: int,
        inner: int,
        outer: int,
        *,
        epilogue: str = "none",
        norm: bool = True,
        bias: bool = False,
        last_only: bool = False,
    ):
        rng = np.random.default_rng(inner * 1000 + outer)
        self.fmt, self.epilogue, self.last_only, self.outer = fmt, epilogue, last_only, outer
        columns = wf.panel_count(outer) * wf.PANEL * (2 if epilogue in GATED else 1)
        self.length = np.array(length, np.int32)
        self.x = rng.standard_normal((len(length), tokens, inner), dtype=np.float32)
        self.x[:, :, 0] *= 50  # an outlier, like those of trained models
        self.packed = guarded(packed_matrix(rng, columns, inner, fmt))
        self.gamma = rng.uniform(0.5, 1.5, inner).astype(np.float32) if norm else None
        self.bias = guarded(rng.standard_normal(columns, dtype=np.float32)) if bias else None
        shape = (len(length), tokens, outer)
        self.residual = rng.standard_normal(shape, dtype=np.float32) if epilogue == "residual_add" else None
        self.columns = columns

    def run(self, isa: str, threads: int = 2) -> NDArray[np.float32]:
        rows, tokens, inner = self.x.shape
        y = np.full((rows, self.outer) if self.last_only else (rows, tokens, self.outer), np.nan, np.float32)
        code = library().edgellama_linear(
            ISAS.index(isa), threads, wf.FORMATS.index(self.fmt), EPILOGUES[self.epilogue], rows, tokens, inner,
            self.outer, int(self.last_only), ctypes.c_float(1e-5), c_pointer(self.x), c_pointer(self.packed),
            c_pointer(self.gamma), c_pointer(self.bias), c_pointer(self.residual), c_pointer(self.length), c_pointer(y),
        )  # fmt: skip
        assert code == 0
        return y

    def coarse(self, isa: str) -> bool:
        """Whether activations of rows with many tokens have 8 bits."""
        return self.fmt not in ("f32", "bf16") and not self.last_only and isa != "amx"

    def expected(self, isa: str) -> NDArray[np.float32]:
        weight = wf.unpack(self.packed, self.fmt, self.columns, self.x.shape[2])
        swiglu, act = self.epilogue in GATED, GATED.get(self.epilogue, "silu")
        y = reference.linear(
            self.x, weight, self.length, gamma=self.gamma, eps=1e-5, bias=self.bias, swiglu=swiglu, act=act,
            last_only=self.last_only, coarse=self.coarse(isa),
        )[..., : self.outer]  # fmt: skip
        return y if self.residual is None else y + self.residual

    def tolerance(self, isa: str) -> float:
        computed = int(np.count_nonzero(self.length) if self.last_only else self.length.sum())
        if isa == "amx" and self.fmt != "f32" and computed >= TILE_ROWS:
            return 2e-2
        if self.coarse(isa) and self.gamma is not None and self.length.max() > FINE_TOKENS:
            return 1e-2
        return 1e-5 if self.fmt in ("f32", "bf16") else 2e-4

    def check(self, isa: str, threads: int = 2) -> None:
        want, got = self.expected(isa), self.run(isa, threads)
        plain = want if self.residual is None else want - self.residual
        scale = np.nan_to_num(np.abs(plain)).max(axis=-1, keepdims=True) + 1e-30
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))  # padding rows are not written
        error = np.nan_to_num(np.abs(got - want) / scale)
        assert error.max() <= self.tolerance(isa), error.max()
