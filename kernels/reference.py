"""What every custom operator means, in numpy: the single definition.

The CPU kernel, the Ascend kernel, the trace-time primitive and the ONNX
evaluation of an operator all answer to the function here, and one parametrised
test holds them all against it. Everything is computed in float32, or in
float64 where asked for.

Letters: B rows, S tokens per row in this call, H query heads, G key/value
heads, D head size, C cache capacity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def rotate_half_split(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding in the half-split layout of the Hugging Face checkpoints (arXiv:2104.09864).

    x [..., D]; cos, sin [..., D/2], broadcast against x without its last axis.
    Element i pairs with element i + D/2.
    """
    lo, hi = np.split(x, 2, axis=-1)
    return np.concatenate([lo * cos - hi * sin, hi * cos + lo * sin], axis=-1)


def quantize_rows(x: Array) -> tuple[Array, Array]:
    """Rows of the int8 cache: x [..., D] -> (int8 [..., D], float16 scale [...]) with x ~ int8 * scale.

    scale is the row's largest magnitude / 127 rounded to float16 (at most 65504); elements are x / scale in float32,
    rounded to the nearest integer, ties to even, and clipped to -127 .. 127. A row whose scale is 0 is all zeros.
    """
    x = x.astype(np.float32)
    scale = np.minimum(np.abs(x).max(axis=-1) / np.float32(127), np.float32(65504)).astype(np.float16)
    step = scale.astype(np.float32)[..., None]
    quotient = np.divide(x, step, out=np.zeros_like(x), where=step > 0)
    return np.clip(np.rint(quotient), -127, 127).astype(np.int8), scale


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
    k_scale: Array | None = None,
    v_scale: Array | None = None,
) -> Array:
    """FusedAttention: RoPE on q and k, cache write in place, causal grouped-query attention.

    qkv      [B, S, (H + 2G) * D] float: the query heads, then the key heads, then the value heads
    cos, sin [P, D/2] float32, P >= C: the rotary tables by position
    start    [B] int32: tokens of row b already in the cache
    length   [B] int32: valid tokens of row b in this call, 0..S; start + length <= C
    k_cache, v_cache [B, G, C, D] float: one layer's caches. MUTATED: positions start .. start+length-1 of
             row b receive the rotated keys and the values, rounded to the cache's dtype; no other byte changes.
    heads    H; scale: multiplies q.k, 1/sqrt(D) in Llama; window: 0, or how many of the latest positions
             (itself included) a token sees (sliding-window attention).
    k_scale, v_scale [B, G, C] float16, for int8 caches only. MUTATED like the caches: each written position's scale,
             as quantize_rows defines it. A cached element reads back as int8 * scale.

    Returns [B, S, H * D] of qkv's dtype. Token i of row b attends to cache positions 0 .. start+i, as they read
    back from the cache. Rows are independent. Output at i >= length[b] is zero.
    """
    rows, tokens, _ = qkv.shape
    _, groups, capacity, head_dim = k_cache.shape
    if heads % groups:
        raise ValueError(f"FusedAttention: {heads} query heads are not a multiple of {groups} key/value heads")
    if qkv.shape[2] != (heads + 2 * groups) * head_dim:
        raise ValueError(f"FusedAttention: qkv is {qkv.shape[2]} wide, needs {(heads + 2 * groups) * head_dim}")
    if np.any(length < 0) or np.any(length > tokens) or np.any(start < 0) or np.any(start + length > capacity):
        raise ValueError(f"FusedAttention: start {start} + length {length} outside capacity {capacity}")

    out = np.zeros((rows, tokens, heads * head_dim), dtype=qkv.dtype)
    for b in range(rows):
        n, first = int(length[b]), int(start[b])
        if n == 0:
            continue
        x = qkv[b, :n].astype(np.float32).reshape(n, heads + 2 * groups, head_dim)
        q, k, v = np.split(x, [heads, heads + groups], axis=1)  # [n, H | G | G, D]
        position = np.arange(first, first + n)
        c, s = cos[position, None, :], sin[position, None, :]  # [n, 1, D/2]
        q, k = rotate_half_split(q, c, s), rotate_half_split(k, c, s)
        end = first + n
        if k_scale is None or v_scale is None:
            k_cache[b, :, position, :] = k
            v_cache[b, :, position, :] = v
            keys = k_cache[b, :, :end].astype(np.float32)  # [G, end, D]
            values = v_cache[b, :, :end].astype(np.float32)
        else:
            k_cache[b, :, position, :], k_scale[b, :, position] = quantize_rows(k)
            v_cache[b, :, position, :], v_scale[b, :, position] = quantize_rows(v)
            keys = k_cache[b, :, :end] * k_scale[b, :, :end, None].astype(np.float32)
            values = v_cache[b, :, :end] * v_scale[b, :, :end, None].astype(np.float32)
        q = q.reshape(n, groups, heads // groups, head_dim).transpose(1, 2, 0, 3)  # [G, H/G, n, D]
        scores = np.float32(scale) * (q @ keys[:, None].swapaxes(-1, -2))  # [G, H/G, n, end]
        distance = position[:, None] - np.arange(end)[None, :]  # [n, end]
        visible = (distance >= 0) & ((distance < window) if window else True)
        scores = np.where(visible, scores, -np.inf)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        out[b, :n] = (p @ values[:, None]).transpose(2, 0, 1, 3).reshape(n, heads * head_dim)
    return out
