"""Matrices that a checkpoint joins: where the rows of q, k, v, gate and up are (Phi-3)."""

from __future__ import annotations

from collections.abc import Mapping

from ..network.config import LlamaConfig
from ..network.layer_sizes import linear_sizes

FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


def fused_parts(config: LlamaConfig) -> dict[str, tuple[str, ...]]:
    """Return each joined tensor of the checkpoint -> the weights that it contains, in the order of their rows."""
    layers = range(config.num_hidden_layers if config.family.fused else 0)
    return {
        f"model.layers.{layer}.{joined}.weight": tuple(f"model.layers.{layer}.{part}.weight" for part in parts)
        for layer in layers
        for joined, parts in FUSED.items()
    }


def fused_places(config: LlamaConfig) -> dict[str, tuple[str, int]]:
    """Return each weight that a joined tensor contains -> (the joined tensor, the weight's first row there)."""
    places = {}
    for joined, parts in fused_parts(config).items():
        first = 0
        for part in parts:
            places[part] = joined, first
            first += _rows(config, part)
    return places


def split_fused(
    found: Mapping[str, tuple[int, ...]], config: LlamaConfig
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[str, int]]]:
    """Replace joined tensors by the weights that they contain.

    A joined tensor whose rows do not match the config stays as it is; `account` then reports it.

    Args:
        found: name -> shape of the stored tensors.

    Returns:
        name -> shape of the weights; and name -> (stored tensor, first row) of those that are in a joined tensor.
    """
    split, places = dict(found), dict[str, tuple[str, int]]()
    everywhere = fused_places(config)
    for joined, parts in fused_parts(config).items():
        sizes = [_rows(config, part) for part in parts]
        if joined not in split or split[joined][0] != sum(sizes):
            continue
        _, *rest = split.pop(joined)
        split |= {part: (size, *rest) for part, size in zip(parts, sizes, strict=True)}
        places |= {part: everywhere[part] for part in parts}
    return split, places


def _rows(config: LlamaConfig, weight: str) -> int:
    return linear_sizes(config, weight.removesuffix(".weight"))[0]
