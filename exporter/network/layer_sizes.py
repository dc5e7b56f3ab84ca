"""Sizes that follow from the config: of each linear layer, and each layer's sliding window."""

from __future__ import annotations

from exporter.network.config import LlamaConfig


def linear_sizes(config: LlamaConfig, name: str) -> tuple[int, int, bool]:
    """(out_features, in_features, has_bias) of a checkpoint's linear layer, by the last part of its name."""
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


def windows(config: LlamaConfig, context: int) -> tuple[int, ...]:
    """Each layer's sliding window in a graph of that cache capacity: 0 where there is none, or it is never passed."""
    return tuple(0 if window >= context else window for window in config.windows)
