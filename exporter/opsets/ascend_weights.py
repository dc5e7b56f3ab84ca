"""The weights of the ascend op set: the checkpoint's tensors of each constant, in float16 or packed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgellama.artifact.manifest import TensorSpec
from edgellama.backend.cpu_kernels import kernel_library
from edgellama.errors import UserError
from edgellama.kernels import ascend_format
from edgellama.kernels.cpu.packing import pack
from edgellama.kernels.weight_format import PANEL, unpack_groups

from ..checkpoint.base import Checkpoint
from ..checkpoint.row_blocks import Piece, row_blocks, tensor_pieces
from ..graph_spec import Shape
from ..network.rope import rope_table

# WEIGHTS -> bits of the layers' integers, and inputs that share a scale; the numbers are those of the cpu target
QUANTIZED = {"int8": (8, 32), "int4": (4, 32)}


def quantization(name: str, shape: Shape) -> tuple[int, int] | None:
    """Return bits and group of the packed matrix of the linear layer `name`; None if its weights are float16.

    Embedding and head stay float16: the embedding is looked up by row, and a tied head shares it.
    """
    return QUANTIZED.get(shape.weights) if name.endswith("_proj") else None


def matrix_spec(name: str, outer: int, inner: int, shape: Shape) -> TensorSpec:
    """Return the stored form of the matrix [outer, inner] of the layer `name`."""
    packed = quantization(name, shape)
    if packed is None:
        return TensorSpec(f"{name}.weight", "float16", (outer, inner))
    return TensorSpec(f"{name}.weight", "uint8", (outer // PANEL, ascend_format.panel_bytes(*packed, inner)))


def weight_pieces(name: str, checkpoint: Checkpoint, shape: Shape) -> Iterator[Piece]:
    """Yield the pieces of the constant `name`.

    Rotary tables and norms are float32. Quantized matrices are packed (kernels/ascend_format.py). The rest is float16.
    """
    if name.startswith("rope."):
        yield lambda: rope_table(name, checkpoint.config, shape.context)
        return
    if "norm" in name:
        yield from tensor_pieces(name, checkpoint)
        return
    layer, _, kind = name.rpartition(".")
    packed = quantization(layer, shape) if kind != "bias" else None
    if packed is not None:
        kernel_library()  # raises UserError when the packer is not built
    for part in _parts(layer, kind):
        rows, *rest = checkpoint.shape(part)
        for first, count in row_blocks(rows, 4 * int(np.prod(rest)), PANEL):
            if packed is None:
                yield partial(_half, checkpoint, part, first, count)
            else:
                yield partial(packed_rows, checkpoint, part, shape.weights, first, count)


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


def packed_rows(checkpoint: Checkpoint, name: str, fmt: str, first: int, count: int) -> NDArray[np.uint8]:
    """Quantize `count` rows, a multiple of 16, as the cpu target does. Returns them packed for QuantLinear."""
    w = checkpoint.rows(name, first, count)
    cells, q, _ = unpack_groups(pack(w, fmt, threads=1), fmt, w.shape[1])
    if fmt == "int8":
        return ascend_format.pack(8, cells.view(np.float16), q.astype(np.int16) - 128)
    scales, zeros = ((cells & 0xFFC0) >> 1).astype(np.uint16), (cells & 63).astype(np.int8)
    return ascend_format.pack(4, scales.view(np.float16), q, zeros)
