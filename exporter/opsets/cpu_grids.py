"""Checkpoints of 4-bit integers (AWQ, GPTQ, compressed-tensors) as w4g32, w4g64 or w4g128, without another rounding.

The formats hold integers 0..15, a float16 scale and a zero point for each group of 32, 64 or 128 inputs. A larger group
is a run of equal smaller ones, so each format also holds every multiple of its group. They do not hold act-order, where
a group is no run of inputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellama.errors import UserError
from edgellama.kernels.weight_format import QUARTERS, W4_GROUPS, scale_count

from ..checkpoint.base import LINEARS, Checkpoint

INSTEAD = "Use WEIGHTS=int8, which rounds it to 8 bits, or WEIGHTS=fp32"


def own_format(checkpoint: Checkpoint) -> str | None:
    """Return the format that holds the matrices of all layers as the checkpoint has them, or None."""
    found = [checkpoint.four_bits(name) for name in _matrices(checkpoint)]
    groups = [x.group for x in found if x is not None and x.group is not None]
    fitting = [fmt for fmt, size in W4_GROUPS.items() if all(group % size == 0 for group in groups)]
    if len(groups) < len(found) or not fitting or any(x is not None and x.other_scale() is not None for x in found):
        return None
    return fitting[-1]


def misfit(checkpoint: Checkpoint) -> str | None:
    """Return why no format holds a checkpoint that has matrices of 4 bits; None if it has none, or one holds it."""
    names = _matrices(checkpoint)
    if not any(checkpoint.four_bits(name) for name in names):
        return None
    return next((why for name in names if (why := _why_not(checkpoint, name, min(W4_GROUPS.values())))), None)


def grid_rows(checkpoint: Checkpoint, fmt: str, name: str, first: int, count: int) -> NDArray[np.uint8]:
    """Return rows of a matrix for `fmt`: [count, ...] bytes, which grid_columns takes apart.

    Raises UserError, which names the matrix, if the format does not hold it exactly.
    """
    why = _why_not(checkpoint, name, W4_GROUPS[fmt])
    if why is not None:
        raise UserError(f"WEIGHTS={fmt} keeps the integers of a checkpoint, and {why}. {INSTEAD}")
    grid = checkpoint.grid(name, first, count)
    scales = grid.scales.astype(np.float16)
    assert grid.zeros.min(initial=0) >= 0 and grid.zeros.max(initial=0) * 4 <= QUARTERS
    split = scale_count(fmt, grid.q.shape[1]) // scales.shape[1]
    halves = np.repeat(scales, split, axis=1).view(np.uint8)
    quarters = np.repeat((4 * grid.zeros).astype(np.uint8), split, axis=1)
    return np.concatenate([halves, quarters, grid.q], axis=1)


def grid_columns(fmt: str, rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint16], NDArray[np.int8], NDArray[np.uint8]]:
    """Return the scales as bits of float16 [n, groups], the zero points in quarters [n, groups], and q [n, K].

    rows: of grid_rows: for each group two bytes and one, and then a byte for each integer.
    """
    size = W4_GROUPS[fmt]
    groups = rows.shape[1] // (size + 3)
    scales, zeros, q = np.split(rows, [2 * groups, 3 * groups], axis=1)
    return np.ascontiguousarray(scales).view(np.uint16), np.ascontiguousarray(zeros).view(np.int8), q


def _matrices(checkpoint: Checkpoint) -> list[str]:
    layers = range(checkpoint.config.num_hidden_layers)
    return [f"model.layers.{layer}.{linear}.weight" for layer in layers for linear in LINEARS]


def _why_not(checkpoint: Checkpoint, name: str, size: int) -> str | None:
    """Return why groups of `size` do not hold a matrix; None if they do."""
    found = checkpoint.four_bits(name)
    if found is None:
        return f"{name} is {checkpoint.dtype(name)}"
    if found.group is None:
        return f"{name} has act-order, where a group is no run of inputs"
    if found.group % size:
        return f"{name} has groups of {found.group} inputs"
    scale = found.other_scale()
    return None if scale is None else f"{name} has the scale {scale:.9g}, which no float16 holds"
