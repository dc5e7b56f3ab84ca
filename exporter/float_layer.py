"""A decoder layer in float32 with numpy, over a folded checkpoint, some rows of a matrix at a time.

The proof compares artifacts with it, and a calibrated export observes the inputs of its matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgellama.kernels.reference import activation, fused_attention, rms_norm

from .checkpoint.base import Checkpoint
from .network.family import POST_ATTENTION, POST_MLP, PRE_ATTENTION, PRE_MLP
from .network.rope import query_scale, rope_kinds, rope_tables

Floats = NDArray[np.float32]
Blocks = Callable[[str], Iterable[Floats]]  # a matrix's name -> blocks of its rows, in order


def decoder_layer(
    checkpoint: Checkpoint,
    layer: int,
    h: Floats,
    length: int,
    blocks: Blocks,
    before: Callable[[Sequence[str], Floats], None] = lambda names, x: None,
) -> Floats:
    """Return the output of a layer, [n * length, E], for n sequences with empty caches.

    Args:
        checkpoint: folded. Gives the norms and the biases.
        h: the layer's input, [n * length, E]: one sequence after another.
        length: tokens of each sequence.
        blocks: gives the matrices, as blocks of rows [rows, K]; those of gate and up have equal rows.
        before: called with the names of the matrices that take an input, and the input [n * length, K], before the
            first product with one of them.
    """
    config, name = checkpoint.config, f"model.layers.{layer}"

    def norm(x: Floats, place: str, eps: float) -> Floats:
        norms = config.family.norms
        if place not in norms:
            return x
        return np.asarray(rms_norm(x, checkpoint.tensor(f"{name}.{norms[place]}.weight"), eps), np.float32)

    def bias(matrix: str, has_bias: bool) -> Floats | None:
        return checkpoint.tensor(f"{matrix}.bias") if has_bias else None

    def linear(x: Floats, matrix: str, has_bias: bool) -> Floats:
        y = np.concatenate([x @ rows.T for rows in blocks(f"{matrix}.weight")], axis=-1)
        added = bias(matrix, has_bias)
        return y if added is None else y + added

    x = norm(h, PRE_ATTENTION, config.stream_norm_eps)
    parts = [f"{name}.self_attn.{part}_proj" for part in "qkv"]
    before([f"{part}.weight" for part in parts], x)
    qkv = np.concatenate([linear(x, part, config.qkv_bias) for part in parts], axis=-1)
    x = np.concatenate([_attention(checkpoint, layer, one) for one in qkv.reshape(-1, length, qkv.shape[-1])])
    del qkv
    before([f"{name}.self_attn.o_proj.weight"], x)
    attended = linear(x, f"{name}.self_attn.o_proj", config.attention_bias)
    h = h + norm(attended, POST_ATTENTION, config.rms_norm_eps)

    x = norm(h, PRE_MLP, config.stream_norm_eps)
    gate, up = (f"{name}.mlp.{part}_proj" for part in ("gate", "up"))
    before([f"{gate}.weight", f"{up}.weight"], x)
    inner, first = np.empty((len(x), config.intermediate_size), np.float32), 0
    gate_bias, up_bias = bias(gate, config.mlp_bias), bias(up, config.mlp_bias)
    for gate_rows, up_rows in zip(blocks(f"{gate}.weight"), blocks(f"{up}.weight"), strict=True):
        end = first + len(gate_rows)
        a, b = x @ gate_rows.T, x @ up_rows.T
        if gate_bias is not None and up_bias is not None:
            a, b = a + gate_bias[first:end], b + up_bias[first:end]
        inner[:, first:end], first = activation(a, config.hidden_act) * b, end
    before([f"{name}.mlp.down_proj.weight"], inner)
    return h + norm(linear(inner, f"{name}.mlp.down_proj", config.mlp_bias), POST_MLP, config.rms_norm_eps)


def _attention(checkpoint: Checkpoint, layer: int, qkv: Floats) -> Floats:
    """Return the attention of one sequence with an empty cache: qkv [n, (H + 2G) * D] -> [n, H * D]."""
    config, count = checkpoint.config, len(qkv)
    heads, groups, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    cos, sin = rope_tables(config, count, rope_kinds(config)[layer])
    norm, gammas = config.family.qk_norm, {}
    if norm is not None:
        names = {"q_gamma": norm.q, "k_gamma": norm.k}
        gammas = {
            key: checkpoint.tensor(f"model.layers.{layer}.self_attn.{name}.weight") for key, name in names.items()
        }
    beta, period = query_scale(config) or (0.0, 0)
    caches = (np.zeros((1, groups, count, dim), np.float32) for _ in range(2))
    start, length = np.zeros(1, np.int32), np.full(1, count, np.int32)
    return fused_attention(
        qkv[None],
        cos,
        sin,
        start,
        length,
        *caches,
        heads=heads,
        scale=config.scale,
        window=config.windows[layer],
        softcap=config.attn_logit_softcapping or 0.0,
        query_beta=beta,
        query_period=period,
        norm_eps=config.rms_norm_eps,
        norm_after_rope=norm is not None and norm.after_rope,
        **gammas,
    )[0]
