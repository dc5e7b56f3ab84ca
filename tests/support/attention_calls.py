"""Calls the CPU's FusedAttention and its definition with the same random arrays."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgellama.kernels import reference
from edgellama.kernels.cpu.library import ISAS, library

CACHES = ("float32", "float16", "int8")  # the order of enum class CacheType


SIZES = ("rows", "tokens", "heads", "groups", "head_dim", "capacity", "positions", "window")
READ = ("qkv", "cos", "sin", "start", "length")
NORMS = ("none", "each", "whole", "after_rope")  # the order of enum class HeadNorm
NORM_EPS = 1e-3
POINTERS = ("q_gamma", "k_gamma", *READ, "k_cache", "v_cache", "k_scale", "v_scale", "out", "scratch")


class Args(ctypes.Structure):
    """The struct AttentionArgs of kernels/cpu/attention/attention.h."""

    _fields_: ClassVar = [
        *((name, ctypes.c_int32) for name in SIZES),
        ("scale", ctypes.c_float),
        ("cache", ctypes.c_int32),
        ("softcap", ctypes.c_float),
        ("query_beta", ctypes.c_float),
        ("query_period", ctypes.c_int32),
        ("norm", ctypes.c_int32),
        ("norm_eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in POINTERS),
        ("threads", ctypes.c_int32),
    ]


@dataclass
class Case:
    """One call: sizes, options and the seed of the contents."""

    start: list[int]
    length: list[int]
    tokens: int = 1
    heads: int = 4
    groups: int = 2
    head_dim: int = 64
    capacity: int = 130
    window: int = 0
    cache: str = "float16"
    isa: str = "portable"
    threads: int = 2
    gain: float = 1.0  # of queries, keys and values
    softcap: float = 0.0
    query_beta: float = 0.0
    query_period: int = 0
    norm: str = "none"

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns inputs, outputs and caches. Positions that no token may read are NaN, if the type has NaN."""
        rng = np.random.default_rng(7)
        b, g, c, d = len(self.start), self.groups, self.capacity, self.head_dim
        angles = np.arange(c)[:, None] * 10000.0 ** (-np.arange(d // 2) / (d // 2))
        qkv = rng.standard_normal((b, self.tokens, (self.heads + 2 * g) * d), dtype=np.float32)
        x: dict[str, np.ndarray] = {
            "qkv": np.float32(self.gain) * qkv,
            "cos": np.cos(angles).astype(np.float32),
            "sin": np.sin(angles).astype(np.float32),
            "start": np.array(self.start, np.int32),
            "length": np.array(self.length, np.int32),
            "out": np.full((b, self.tokens, self.heads * d), np.nan, np.float32),
        }
        if self.norm != "none":
            for name, count in (("q_gamma", self.heads), ("k_gamma", g)):
                x[name] = rng.uniform(0.5, 1.5, d * (count if self.norm == "whole" else 1)).astype(np.float32)
        for name in ("k", "v"):
            past = np.float32(self.gain) * rng.standard_normal((b, g, c, d), dtype=np.float32)
            if self.cache == "int8":
                x[f"{name}_cache"], x[f"{name}_scale"] = reference.quantize_rows(past)
            else:
                x[f"{name}_cache"] = past.astype(self.cache)
            unread = x[f"{name}_scale"] if self.cache == "int8" else x[f"{name}_cache"]
            for row, first in enumerate(self.start):
                unread[row, :, first:] = np.nan
        return x


def pointer(array: np.ndarray | None) -> int | None:
    """Returns the address of the array's data, or None without an array."""
    return None if array is None else array.ctypes.data


def bind(case: Case, x: dict[str, np.ndarray], **changes: Any) -> tuple[Args, np.ndarray]:
    """Returns the C arguments that point to the arrays of x, and the scratch memory that they point to."""
    sizes = {name: getattr(case, name) for name in ("tokens", "heads", "groups", "head_dim", "capacity", "window")}
    pointers = {name: pointer(x.get(name)) for name in POINTERS}
    args = Args(**sizes, **pointers, rows=len(case.start), positions=case.capacity, threads=case.threads)
    args.scale, args.cache = case.head_dim**-0.5, CACHES.index(case.cache)
    args.softcap, args.norm, args.norm_eps = case.softcap, NORMS.index(case.norm), NORM_EPS
    args.query_beta, args.query_period = case.query_beta, case.query_period
    for name, value in changes.items():
        setattr(args, name, value)
    size = library().edgellama_attention_scratch_bytes
    size.restype = ctypes.c_size_t
    scratch = np.zeros(size(ctypes.byref(args)) + 64, np.uint8)
    args.scratch = -(-scratch.ctypes.data // 64) * 64
    return args, scratch


def call(args: Args, isa: str, repeats: int = 1) -> None:
    """Calls the kernel once. Raises ValueError with the kernel's message if it refuses the call."""
    message = ctypes.create_string_buffer(512)
    code = library().edgellama_attention(
        ctypes.byref(args), ISAS.index(isa), repeats, message, ctypes.c_size_t(len(message))
    )
    if code:
        raise ValueError(message.value.decode())


def run(case: Case) -> dict[str, np.ndarray]:
    """Returns the outputs and caches after a call of the kernel."""
    x = case.arrays()
    args, _scratch = bind(case, x)
    call(args, case.isa)
    return x


def expected(case: Case) -> dict[str, np.ndarray]:
    """Returns the outputs and caches after a call of the definition in kernels/reference.py."""
    x = case.arrays()
    scales = {name: x[name] for name in ("k_scale", "v_scale") if name in x}
    inputs = [x[name] for name in (*READ, "k_cache", "v_cache")]
    x["out"] = reference.fused_attention(
        *inputs,
        heads=case.heads,
        scale=case.head_dim**-0.5,
        window=case.window,
        softcap=case.softcap,
        query_beta=case.query_beta,
        query_period=case.query_period,
        q_gamma=x.get("q_gamma"),
        k_gamma=x.get("k_gamma"),
        norm_eps=NORM_EPS,
        norm_after_rope=case.norm == "after_rope",
        **scales,
    )
    return x


def check(case: Case) -> None:
    """Compares the caches bit for bit, and the outputs to float32's accuracy (less with AMX, which uses split bf16)."""
    want, got = expected(case), run(case)
    for name in ("k_cache", "v_cache", "k_scale", "v_scale"):
        if name == "k_cache" and case.norm != "none":  # the sums of the norms may be in another order
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5)
        elif name in want:
            assert want[name].tobytes() == got[name].tobytes(), name
    if case.softcap:  # tanh of a small score is a difference of two numbers near 1
        np.testing.assert_allclose(got["out"], want["out"], rtol=0, atol=1e-4)
        return
    split = case.isa == "amx" and case.cache != "float32" and max(case.length) > 1
    np.testing.assert_allclose(got["out"], want["out"], rtol=0, atol=5e-5 if split else 1e-5)
