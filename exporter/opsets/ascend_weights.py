"""The ascend op set's weights: which checkpoint tensors make each constant, rounded to float16 or quantized to int8."""

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
    """Whether the linear layer `name` has int8 weights. The head's stay float16: a vocabulary is often larger than the
    65,535 columns that WeightQuantBatchMatmulV2 takes, and a tied one is gathered from too."""
    return shape.weights == "int8" and name.endswith("_proj")


def weight_pieces(name: str, checkpoint: Checkpoint, shape: Shape) -> Iterator[Piece]:
    """What makes the constant `name`, some rows at a time: float32 rotary tables and norms, int8 [N, K] with float16
    scales [N], float16 the rest."""
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
    """The checkpoint's tensors that one constant joins: q, k and v one under another."""
    if layer.endswith("qkv_proj"):
        return [f"{layer[:-8]}{x}_proj.{kind}" for x in "qkv"]
    return [f"{layer}.{kind}"]


def _half(checkpoint: Checkpoint, name: str, first: int, count: int) -> NDArray[np.generic]:
    x = checkpoint.rows(name, first, count)
    if (largest := float(np.abs(x).max())) > np.finfo(np.float16).max:
        raise UserError(f"{name} holds {largest:.4g}; float16 goes to 65,504. This model needs TARGET=cpu")
    return x.astype(np.float16)


def _int8(checkpoint: Checkpoint, name: str, first: int, count: int) -> NDArray[np.generic]:
    return quantize_rows(checkpoint.rows(name, first, count))[0]


def _scales(checkpoint: Checkpoint, name: str, first: int, count: int) -> NDArray[np.generic]:
    return quantize_rows(checkpoint.rows(name, first, count))[1]
