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

from edgellama.kernels.reference import fused_attention

from ..checkpoint.base import Checkpoint
from ..checkpoint.row_blocks import tensor_pieces
from ..network.rope import rope_tables
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
    if importlib.util.find_spec("torch") and needed < memory // 3:
        return _transformers(checkpoint), "transformers float32"
    return functools.partial(_numpy, checkpoint), "numpy float32"


def _transformers(checkpoint: Checkpoint) -> Model:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**checkpoint.config.to_dict()))
    state = {name: torch.from_numpy(np.array(checkpoint.tensor(name))) for name in checkpoint.names()}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    # The rotary frequencies are not in the checkpoint, and the module created on "meta" has no values for them.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    model.eval()

    def logits(tokens: NDArray[np.int32], positions: list[int]) -> Floats:
        with torch.no_grad():
            hidden = model.model(torch.from_numpy(tokens.astype(np.int64))[None]).last_hidden_state[0, positions]
            return np.asarray(model.lm_head(hidden).numpy())

    return logits


def _numpy(checkpoint: Checkpoint, tokens: NDArray[np.int32], positions: list[int]) -> Floats:
    config, read = checkpoint.config, checkpoint.tensor
    linear = functools.partial(_linear, checkpoint=checkpoint)
    heads, groups, dim, count = (
        config.num_attention_heads, config.num_key_value_heads, config.head_dim, len(tokens)
    )  # fmt: skip
    cos, sin = rope_tables(config, count)
    table = "model.embed_tokens.weight"
    h = np.concatenate([checkpoint.rows(table, token, 1) for token in tokens.tolist()])  # [n, E]
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        x = _rms_norm(h, read(f"{layer}.input_layernorm.weight"), config.rms_norm_eps)
        qkv = np.concatenate([linear(x, f"{layer}.self_attn.{p}_proj", config.qkv_bias) for p in "qkv"], axis=-1)
        caches = (np.zeros((1, groups, count, dim), np.float32) for _ in range(2))
        start, length = np.zeros(1, np.int32), np.full(1, count, np.int32)
        attended = fused_attention(
            qkv[None], cos, sin, start, length, *caches, heads=heads, scale=dim**-0.5, window=config.windows[i]
        )[0]
        h = h + linear(attended, f"{layer}.self_attn.o_proj", config.attention_bias)
        x = _rms_norm(h, read(f"{layer}.post_attention_layernorm.weight"), config.rms_norm_eps)
        bias = config.mlp_bias
        gate, up = (linear(x, f"{layer}.mlp.{p}_proj", bias) for p in ("gate", "up"))
        h = h + linear(gate / (1 + np.exp(-gate)) * up, f"{layer}.mlp.down_proj", bias)
    h = _rms_norm(h[positions], read("model.norm.weight"), config.rms_norm_eps)
    return linear(h, "model.embed_tokens" if config.tie_word_embeddings else "lm_head", False)


def _rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight


def _linear(x: Floats, name: str, bias: bool, checkpoint: Checkpoint) -> Floats:
    blocks = made_in_order((0, piece) for piece in tensor_pieces(f"{name}.weight", checkpoint))
    y = np.concatenate([x @ rows.T for _, rows in blocks], axis=-1)
    return y + checkpoint.tensor(f"{name}.bias") if bias else y
