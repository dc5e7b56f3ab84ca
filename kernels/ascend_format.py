"""The layout of the packed weights that QuantLinear reads, in numpy.

A matrix [N, K] is stored as uint8 [N / 16, panel_bytes]: panels of 16 output columns. A panel has three parts, each of
whole 32-byte blocks:

1. the scales, float16 [K / group, 16];
2. with 4 bits the zero points in quarters, 0..64, int8 [K / group, 16], padded to an even number of groups;
3. the integers, in segments of 32 inputs. 8 bits: int8 [K / 32, 32, 16]. 4 bits: uint8 [K / 32, 16, 16], whose lower
   halves are the inputs 0..15 of a segment and whose upper halves are the inputs 16..31.

A weight is scale * q with 8 bits, q in -127..127, and scale * (q - zero / 4) with 4 bits, q in 0..15: the numbers of
int8, int4 and w4g32 to w4g128 of kernels/weight_format.py. So any run of whole groups of a panel is three contiguous
pieces, and the vector unit finds 16 columns of one input in one 32-byte block of float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .weight_format import PANEL, QUARTERS

SEGMENT = 32  # inputs
GROUPS = (32, 64, 128)  # inputs that may share a scale
BITS = (4, 8)


def panel_bytes(bits: int, group: int, k: int) -> int:
    """Bytes of a panel with k inputs, a multiple of `group`."""
    groups = k // group
    zeros = (groups + groups % 2) * PANEL if bits == 4 else 0
    return groups * PANEL * 2 + zeros + k * PANEL * bits // 8


def inputs(bits: int, group: int, size: int) -> int:
    """The inputs k of a matrix whose panels have `size` bytes. Raises ValueError if no k has such panels."""
    groups = size * 8 // (PANEL * (16 + bits * group + (8 if bits == 4 else 0)))
    for k in (groups * group, (groups - 1) * group):
        if k > 0 and panel_bytes(bits, group, k) == size:
            return k
    raise ValueError(f"no panel of {bits} bits with groups of {group} has {size} bytes")


def pack(
    bits: int, scales: NDArray[np.float16], q: NDArray[Any], zeros: NDArray[np.int8] | None = None
) -> NDArray[np.uint8]:
    """Pack quantized weights.

    scales  [N, K / group] float16; N a multiple of 16
    q       [N, K] integers: -127..127 with 8 bits, 0..15 with 4
    zeros   [N, K / group] zero points in quarters, with 4 bits only

    Raises ValueError for other shapes, groups or values.
    """
    n, k = q.shape
    groups = scales.shape[1]
    group = k // max(groups, 1)
    if bits not in BITS or n % PANEL or group not in GROUPS or groups * group != k or (zeros is None) != (bits == 8):
        raise ValueError(f"{bits} bits, [{n}, {k}], {groups} groups; needed: 4 with zeros or 8, groups of {GROUPS}")
    if zeros is not None and (zeros.min() < 0 or zeros.max() > QUARTERS):
        raise ValueError(f"zero points {zeros.min()} to {zeros.max()} quarters; needed: 0 to {QUARTERS}")
    low, high = (-127, 127) if bits == 8 else (0, 15)
    if q.min() < low or q.max() > high:
        raise ValueError(f"integers {q.min()} to {q.max()}; needed with {bits} bits: {low} to {high}")
    panels = n // PANEL

    def part(array: NDArray[Any]) -> NDArray[np.uint8]:
        """Return [N, columns] as the bytes of [columns, 16] for each panel."""
        cells = np.ascontiguousarray(array.reshape(panels, PANEL, -1).transpose(0, 2, 1))
        return cells.view(np.uint8).reshape(panels, -1)

    parts = [part(scales.astype(np.float16))]
    if zeros is not None:
        parts.append(part(np.pad(zeros.astype(np.int8), ((0, 0), (0, groups % 2)))))
    cells = part(q.astype(np.int8))
    if bits == 4:
        halves = cells.reshape(panels, k // SEGMENT, 2, SEGMENT // 2 * PANEL)
        both: NDArray[np.uint8] = halves[:, :, 0] | (halves[:, :, 1] << np.uint8(4))
        cells = both.reshape(panels, -1)
    return np.concatenate([*parts, cells], axis=1)


def unpack(packed: NDArray[np.uint8], bits: int, group: int, k: int) -> NDArray[np.float32]:
    """The values of a packed matrix with k inputs, as float32 [N, k]."""
    panels, size = packed.shape
    if size != panel_bytes(bits, group, k):
        raise ValueError(f"a panel of {size} bytes; {k} inputs with {bits} bits need {panel_bytes(bits, group, k)}")
    groups = k // group

    def columns(array: NDArray[Any], count: int) -> NDArray[Any]:
        """Return [panels, bytes] of [columns, 16] as [N, count]."""
        return array.reshape(panels, -1, PANEL).transpose(0, 2, 1).reshape(panels * PANEL, -1)[:, :count]

    split = np.cumsum([groups * PANEL * 2, (groups + groups % 2) * PANEL if bits == 4 else 0])
    scales, zeros, cells = (np.ascontiguousarray(x) for x in np.split(np.asarray(packed), split, axis=1))
    if bits == 4:
        halves = cells.reshape(panels, -1, 1, SEGMENT // 2 * PANEL)
        cells = np.concatenate([halves & 15, halves >> 4], axis=2).reshape(panels, -1)
    q = columns(cells.view(np.int8), k).astype(np.float32)
    if bits == 4:
        q -= np.repeat(columns(zeros.view(np.int8), groups).astype(np.float32) / 4, group, axis=1)
    return q * np.repeat(columns(scales.view(np.float16), groups).astype(np.float32), group, axis=1)
