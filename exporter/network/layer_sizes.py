"""Sizes that follow from the config: of each linear layer, and each layer's sliding window."""

from __future__ import annotations

from .config import LlamaConfig


def linear_sizes(config: LlamaConfig, name: str) -> tuple[int, int, bool]:
    """Return (out_features, in_features, has_bias) of a linear layer.

    Args:
        name: the checkpoint's name of the layer, for example model.layers.0.self_attn.q_proj; only its last part
            counts.
    """
    heads, groups = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    return {
        "q_proj": (heads, hidden, config.qkv_bias),
        "k_proj": (groups, hidden, config.qkv_bias),
        "v_proj": (groups, hidden, config.qkv_bias),
        "o_proj": (hidden, heads, config.attention_bias),
        "gate_proj": (inner, hidden, config.mlp_bias),
        "up_proj": (inner, hidden, config.mlp_bias),
        "down_proj": (hidden, inner, config.mlp_bias),
    }[name.rpartition(".")[2]]


def layer_norms(config: LlamaConfig) -> dict[str, int]:
    """Return the norms of a layer: their name in the checkpoint -> their size, in elements."""
    found = dict.fromkeys(config.family.norms.values(), config.hidden_size)
    if (norm := config.family.qk_norm) is not None:
        dim = config.head_dim
        found[f"self_attn.{norm.q}"] = config.num_attention_heads * dim if norm.whole else dim
        found[f"self_attn.{norm.k}"] = config.num_key_value_heads * dim if norm.whole else dim
    return found


def windows(config: LlamaConfig, context: int) -> tuple[int, ...]:
    """Return the sliding window of each layer in a graph with this cache capacity.

    A window is 0 if the layer has none, or if the cache is too small for the window to matter.
    """
    return tuple(0 if window >= context else window for window in config.windows)
