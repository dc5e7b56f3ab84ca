"""Read the keys of a config.json that only one architecture has; used by the rows of family.FAMILIES.

A reader returns fields of LlamaConfig. The values are those of a config.json with defaults, without keys that are null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellama.errors import UserError, shown

from .config_types import CORRECT
from .windows import FULL, every_nth_is_full

Values = Mapping[str, Any]
EXAONE_WINDOWS = every_nth_is_full(4)


def granite(values: Values) -> dict[str, Any]:
    """Granite multiplies embeddings, residuals and scores, and divides logits."""
    return {
        "embedding_multiplier": values["embedding_multiplier"],
        "residual_multiplier": values["residual_multiplier"],
        "logits_multiplier": 1 / values["logits_scaling"],
        "attention_scale": values["attention_multiplier"],
    }


def minicpm(values: Values) -> dict[str, Any]:
    """MiniCPM 1 and 2 (arXiv:2404.06395): the depth determines the multiplier of residuals, and the width of logits."""
    return {
        "embedding_multiplier": values["scale_emb"],
        "residual_multiplier": values["scale_depth"] / values["num_hidden_layers"] ** 0.5,
        "logits_multiplier": values["dim_model_base"] / values["hidden_size"],
    }


def minicpm_as_granite(values: Values) -> dict[str, Any]:
    """Return the config.json of the Granite that computes the same."""
    read = minicpm(values)
    head_dim = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    kept = {key: value for key, value in values.items() if key not in ("scale_emb", "scale_depth", "dim_model_base")}
    return {
        **kept,
        "model_type": "granite",
        "architectures": ["GraniteForCausalLM"],
        "embedding_multiplier": read["embedding_multiplier"],
        "residual_multiplier": read["residual_multiplier"],
        "logits_scaling": 1 / read["logits_multiplier"],
        "attention_multiplier": head_dim**-0.5,
    }


def pangu(values: Values) -> dict[str, Any]:
    """openPangu-Embedded: `bias` means biases of the q, k, v and o projections."""
    return {"attention_bias": values.get("bias", False)}


def pangu_as_llama(values: Values) -> dict[str, Any]:
    """Return the config.json of the Llama that computes the same."""
    kept = {key: value for key, value in values.items() if key != "bias"}
    return {**kept, "model_type": "llama", "architectures": ["LlamaForCausalLM"], **pangu(values)}


def exaone_as_llama(values: Values) -> dict[str, Any]:
    """EXAONE 3 is a Llama with other names of keys and tensors. Return the config.json of that Llama."""
    return {**values, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def internlm3(values: Values) -> dict[str, Any]:
    """InternLM3's own names are qkv_bias and bias; its class in transformers takes equal values only."""
    attention = values.get("attention_bias", values.get("qkv_bias", False))
    mlp = values.get("mlp_bias", values.get("bias", False))
    if attention != mlp:
        raise UserError(
            f"qkv_bias = {attention} and bias = {mlp} in the config; this release exports models where they are equal. "
            f"{CORRECT}"
        )
    return {"attention_bias": attention, "mlp_bias": mlp}


def smollm3(values: Values) -> dict[str, Any]:
    """In no_rope_layers, 1 means a layer with a rotary embedding, as in transformers."""
    layers, interval = values["num_hidden_layers"], values["no_rope_layer_interval"]
    rotated = values.get("no_rope_layers") or [int((layer + 1) % interval != 0) for layer in range(layers)]
    if len(rotated) != layers or any(rotates not in (0, 1) for rotates in rotated):
        raise UserError(
            f"no_rope_layers = {shown(rotated)} in the config must have 0 or 1 for each of {layers} layers. {CORRECT}"
        )
    return {"layers_without_rope": tuple(layer for layer in range(layers) if not rotated[layer])}


def exaone4(values: Values) -> dict[str, Any]:
    """Layers without a window have no rotary embedding, unless no layer has a window."""
    window, kinds = EXAONE_WINDOWS(values)
    layers = range(values["num_hidden_layers"])
    return {"layers_without_rope": tuple(i for i in layers if window and kinds[i] == FULL)}


def gemma(values: Values) -> dict[str, Any]:
    """Gemma multiplies embeddings by sqrt(hidden size). "gelu" in early configs means its tanh approximation."""
    act = values.get("hidden_activation") or values.get("hidden_act") or "gelu_pytorch_tanh"
    return {
        "embedding_multiplier": values["hidden_size"] ** 0.5,
        "hidden_act": "gelu_pytorch_tanh" if act == "gelu" else act,
    }


def gemma2(values: Values) -> dict[str, Any]:
    """Gemma 2 and 3 have their own scale of scores, and may bound scores and logits."""
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    return {
        **gemma(values),
        "attention_scale": values["query_pre_attn_scalar"] ** -0.5,
        **{key: values[key] for key in caps if key in values},
    }
