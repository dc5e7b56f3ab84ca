"""The packed weight formats in numpy: the definition of what the C++ packer writes and the kernels read.

A matrix [N, K] is divided into panels of 16 output columns, each contiguous. N is padded to a multiple of 16 and K to a
multiple of 32 with zeros. kernels/cpu/linear/weight_format.h gives the byte layout of a panel. In the integer formats
32 weights along K share a scale, in w4g64 and w4g128 64 and 128 (a last group may have fewer):

format  value of a weight                                                                  bits per weight
int8    d * q, q in -127..127, d = largest / 127 in float16: GGUF's Q8_0                               8.5
int4    d * (q - z / 4), q in 0..15, z in 0..63, d a float16 whose lower 5 bits are zero               4.5
q4_0    d * (q - 8), q in 0..15, d in float16: GGUF's Q4_0, repacked only; nothing quantizes to it     4.5
w4g32   d * (q - z / 4), q in 0..15, d in float16, z in 0..64 as int8: the grid of AWQ                4.75
w4g64   (arXiv:2306.00978), GPTQ (arXiv:2210.17323) and compressed-tensors, with whole zero points   4.375
w4g128  z / 4. An export repacks such checkpoints only                                              4.1875
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

W4_GROUPS = {"w4g32": 32, "w4g64": 64, "w4g128": 128}  # weights along K that share a scale
FORMATS = ("f32", "bf16", "int8", "int4", "q4_0", *W4_GROUPS)  # the order of enum class Format in weight_format.h
PANEL = 16  # columns of a panel
GROUP = 32  # weights along K that share a scale, in the other integer formats
QUARTERS = 64  # the largest zero point of w4gN, in quarters


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not less than n."""
    return -(-n // multiple) * multiple


def panel_count(n: int) -> int:
    """Panels of a matrix with n output columns."""
    return -(-n // PANEL)


def scale_count(fmt: str, k: int) -> int:
    """Scales of a column with k input features, in an integer format."""
    return -(-k // W4_GROUPS.get(fmt, GROUP))


def panel_bytes(fmt: str, k: int) -> int:
    """Bytes of one panel of a matrix with k input features."""
    cells = round_up(k, GROUP) * PANEL
    scales = _head_bytes(fmt, k)
    return {"f32": cells * 4, "bf16": cells * 2, "int8": scales + cells}.get(fmt, scales + cells // 2)


def _head_bytes(fmt: str, k: int) -> int:
    """Bytes of a panel before its integers: scales, zero points of w4gN, and padding."""
    return round_up(scale_count(fmt, k) * PANEL * (3 if fmt in W4_GROUPS else 2), 64)


def packed_bytes(fmt: str, n: int, k: int) -> int:
    """Bytes of a packed [n, k] matrix."""
    return panel_count(n) * panel_bytes(fmt, k)


def to_bf16(x: Floats) -> NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16, ties to even. Returns the bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _pad(w: Floats) -> Floats:
    """Pad [N, K] with zeros to whole panels and whole groups."""
    n, k = w.shape
    return np.pad(np.asarray(w, np.float32), ((0, -n % PANEL), (0, -k % GROUP)))


def pack_float(w: Floats, fmt: str) -> Bytes:
    """Pack [N, K] as f32 or bf16."""
    w = _pad(w)
    n, k = w.shape
    if fmt == "f32":
        panels = w.reshape(n // PANEL, PANEL, k).transpose(0, 2, 1)  # [panel, K, 16]
        return np.ascontiguousarray(panels).view(np.uint8).reshape(-1)
    panels16 = to_bf16(w).reshape(n // PANEL, PANEL, k // 2, 2).transpose(0, 2, 1, 3)  # [panel, K/2, 16, 2]
    return np.ascontiguousarray(panels16).view(np.uint8).reshape(-1)


def pack_groups(fmt: str, scales: NDArray[np.uint16], q: Bytes, zeros: NDArray[np.int8] | None = None) -> Bytes:
    """Pack quantized weights into the layout of an integer format.

    scales  [N, scale_count] 16-bit cells
    q       [N, K] uint8: q + 128 for int8, 0..15 for the others; N a multiple of 16, K of 32
    zeros   [N, scale_count] zero points in quarters, of w4gN
    """
    n, k = q.shape
    panels, groups = n // PANEL, scale_count(fmt, k)
    head = np.zeros((panels, _head_bytes(fmt, k)), np.uint8)
    begin = 0
    for array in (scales,) if zeros is None else (scales, zeros):
        cells = np.ascontiguousarray(array.reshape(panels, PANEL, groups).transpose(0, 2, 1))  # [panel, groups, 16]
        part = cells.view(np.uint8).reshape(panels, -1)
        head[:, begin : begin + part.shape[1]] = part
        begin += part.shape[1]
    quads = q.reshape(panels, PANEL, k // 4, 4).transpose(0, 2, 1, 3)  # [panel, K/4, 16, 4]
    if fmt != "int8":
        quads = quads[:, 0::2] | (quads[:, 1::2] << 4)
    return np.concatenate([head, quads.reshape(panels, -1)], axis=1).reshape(-1)


def quantize_int8(w: Floats) -> tuple[NDArray[np.uint16], Bytes]:
    """Quantize [N, K], K a multiple of 32, to int8: d = float16(largest / 127), q = round(w / d), ties to even.

    Returns the scales [N, K/32] as float16 bits, and q + 128 [N, K].
    """
    groups = np.asarray(w, np.float32).reshape(w.shape[0], -1, GROUP)
    d = (np.abs(groups).max(axis=2) / np.float32(127)).astype(np.float16)
    wide = d.astype(np.float32)[..., None]
    q = np.divide(groups, wide, out=np.zeros_like(groups), where=wide > 0)
    q = np.clip(np.rint(q), -127, 127)
    return d.view(np.uint16), (q + 128).astype(np.uint8).reshape(w.shape)


LEAST_CODE, MOST_CODE = 32, 991  # the normal numbers among the ten upper bits of a positive float16


def quantize_int4(w: Floats) -> tuple[NDArray[np.uint16], Bytes]:
    """Quantize [N, K], K a multiple of 32, to int4. Returns the scale cells [N, K/32] and q [N, K].

    Tries for each group twelve scales, from the one that spans its range downwards, and four zero points for each.
    Keeps the first pair with the least squared error. Sums run over the group in order, in float32.
    """
    groups = np.asarray(w, np.float32).reshape(-1, GROUP)
    low, high = np.minimum(groups.min(axis=1), 0), np.maximum(groups.max(axis=1), 0)
    spanning = ((high - low) / np.float32(15)).view(np.int32)
    widest = np.minimum(((spanning + ((1 << 18) - 1)) >> 18) - (112 << 5), MOST_CODE)
    best = np.full(len(groups), 3e38, np.float32)
    best_code, best_zero = np.zeros(len(groups), np.int32), np.zeros(len(groups), np.float32)
    for step in range(12):
        code = np.maximum(widest - step, LEAST_CODE)
        d = ((code + (112 << 5)) << 18).view(np.float32)
        inverse = np.float32(1) / d
        middle = (np.float32(15) - high * inverse - low * inverse) * np.float32(0.5)
        first = np.rint(middle * np.float32(4)) - np.float32(1)
        for shift in range(4):
            zero4 = np.clip(first + np.float32(shift), 0, 63)
            zero = zero4 * np.float32(0.25)
            error = np.zeros_like(best)
            for i in range(GROUP):
                q = np.clip(np.rint(groups[:, i] * inverse + zero), 0, 15)
                off = (q - zero) * d - groups[:, i]
                error += off * off
            better = error < best
            best = np.where(better, error, best)
            best_code, best_zero = np.where(better, code, best_code), np.where(better, zero4, best_zero)
    d = ((best_code + (112 << 5)) << 18).astype(np.int32).view(np.float32)
    inverse = np.float32(1) / d
    q = np.clip(np.rint(groups * inverse[:, None] + best_zero[:, None] * np.float32(0.25)), 0, 15)
    cells = (best_code << 6) | best_zero.astype(np.int32)
    return cells.astype(np.uint16).reshape(w.shape[0], -1), q.astype(np.uint8).reshape(w.shape)


def quantize_w4(w: Floats, group: int) -> tuple[NDArray[np.uint16], Bytes, NDArray[np.int8]]:
    """Quantize [N, K] to the grid of w4gN: d spans the range of a group and 0 in 15 steps, to the nearest.

    Returns the scales [N, ceil(K/group)] as float16 bits, q [N, K], and the zero points in quarters [N, ceil(K/group)].
    """
    n, k = w.shape
    groups = np.pad(np.asarray(w, np.float32), ((0, 0), (0, -k % group))).reshape(n, -1, group)
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    d = ((high - low) / np.float32(15)).astype(np.float16)
    wide = d.astype(np.float32)
    zeros = np.divide(-4 * low, wide, out=np.zeros_like(wide), where=wide > 0)
    zeros = np.clip(np.rint(zeros), 0, QUARTERS).astype(np.int8)
    q = np.divide(groups, wide[..., None], out=np.zeros_like(groups), where=wide[..., None] > 0)
    q = np.clip(np.rint(q + zeros[..., None] * np.float32(0.25)), 0, 15).astype(np.uint8)
    return d.view(np.uint16), np.ascontiguousarray(q.reshape(n, -1)[:, :k]), zeros


def pack(w: Floats, fmt: str) -> Bytes:
    """Quantize and pack [N, K] floats in any format but q4_0."""
    if fmt in ("f32", "bf16"):
        return pack_float(w, fmt)
    w = _pad(w)
    if fmt in W4_GROUPS:
        return pack_groups(fmt, *quantize_w4(w, W4_GROUPS[fmt]))
    return pack_groups(fmt, *(quantize_int8(w) if fmt == "int8" else quantize_int4(w)))


def unpack_groups(packed: Bytes, fmt: str, k: int) -> tuple[NDArray[np.uint16], Bytes, NDArray[np.int8] | None]:
    """The inverse of pack_groups: scales, q and zeros of a packed matrix with k input features, padding included."""
    depth, groups = round_up(k, GROUP), scale_count(fmt, k)
    data = np.asarray(packed, np.uint8).reshape(-1, panel_bytes(fmt, k))
    panels = len(data)

    def columns(first: int, dtype: type[np.generic]) -> NDArray[Any]:
        """Return an array [groups, 16] of each panel as [N, groups]. first: its offset in the panel."""
        part = data[:, first : first + groups * PANEL * np.dtype(dtype).itemsize].copy().view(dtype)
        return np.ascontiguousarray(part.reshape(panels, groups, PANEL).transpose(0, 2, 1)).reshape(-1, groups)

    quads = data[:, _head_bytes(fmt, k) :].reshape(panels, -1, PANEL, 4)
    if fmt != "int8":
        quads = np.stack([quads & 15, quads >> 4], axis=2).reshape(panels, -1, PANEL, 4)
    q = np.ascontiguousarray(quads.transpose(0, 2, 1, 3)).reshape(-1, depth)
    zeros = columns(groups * PANEL * 2, np.int8) if fmt in W4_GROUPS else None
    return columns(0, np.uint16), q, zeros


def unpack(packed: Bytes, fmt: str, n: int, k: int) -> Floats:
    """The values of a packed matrix, as float32 [n, k]."""
    panels, depth = panel_count(n), round_up(k, GROUP)
    data = np.asarray(packed, np.uint8).reshape(panels, -1)
    if fmt == "f32":
        w = data.view(np.float32).reshape(panels, depth, PANEL).transpose(0, 2, 1)
    elif fmt == "bf16":
        bits = data.view(np.uint16).reshape(panels, depth // 2, PANEL, 2).transpose(0, 2, 1, 3)
        w = (bits.astype(np.uint32) << 16).view(np.float32)
    else:
        cells, q, quarters = unpack_groups(packed, fmt, k)
        d, zeros = cells.view(np.float16), np.full(cells.shape, 128 if fmt == "int8" else 8, np.float32)
        if fmt == "int4":
            d = ((cells & 0xFFC0) >> 1).astype(np.uint16).view(np.float16)
            zeros = (cells & 63).astype(np.float32) / np.float32(4)
        elif quarters is not None:
            zeros = quarters.astype(np.float32) / np.float32(4)
        steps = W4_GROUPS.get(fmt, GROUP)
        scales, zeros = (np.repeat(x.astype(np.float32), steps, axis=1)[:, :depth] for x in (d, zeros))
        w = scales * (q.astype(np.float32) - zeros)
    return np.ascontiguousarray(w.reshape(panels * PANEL, depth)[:n, :k])


def head_order(dim: int, rotated: int) -> NDArray[np.int64] | None:
    """Return the checkpoint's element for each element of a head of q and k; None if all `dim` elements are rotated.

    The checkpoint pairs element i with i + r/2 for i < r/2, and does not rotate the elements from r on. The kernels
    pair i with i + D/2.
    """
    if dim == rotated:
        return None
    element = np.arange(dim)
    first, second, rest = element[: rotated // 2], element[rotated // 2 : rotated], element[rotated:]
    middle = len(rest) // 2
    return np.concatenate([first, rest[:middle], second, rest[middle:]])


def interleave_gate_up(gate: NDArray[Any], up: NDArray[Any]) -> NDArray[Any]:
    """Merge gate and up, both [N, K], into one [2N', K] matrix of alternating panels. N' is N padded to 16."""
    gate, up = (np.pad(m, ((0, -m.shape[0] % PANEL), (0, 0))) for m in (gate, up))
    both = np.stack([gate.reshape(-1, PANEL, gate.shape[1]), up.reshape(-1, PANEL, up.shape[1])], axis=1)
    return both.reshape(-1, gate.shape[1])
