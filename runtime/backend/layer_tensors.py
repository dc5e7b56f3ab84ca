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

# model_type -> the norms before attention, after it, before the MLP and after it; other architectures have Llama's.
BEFORE = "input_layernorm", None, "post_attention_layernorm", None
AFTER = None, "post_attention_layernorm", None, "post_feedforward_layernorm"
BOTH = "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
NORMS = {"olmo2": AFTER, "olmo3": AFTER, "exaone4": AFTER, "gemma2": BOTH, "gemma3_text": BOTH}
# model_type -> the norms of queries and keys, and whether one norm spans all heads.
HEAD_NORMS = {
    **dict.fromkeys(("qwen3", "exaone4", "gemma3_text"), ("q_norm", "k_norm", False)),
    **dict.fromkeys(("olmo2", "olmo3"), ("q_norm", "k_norm", True)),
    "hunyuan_v1_dense": ("query_layernorm", "key_layernorm", False),
}
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

    def add(norm: str | None, size: int) -> None:
        if norm:
            found.append(TensorSpec(f"{below}{norm}.weight", "float32", (size,)))

    before_attention, after_attention, before_mlp, after_mlp = NORMS.get(str(config.get("model_type")), BEFORE)
    for name, outer, columns, before, after in (
        ("self_attn.qkv_proj", (heads + 2 * groups) * width, hidden, before_attention, None),
        ("self_attn.o_proj", hidden, heads * width, None, after_attention),
        ("mlp.gate_up_proj", 2 * round_up(inner, PANEL), hidden, before_mlp, None),
        ("mlp.down_proj", hidden, inner, None, after_mlp),
    ):
        panels = panel_count(outer)
        found.append(TensorSpec(f"{below}{name}.weight", "uint8", (panels, panel_bytes(FORMATS[weights], columns))))
        add(before, columns)
        if f"{below}{name}.bias" in present:
            found.append(TensorSpec(f"{below}{name}.bias", "float32", (panels * PANEL,)))
        if name == "self_attn.qkv_proj" and (norms := HEAD_NORMS.get(str(config.get("model_type")))):
            add(f"self_attn.{norms[0]}", width * (heads if norms[2] else 1))
            add(f"self_attn.{norms[1]}", width * (groups if norms[2] else 1))
        add(after, hidden)
    return found
