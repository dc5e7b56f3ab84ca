"""The definition of every custom operator, in numpy.

The CPU kernel, the Ascend kernel, the trace-time primitive and the ONNX evaluation of an operator must agree with its
function here, and tests compare them with it. The functions compute in float32, `linear` in float64.

A NaN in a weight, a cache or an activation is never turned into a number: what depends on it is NaN. Quantization
treats an infinity as a NaN, because it has no scale. So a kernel may give NaN where a function here gives an infinity.

Letters in shapes:

B  rows
S  tokens per row in this call
H  query heads
G  key/value heads
D  head size
C  cache capacity
P  positions in the rotary tables
E  hidden size
V  vocabulary size
K, N  input features and output columns of a matrix
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .activations import FINE_TOKENS, round_activations
from .reference_ascend import join_attention as join_attention
from .reference_ascend import lm_head as lm_head
from .reference_ascend import quant_linear as quant_linear

Array = NDArray[Any]


def rotate_half_split(x: Array, cos: Array, sin: Array) -> Array:
    """Apply the rotary embedding (arXiv:2104.09864) in the half-split layout of the Hugging Face checkpoints.

    x         [..., D]
    cos, sin  [..., D/2], broadcast against x without its last axis

    Element i pairs with element i + D/2. Returns [..., D].
    """
    lo, hi = np.split(x, 2, axis=-1)
    return np.concatenate([lo * cos - hi * sin, hi * cos + lo * sin], axis=-1)


def rms_norm(x: Array, gamma: Array, eps: float) -> Array:
    """Return x / sqrt(mean(x^2) + eps) * gamma (arXiv:1910.07467) along the last axis of x [..., n]; gamma [n]."""
    scaled: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * gamma.astype(np.float32)
    return scaled


def norm_heads(x: Array, gamma: Array | None, eps: float) -> Array:
    """RMSNorm (arXiv:1910.07467) of queries or keys x [n, heads, D]; returns x without gamma.

    gamma [D]: each head has its own norm; [heads * D]: one norm spans the heads of a token.
    """
    if gamma is None:
        return x
    whole = gamma.size != x.shape[-1]
    return rms_norm(x.reshape(len(x), 1, -1) if whole else x, gamma, eps).reshape(x.shape)


def soft_cap(x: Array, cap: float | None) -> Array:
    """Return cap * tanh(x / cap), which is within (-cap, cap); x itself if cap is None or 0."""
    return x if not cap else cap * np.tanh(x / cap)


def activation(x: Array, name: str) -> Array:
    """Apply an activation by its name in transformers: "silu", or "gelu_pytorch_tanh" (arXiv:1606.08415)."""
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "gelu_pytorch_tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    raise ValueError(f"activation {name!r} is not defined")


def quantize_rows(x: Array) -> tuple[Array, Array]:
    """Quantize rows for the int8 cache: x [..., D] -> (int8 [..., D], float16 scale [...]) with x ~ int8 * scale.

    scale is the row's largest magnitude / 127, rounded to float16 (at most 65504). Elements are x / scale in float32,
    rounded to the nearest integer (ties to even) and clipped to -127..127. A row whose scale is 0 becomes all zeros. A
    row with a NaN or an infinity becomes all zeros with the scale NaN, so that every value of it is NaN.
    """
    x = x.astype(np.float32)
    largest = np.abs(x).max(axis=-1)
    scale = np.minimum(largest / np.float32(127), np.float32(65504)).astype(np.float16)
    scale = np.where(np.isfinite(largest), scale, np.float16(np.nan))
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
    softcap: float = 0.0,
    query_beta: float = 0.0,
    query_period: int = 0,
    q_gamma: Array | None = None,
    k_gamma: Array | None = None,
    norm_eps: float = 0.0,
    norm_after_rope: bool = False,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
) -> Array:
    """FusedAttention: rotary embedding of q and k, cache write in place, causal grouped-query attention.

    qkv      [B, S, (H + 2G) * D] float: the query heads, then the key heads, then the value heads
    cos, sin [P, D/2] float32, P >= C: the rotary tables by position
    start    [B] int32: the number of tokens of row b in the cache before this call
    length   [B] int32: the valid tokens of row b in this call, 0..S; start + length <= C
    k_cache, v_cache [B, G, C, D] float: the caches of one layer. MUTATED: positions start .. start+length-1 of row b
             receive the rotated keys and the values, rounded to the cache's dtype. No other byte changes.
    heads    H
    scale    multiplies q.k; 1/sqrt(D) in Llama
    softcap  if not 0, scores become softcap * tanh(score / softcap)
    query_beta, query_period  if query_beta is not 0, the query at position p is multiplied by
             1 + query_beta * log(1 + floor(p / query_period))
    q_gamma, k_gamma   the weights of RMSNorm of q and k before they are rotated: [D] for a norm of each head, or
             [H * D] and [G * D] for one norm of all heads. None: no norm
    norm_eps eps of these norms
    norm_after_rope    the norms follow the rotary embedding; only for norms of each head
    window   the number of latest positions that a token sees, its own included (sliding-window attention); 0: all
    k_scale, v_scale [B, G, C] float16, only for int8 caches. MUTATED like the caches: they receive the scale of each
             written position, as quantize_rows defines it. A cached element has the value int8 * scale.

    Returns [B, S, H * D] of qkv's dtype. Token i of row b attends to cache positions 0 .. start+i, with the values that
    are in the cache after rounding. Rows are independent. The output at i >= length[b] is zero.

    Raises:
        ValueError: the sizes do not fit each other, or start + length is outside the cache.
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
        if not norm_after_rope:
            q, k = norm_heads(q, q_gamma, norm_eps), norm_heads(k, k_gamma, norm_eps)
        q, k = rotate_half_split(q, c, s), rotate_half_split(k, c, s)
        if norm_after_rope:
            q, k = norm_heads(q, q_gamma, norm_eps), norm_heads(k, k_gamma, norm_eps)
        if query_beta:
            q = q * (1 + query_beta * np.log1p(position // query_period)).astype(np.float32)[:, None, None]
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
        scores = soft_cap(scores, softcap)
        distance = position[:, None] - np.arange(end)[None, :]  # [n, end]
        visible = (distance >= 0) & ((distance < window) if window else True)
        scores = np.where(visible, scores, -np.inf)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        out[b, :n] = (p @ values[:, None]).transpose(2, 0, 1, 3).reshape(n, heads * head_dim)
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
) -> tuple[Array, Array]:
    """SplitAttention: fused_attention with the cache positions divided into `parts`. join_attention follows it.

    Returns (out [B, S, H * D], partial [B, G, parts, H/G * (D + 16)] float32). For S > 1, out is the result, partial is
    unspecified: zeros here. For S = 1, out is unspecified, and partial has a record for each part: the sum of
    exp(score - maximum) * value of each query head [H/G, D], then eight times each the maxima and the sums of
    exp(score - maximum) [H/G]. The visible positions before `start` are divided into runs of one length, a multiple of
    16; the new token belongs to the first part. An empty part has the maximum -1e30 and sums of 0; 1 in an empty row.
    """
    out = fused_attention(qkv, cos, sin, start, length, k_cache, v_cache, heads=heads, scale=scale, window=window)
    groups, dim, ratio = k_cache.shape[1], k_cache.shape[3], heads // k_cache.shape[1]
    partial = np.zeros((len(qkv), groups, parts, ratio * (dim + 16)), np.float32)
    if qkv.shape[1] > 1:
        return out, partial
    partial[..., ratio * dim : ratio * (dim + 8)] = -1e30
    partial[length == 0, :, 0, ratio * (dim + 8) :] = 1
    for b in np.flatnonzero(length):
        here = int(start[b])
        first = max(0, here + 1 - window) if window else 0
        share = -(-(here - first) // (16 * parts)) * 16
        q = rotate_half_split(qkv[b, 0, : heads * dim].reshape(groups, ratio, dim), cos[here], sin[here])
        for part in range(parts):
            at = [x for x in range(first + part * share, first + (part + 1) * share) if x < here] + [here] * (part == 0)
            if at:
                keys, values = (cache[b, :, at].astype(np.float32).swapaxes(0, 1) for cache in (k_cache, v_cache))
                scores = np.float32(scale) * (q @ keys.swapaxes(-1, -2))  # [G, H/G, n]
                top = scores.max(-1, keepdims=True)
                p = np.exp(scores - top)
                stats = (np.repeat(x, 8, -1) for x in (top, p.sum(-1, keepdims=True)))
                partial[b, :, part] = np.concatenate([x.reshape(groups, -1) for x in (p @ values, *stats)], axis=-1)
    return out, partial


def embedding(ids: Array, weight: Array, length: Array) -> Array:
    """Embedding: one row of a matrix for each token id.

    ids      [B, S] int32: row b is valid up to length[b]; valid ids are in 0..V-1
    weight   [V, K] float32: the values of the packed matrix (kernels.weight_format.unpack)
    length   [B] int32, each in 0..S

    Returns [B, S, K] float32, exactly the rows of the matrix. Positions from length[b] on are unspecified: NaN here.
    """
    out = np.full((*ids.shape, weight.shape[1]), np.nan, np.float32)
    for b, n in enumerate(length):
        out[b, :n] = weight[ids[b, :n]]
    return out


def linear(
    x: Array,
    weight: Array,
    length: Array,
    *,
    gamma: Array | None = None,
    eps: float = 0.0,
    bias: Array | None = None,
    residual: Array | None = None,
    swiglu: bool = False,
    act: str = "silu",
    softcap: float = 0.0,
    last_only: bool = False,
    coarse: bool = False,
) -> Array:
    """Linear: y = epilogue(norm(x) W^T + bias), computed in float64.

    x        [B, S, K] float32, row b is valid up to length[b]
    weight   [N, K] float32: the values of the packed matrix; with swiglu [2N', K], alternating panels of 16 gate
             columns and the same 16 up columns (kernels.weight_format.interleave_gate_up)
    length   [B] int32, each in 0..S
    gamma    [K]: RMSNorm, norm(x) = x / sqrt(mean(x^2) + eps) * gamma (arXiv:1910.07467); None: norm(x) = x
    eps      of RMSNorm
    bias     [N], in the order of the weight's columns
    residual [B, S, N]: added to the result
    swiglu   the result is act(gate) * up (arXiv:2002.05202), N' columns
    act      of swiglu, by its name in `activation`
    softcap  if not 0, the result becomes softcap * tanh(result / softcap)
    last_only   the result has only the last valid token of each row
    coarse   norm(x) of the rows with more than FINE_TOKENS valid tokens is rounded (round_activations). The CPU kernels
             do this for integer weights without last_only, except with AMX

    Returns [B, S, N] float32, or [B, N] with last_only. Positions from length[b] on are unspecified: NaN here. With
    last_only, a row of length 0 is zero.

    Tolerance, relative to the largest magnitude in a row of the result without the residual: 1e-5 with float32 and
    bfloat16 weights, 2e-4 with integer weights (activations of 16 bits, or coarse), 2e-2 with AMX, which rounds
    activations and unpacked weights to bfloat16. With gamma and `coarse` 1e-2: a norm in float32 can differ in its last
    bit, and a value halfway between two steps then goes to the other one.
    """
    h = x.astype(np.float64)
    if gamma is not None:
        h = h / np.sqrt(np.mean(h * h, axis=-1, keepdims=True) + eps) * gamma
    if coarse:
        h = np.where(np.asarray(length)[:, None, None] > FINE_TOKENS, round_activations(h), h)
    y = h @ weight.T.astype(np.float64)
    if bias is not None:
        y = y + bias
    if swiglu:
        pairs = y.reshape(*y.shape[:-1], -1, 2, 16)
        gate, up = pairs[..., 0, :], pairs[..., 1, :]
        y = (activation(gate, act) * up).reshape(*y.shape[:-1], -1)
    y = soft_cap(y, softcap)
    if residual is not None:
        y = y + residual
    if last_only:
        rows = [y[b, n - 1] if n else np.zeros(y.shape[-1]) for b, n in enumerate(length)]
        return np.asarray(rows, np.float32)
    y[np.arange(x.shape[1]) >= np.asarray(length)[:, None]] = np.nan
    return y.astype(np.float32)


class LinearWeights(NamedTuple):
    """The weights of one linear layer of decoder_layer. Shapes as in `linear`."""

    weight: Array
    gamma: Array | None = None
    bias: Array | None = None


def decoder_layer(
    h: Array,
    start: Array,
    length: Array,
    cos: Array,
    sin: Array,
    k_cache: Array,
    v_cache: Array,
    qkv: LinearWeights,
    o: LinearWeights,
    gate_up: LinearWeights,
    down: LinearWeights,
    *,
    heads: int,
    scale: float,
    eps: float,
    window: int = 0,
    softcap: float = 0.0,
    query_beta: float = 0.0,
    query_period: int = 0,
    act: str = "silu",
    norm_eps: float = 0.0,
    attention_norm: Array | None = None,
    mlp_norm: Array | None = None,
    q_gamma: Array | None = None,
    k_gamma: Array | None = None,
    norm_after_rope: bool = False,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    coarse: bool = False,
) -> Array:
    """DecoderLayer: one block (arXiv:2302.13971), made of the operators above.

    h        [B, S, E] float32, row b is valid up to length[b]
    qkv, o, gate_up, down: the linear layers. qkv and gate_up have the gamma of the norm before them, if there is one.
             gate_up has the interleaved columns that `linear` needs for swiglu
    eps      of the norms before qkv and gate_up
    act      the activation of the MLP
    attention_norm, mlp_norm [E]: gammas of the norms of what attention and MLP add to h; None: no norm
    norm_eps eps of these norms, and of those of q and k
    coarse   of the four linear layers, as in `linear`
    the other parameters as in fused_attention, which MUTATES the caches

    Returns [B, S, E] float32. Positions from length[b] on are unspecified: NaN here.

    Tolerance: as in `linear`, relative to the largest magnitude in a row of the result minus h.
    """

    padding = np.arange(h.shape[1]) >= np.asarray(length)[:, None]

    def apply(x: Array, part: LinearWeights, **epilogue: Any) -> Array:
        x = np.where(padding[..., None], np.float32(0), x)  # unspecified; `linear` returns NaN there again
        return linear(x, part.weight, length, gamma=part.gamma, eps=eps, bias=part.bias, coarse=coarse, **epilogue)

    attended = fused_attention(
        apply(h, qkv), cos, sin, start, length, k_cache, v_cache,
        heads=heads, scale=scale, window=window, softcap=softcap, q_gamma=q_gamma, k_gamma=k_gamma, norm_eps=norm_eps,
        norm_after_rope=norm_after_rope, k_scale=k_scale, v_scale=v_scale,
        query_beta=query_beta, query_period=query_period,
    )  # fmt: skip

    def add(h: Array, x: Array, part: LinearWeights, gamma: Array | None) -> Array:
        if gamma is None:
            return apply(x, part, residual=h)
        return h + rms_norm(apply(x, part), gamma, norm_eps)

    h = add(h, attended, o, attention_norm)
    inner = apply(h, gate_up, swiglu=True, act=act)[..., : down.weight.shape[1]]
    return add(h, inner, down, mlp_norm)
