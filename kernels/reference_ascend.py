"""The definitions of the operators that only the Ascend package has besides attention; part of kernels/reference.py.

Letters in shapes: B rows, S tokens per row, H query heads, G key/value heads, D head size, E hidden size, V vocabulary
size, T rows of a product, K and N input features and output columns of a matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ascend_format import unpack

Array = NDArray[Any]


def join_attention(out: Array, partial: Array) -> Array:
    """JoinAttention: the result of attention [B, S, H * D] from what split_attention returns, in out's dtype."""
    if out.shape[1] > 1:
        return out.copy()
    rows, groups, parts, record = partial.shape
    width = out.shape[2] // groups
    ratio = (record - width) // 16
    sums, top, total = np.split(partial, [width, width + 8 * ratio], axis=-1)
    top, total = (x.reshape(rows, groups, parts, ratio, 8)[..., :1] for x in (top, total))
    factor = np.exp(top - top.max(axis=2, keepdims=True))  # [B, G, parts, H/G, 1]
    values = (sums.reshape(rows, groups, parts, ratio, -1) * factor).sum(axis=2) / (total * factor).sum(axis=2)
    return values.reshape(out.shape).astype(out.dtype)


def lm_head(x: Array, weight: Array) -> Array:
    """LmHead: the logits of the last tokens, computed and returned in float32.

    x        [B, E] float16: the hidden states after the last norm
    weight   [V, E] float16: the matrix of the LM head; if it is tied, that of the embedding

    Returns x W^T, [B, V] float32. float16 is not enough: at 16 its step is 1/64, and the two largest logits are often
    closer than that.

    Tolerance: 1e-5 of the sum of a logit's absolute products, because the order of float32 sums may differ.
    """
    return x.astype(np.float32) @ weight.astype(np.float32).T


def quant_linear(x: Array, weight: Array, *, bits: int, group: int, wide: int = 0) -> Array:
    """QuantLinear: x W^T, with weights of 8 or 4 bits that share a scale in groups; computed in float64.

    x        [T, K] float16
    weight   [N / 16, bytes] uint8: the packed matrix [N, K] (kernels.ascend_format)
    bits     8 or 4
    group    the inputs that share a scale: 32, 64 or 128
    wide     1: the result is float32; 0: it is rounded to float16

    Returns [T, N]. A kernel may round the weights to float16, which is not exact with 11 bits of a scale times 7 or 6
    of an integer: tolerance 1e-3 of the norm of x times the norm of a weight column, besides the result's rounding.
    """
    y = x.astype(np.float64) @ unpack(weight, bits, group, x.shape[-1]).T.astype(np.float64)
    return y.astype(np.float32 if wide else np.float16)
