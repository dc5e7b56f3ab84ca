"""Compute the network in float32, independently of every exported graph: with transformers, or else with numpy.

transformers is used if torch is installed and the memory suffices. The numpy version processes all tokens layer by
layer and reads a block of rows at a time, so it can check a model that is much larger than the memory.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgellama.kernels.reference import activation, fused_attention, soft_cap

from ..checkpoint.base import Checkpoint
from ..checkpoint.folded import folded
from ..checkpoint.fused import fused_parts
from ..checkpoint.row_blocks import tensor_pieces
from ..network.family import POST_ATTENTION, POST_MLP, PRE_ATTENTION, PRE_MLP
from ..network.rope import query_scale, rope_kinds, rope_tables
from ..writing.tensor_stream import made_in_order

Floats = NDArray[np.float32]
Model = Callable[[NDArray[np.int32], list[int]], Floats]  # (tokens [n], positions) -> logits [len(positions), V]


def reference_logits(checkpoint: Checkpoint, tokens: NDArray[np.int32], positions: list[int]) -> tuple[Floats, str]:
    """Return (logits float32 [len(positions), V], the reference's name).

    tokens [n]: one sequence, which starts with an empty cache. Row i of the logits follows tokens[0..positions[i]].
    """
    model, name = reference_model(checkpoint)
    return model(tokens, positions), name


def reference_model(checkpoint: Checkpoint) -> tuple[Model, str]:
    """Return (the network as a function of (tokens, positions), the reference's name), to compute several sequences."""
    needed = sum(4 * int(np.prod(checkpoint.shape(name))) for name in checkpoint.names())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Folded weights are those of another network than the config's.
    if not checkpoint.is_folded and importlib.util.find_spec("torch") and needed < memory // 3:
        return _transformers(checkpoint), "transformers float32"
    return functools.partial(_numpy, checkpoint), "numpy float32"


def _transformers(checkpoint: Checkpoint) -> Model:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(**checkpoint.config.reference_dict)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    state = {name: torch.from_numpy(np.array(checkpoint.tensor(name))) for name in checkpoint.names()}
    for joined, parts in fused_parts(checkpoint.config).items():
        state[joined] = torch.cat([state.pop(part) for part in parts])
    loaded = model.load_state_dict(state, strict=False, assign=True)
    if loaded.unexpected_keys or set(loaded.missing_keys) - {"lm_head.weight"}:
        raise RuntimeError(f"transformers' {type(model).__name__} has other weights than this exporter: {loaded}")
    model.tie_weights()
    # Buffers are not in the checkpoint, and a module created on "meta" has no values for them.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    embedding = model.model.embed_tokens
    if hasattr(embedding, "embed_scale"):
        embedding.embed_scale = torch.tensor(embedding.scalar_embed_scale)
    model.eval()

    def logits(tokens: NDArray[np.int32], positions: list[int]) -> Floats:
        with torch.no_grad():
            # Only the head computes `positions`; it is the whole model's, with its scaling and soft cap.
            ids = torch.from_numpy(tokens.astype(np.int64))[None]
            return np.asarray(model(ids, logits_to_keep=torch.tensor(positions)).logits[0].numpy())

    return logits


def _numpy(checkpoint: Checkpoint, tokens: NDArray[np.int32], positions: list[int]) -> Floats:
    checkpoint = folded(checkpoint)
    config, read = checkpoint.config, checkpoint.tensor
    norms, eps = config.family.norms, config.stream_norm_eps
    linear = functools.partial(_linear, checkpoint=checkpoint)
    table = "model.embed_tokens.weight"
    h = np.concatenate([checkpoint.rows(table, token, 1) for token in tokens.tolist()])  # [n, E]
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"

        def norm(x: Floats, place: str, eps: float, layer: str = layer) -> Floats:
            return _rms_norm(x, read(f"{layer}.{norms[place]}.weight"), eps) if place in norms else x

        x = norm(h, PRE_ATTENTION, eps)
        qkv = np.concatenate([linear(x, f"{layer}.self_attn.{p}_proj", config.qkv_bias) for p in "qkv"], axis=-1)
        attended = linear(_attention(checkpoint, i, qkv), f"{layer}.self_attn.o_proj", config.attention_bias)
        h = h + norm(attended, POST_ATTENTION, config.rms_norm_eps)
        x = norm(h, PRE_MLP, eps)
        bias = config.mlp_bias
        gate, up = (linear(x, f"{layer}.mlp.{p}_proj", bias) for p in ("gate", "up"))
        inner = activation(gate, config.hidden_act) * up
        h = h + norm(linear(inner, f"{layer}.mlp.down_proj", bias), POST_MLP, config.rms_norm_eps)
    h = _rms_norm(h[positions], read("model.norm.weight"), eps)
    logits = linear(h, "model.embed_tokens" if config.tie_word_embeddings else "lm_head", False)
    return soft_cap(logits, config.final_logit_softcapping)


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


def _rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight


def _linear(x: Floats, name: str, bias: bool, checkpoint: Checkpoint) -> Floats:
    blocks = made_in_order((0, piece) for piece in tensor_pieces(f"{name}.weight", checkpoint))
    y = np.concatenate([x @ rows.T for _, rows in blocks], axis=-1)
    return y + checkpoint.tensor(f"{name}.bias") if bias else y
