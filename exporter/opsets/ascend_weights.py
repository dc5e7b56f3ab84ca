"""The weights of the ascend op set: the checkpoint's tensors of each constant, in float16 or quantized to int8."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgellama.errors import UserError
from edgellama.kernels.reference import quantize_rows

from ..checkpoint.base import Checkpoint
from ..checkpoint.row_blocks import Piece, row_blocks, tensor_pieces
from ..graph_spec import Shape
from ..network.rope import rope_table


def is_quantized(name: str, shape: Shape) -> bool:
    """Return whether the linear layer `name` has int8 weights.

    The weights of the head stay float16: a vocabulary is often larger than the 65,535 columns that
    WeightQuantBatchMatmulV2 supports, and a tied embedding is also looked up by row.
    """
    return shape.weights == "int8" and name.endswith("_proj")


def weight_pieces(name: str, checkpoint: Checkpoint, shape: Shape) -> Iterator[Piece]:
    """Yield the pieces of the constant `name`.

    Rotary tables and norms are float32. Quantized matrices are int8 [N, K], with scales float16 [N]. The rest is
    float16.
    """
    if name.startswith("rope."):
        yield lambda: rope_table(name, checkpoint.config, shape.context)
        return
    if "norm" in name:
        yield from tensor_pieces(name, checkpoint)
        return
    layer, _, kind = name.rpartition(".")
    make = _half
    if kind != "bias" and is_quantized(layer, shape):
        make = _scales if kind == "scale" else _int8
    for part in _parts(layer, "weight" if kind == "scale" else kind):
        rows, *rest = checkpoint.shape(part)
        for first, count in row_blocks(rows, 4 * int(np.prod(rest))):
            yield partial(make, checkpoint, part, first, count)


def _parts(layer: str, kind: str) -> list[str]:
    """Return the checkpoint's tensors that one constant joins: the rows of q, then of k, then of v."""
    if layer.endswith("qkv_proj"):
        return [f"{layer[:-8]}{x}_proj.{kind}" for x in "qkv"]
    return [f"{layer}.{kind}"]


def _half(checkpoint: Checkpoint, name: str, first: int, count: int) -> NDArray[np.generic]:
    x = checkpoint.rows(name, first, count)
    if (largest := float(np.abs(x).max())) > np.finfo(np.float16).max:
        raise UserError(f"{name} contains {largest:.4g}; float16 ends at 65,504. Export this model with TARGET=cpu")
    return x.astype(np.float16)


def _int8(checkpoint: Checkpoint, name: str, first: int, count: int) -> NDArray[np.generic]:
    return quantize_rows(checkpoint.rows(name, first, count))[0]


def _scales(checkpoint: Checkpoint, name: str, first: int, count: int) -> NDArray[np.generic]:
    return quantize_rows(checkpoint.rows(name, first, count))[1]
