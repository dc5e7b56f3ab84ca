"""Runs the kernels of the package, compiled unchanged with g++, on a stand-in for a chip.

`fused_attention`, `split_attention`, `join_attention`, `lm_head` and `quant_linear` compute what the functions of the
same names in kernels.reference compute. They raise StandInError if a kernel does what would go wrong on the chip
(standin/standin/report.h lists the kinds of error). They do not measure speed.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from ..reference import Array
from .chips import CHIPS
from .standin_library import HERE, Argument, StandInError, launch, load

Counted = list[dict[str, int]]  # the counts of each core, by the names in standin_library.COUNTS


class Timed(Counted):
    """Counts and times of a kernel: pass it as `counted`.

    Attributes:
        costs: as for `launch`
        cycles: receives Launched.cycles
    """

    def __init__(self, costs: Array) -> None:
        super().__init__()
        self.costs = costs
        self.cycles = np.zeros((0, 0, 2))


class TilingError(ValueError):
    """The tiling function refused the shapes or attributes."""


class _Summary(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64) for name in ("key", "blocks", "workers", "workspace_bytes", "ub_bytes", "tiling_bytes")
    ] + [("details", ctypes.c_int64 * 8)]


@dataclass(frozen=True)
class TilingPlan:
    """What the tiling function of an operator decides.

    Attributes:
        key: the tiling key, which selects the kernel
        blocks, workers: as for `launch`
        workspace_bytes: global memory that the operator reserves besides its arguments; the kernel gets it without the
            first Chip.skipped_workspace bytes
        ub_bytes: unified buffer that the kernel takes on each core
        details: for attention at one token the keys of a tile; for others see standin/tiling.cpp
        tiling: the structure that the kernel reads, uint8
    """

    key: int
    blocks: int
    workers: int
    workspace_bytes: int
    ub_bytes: int
    details: tuple[int, ...]
    tiling: Array


def limits(chip: str) -> list[int]:
    """Return the chip's limits: UB, L1, L0A, L0B, L0C in bytes, cube cores, vector cores, __NPU_ARCH__."""
    values = (ctypes.c_int64 * 8)()
    load(chip).standin_chip(values)
    return list(values)


def plan(
    chip: str, operator: str, shape: list[int], scale: float = 0.0, chip_limits: list[int] | None = None
) -> TilingPlan:
    """Run the tiling function of an operator.

    operator and shape:
    - "fused_attention": rows, tokens, width of qkv, heads, key/value heads, head size, capacity, rotary positions,
      window.
    - "split_attention": the same, and the parts.
    - "join_attention": rows, tokens and width of out; key/value heads, parts and record size of partial.
    - "lm_head": rows, hidden size, vocabulary.
    - "quant_linear": rows, inputs, panels, bytes of a panel, bits, group, wide.

    scale: of the scores. chip_limits: as `limits` returns them; None is those of the chip. Raises TilingError with the
    message of the operator.
    """
    summary, message = _Summary(), ctypes.create_string_buffer(512)
    tiling = np.zeros(2048, np.uint8)
    failed = getattr(load(chip), f"plan_{operator}")(
        (ctypes.c_int64 * len(shape))(*shape),
        ctypes.c_float(scale),
        (ctypes.c_int64 * 8)(*(chip_limits or limits(chip))),
        tiling.ctypes.data_as(ctypes.c_void_p),
        ctypes.byref(summary),
        message,
        ctypes.c_size_t(len(message)),
    )
    if failed:
        raise TilingError(message.value.decode())
    return TilingPlan(
        summary.key,
        summary.blocks,
        summary.workers,
        summary.workspace_bytes,
        summary.ub_bytes,
        tuple(summary.details),
        tiling[: summary.tiling_bytes],
    )


def fused_attention(
    qkv: Array,
    cos: Array,
    sin: Array,
    start: Array,
    length: Array,
    k_cache: Array,
    v_cache: Array,
    *,
    heads: int,
    scale: float,
    window: int = 0,
    chip: str = "ascend310p",
    chip_limits: list[int] | None = None,
    constant: bool = False,
    counted: Counted | None = None,
) -> Array:
    """Run kernels.reference.fused_attention on the stand-in of `chip`: float16 data and result, caches written.

    constant: compile the kernel for this call, with its tiling as a constant. counted: receives what each core did.
    """
    tensors = {"qkv": qkv, "cos": cos, "sin": sin, "start": start, "length": length}
    tensors |= {"k_cache": k_cache, "v_cache": v_cache}
    out, _ = _attention("fused_attention", tensors, (heads, scale, window, 1), chip, chip_limits, constant, counted)
    return out


def split_attention(
    qkv: Array,
    cos: Array,
    sin: Array,
    start: Array,
    length: Array,
    k_cache: Array,
    v_cache: Array,
    *,
    heads: int,
    scale: float,
    window: int = 0,
    parts: int,
    chip: str = "ascend310p",
    chip_limits: list[int] | None = None,
    constant: bool = False,
    counted: Counted | None = None,
) -> tuple[Array, Array]:
    """Run kernels.reference.split_attention on the stand-in of `chip`. What the kernel does not write is NaN."""
    tensors = {"qkv": qkv, "cos": cos, "sin": sin, "start": start, "length": length}
    tensors |= {"k_cache": k_cache, "v_cache": v_cache}
    return _attention("split_attention", tensors, (heads, scale, window, parts), chip, chip_limits, constant, counted)


def _attention(
    operator: str,
    tensors: dict[str, Array],
    attributes: tuple[int, float, int, int],
    chip: str,
    chip_limits: list[int] | None,
    constant: bool,
    counted: Counted | None,
) -> tuple[Array, Array]:
    heads, scale, window, parts = attributes
    integers = ("start", "length")
    for name, tensor in tensors.items():
        dtype = np.int32 if name in integers else np.float32 if name in ("cos", "sin") else np.float16
        _check((name, tensor, dtype))
    rows, tokens, width = tensors["qkv"].shape
    _, groups, capacity, head_dim = tensors["k_cache"].shape
    shape = [rows, tokens, width, heads, groups, head_dim, capacity, len(tensors["cos"]), window]
    split = [parts] if operator == "split_attention" else []
    decided = plan(chip, operator, shape + split, scale, chip_limits)
    out = np.full((rows, tokens, heads * head_dim), np.nan, np.float16)
    partial = np.full((rows, groups, parts, heads // groups * (head_dim + 16)), np.nan, np.float32)
    caches = [Argument(name, tensors[name], writable=True) for name in ("k_cache", "v_cache")]
    results = [Argument("out", out, writable=True)] + [Argument("partial", partial, writable=True) for _ in split]
    read = [Argument(name, tensor) for name, tensor in tensors.items() if "cache" not in name]
    _run(chip, operator, [*read, *caches, *results, *caches], decided, constant, counted)
    return out, partial


def join_attention(
    out: Array,
    partial: Array,
    *,
    chip: str = "ascend310p",
    chip_limits: list[int] | None = None,
    constant: bool = False,
) -> Array:
    """Run kernels.reference.join_attention on the stand-in of `chip`: float16 result."""
    _check(("out", out, np.float16), ("partial", partial, np.float32))
    decided = plan(chip, "join_attention", [*out.shape, *partial.shape[1:]], chip_limits=chip_limits)
    joined = np.full_like(out, np.nan)
    arguments = [Argument("out", out), Argument("partial", partial), Argument("joined", joined, writable=True)]
    _run(chip, "join_attention", arguments, decided, constant)
    return joined


def lm_head(
    x: Array,
    weight: Array,
    *,
    chip: str = "ascend310p",
    chip_limits: list[int] | None = None,
    constant: bool = False,
    counted: Counted | None = None,
) -> Array:
    """Run kernels.reference.lm_head on the stand-in of `chip`: float16 data, float32 result; the rest as above."""
    _check(("x", x, np.float16), ("weight", weight, np.float16))
    decided = plan(chip, "lm_head", [*x.shape, len(weight)], chip_limits=chip_limits)
    logits = np.full((len(x), len(weight)), np.nan, np.float32)
    arguments = [Argument("x", x), Argument("weight", weight), Argument("logits", logits, writable=True)]
    _run(chip, "lm_head", arguments, decided, constant, counted)
    return logits


def quant_linear(
    x: Array,
    weight: Array,
    *,
    bits: int,
    group: int,
    wide: int = 0,
    chip: str = "ascend310p",
    chip_limits: list[int] | None = None,
    constant: bool = False,
    counted: Counted | None = None,
) -> Array:
    """Run kernels.reference.quant_linear on the stand-in of `chip`; the rest as above."""
    _check(("x", x, np.float16), ("weight", weight, np.uint8))
    decided = plan(chip, "quant_linear", [*x.shape, *weight.shape, bits, group, wide], chip_limits=chip_limits)
    y = np.full((len(x), len(weight) * 16), np.nan, np.float32 if wide else np.float16)
    arguments = [Argument("x", x), Argument("weight", weight), Argument("y", y, writable=True)]
    _run(chip, "quant_linear", arguments, decided, constant, counted)
    return y


def _check(*given: tuple[str, Array, type[np.generic]]) -> None:
    for name, array, dtype in given:
        if array.dtype != dtype or not array.flags.c_contiguous:
            raise ValueError(f"{name} is {array.dtype}, contiguous {array.flags.c_contiguous}; needs {np.dtype(dtype)}")


def _run(
    chip: str,
    operator: str,
    arguments: list[Argument],
    decided: TilingPlan,
    constant: bool,
    counted: Counted | None = None,
) -> None:
    tiling = decided.tiling
    if constant:
        source = HERE / f"op_kernel/{operator}.cpp"
        library = load(chip, (source,), "-O0", (decided.key, tiling.tobytes()))
        tiling = np.full_like(tiling, 0xFF)  # a kernel of this form must not read it
    else:
        library = load(chip)
    workspace = np.empty(decided.workspace_bytes, np.uint8)[CHIPS[chip].skipped_workspace :]
    launched = launch(
        library,
        operator,
        [*arguments, Argument("workspace", workspace, True, fresh=True), Argument("tiling", tiling)],
        blocks=decided.blocks,
        workers=decided.workers,
        key=0 if constant else decided.key,
        costs=counted.costs if isinstance(counted, Timed) else None,
    )
    if launched.peak != decided.ub_bytes:
        raise StandInError(
            f"[capacity] the kernel took {launched.peak} bytes of unified buffer, its tiling planned {decided.ub_bytes}"
        )
    if isinstance(counted, Timed):
        counted.cycles = launched.cycles
    if counted is not None:
        counted += launched.counts
