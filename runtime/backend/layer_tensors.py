"""The tensors of one decoder layer in weights.safetensors, in the order in which its kernel reads them.

The kernel gets them as one range of bytes. So the runtime compares their names, dtypes and shapes before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edgellama.kernels.weight_format import PANEL, panel_bytes, panel_count, round_up

from ..artifact.manifest import TensorSpec
from ..errors import UserError
from ..mindir.cpu import FORMATS

SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "intermediate_size")


def layer_tensors(config: Mapping[str, Any], weights: str, below: str, present: Collection[str]) -> list[TensorSpec]:
    """Return the tensors of a layer.

    Args:
        config: the Hugging Face config of the manifest.
        weights: the manifest's weights_format.
        below: begins the names, for example "model.layers.0.".
        present: the names of the file's tensors. It decides only which biases there are.

    Raises:
        UserError: the config lacks a size, or the format of the weights is not known.
    """
    missing = [name for name in SIZES if name not in config]
    if missing:
        raise UserError(f"config.{missing[0]} is missing in manifest.json. Export again with this release")
    if weights not in FORMATS:
        raise UserError(f"weights_format is {weights!r}; needed: one of {', '.join(FORMATS)}. Export again")
    heads, groups, width, hidden, inner = (config[name] for name in SIZES)
    found: list[TensorSpec] = []
    for name, outer, columns, norm in (
        ("self_attn.qkv_proj", (heads + 2 * groups) * width, hidden, "input_layernorm"),
        ("self_attn.o_proj", hidden, heads * width, None),
        ("mlp.gate_up_proj", 2 * round_up(inner, PANEL), hidden, "post_attention_layernorm"),
        ("mlp.down_proj", hidden, inner, None),
    ):
        panels = panel_count(outer)
        found.append(TensorSpec(f"{below}{name}.weight", "uint8", (panels, panel_bytes(FORMATS[weights], columns))))
        if norm:
            found.append(TensorSpec(f"{below}{norm}.weight", "float32", (columns,)))
        if f"{below}{name}.bias" in present:
            found.append(TensorSpec(f"{below}{name}.bias", "float32", (panels * PANEL,)))
    return found
