"""Recognizes models that are no dense decoder near Llama, so that a message says what they are and what to use instead.

The data are what published config.json files have. A model that none of the tables knows is refused by its model_type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgellama.errors import shown

_EXPERTS, _HYBRID, _MULTIMODAL = "a mixture of experts model", "a hybrid model", "a multimodal model"
_LATENT = "a model with multi-head latent attention"
_SINKS = "a model with learned attention sinks"
_LAYER_NORM = "a model with LayerNorm"
_UNEVEN = "a model whose layers have different sizes"
_WHY = {
    _EXPERTS: "each token would run other matrices, and the graphs are fixed. Choose a dense model",
    _HYBRID: "its recurrent state has no place in the KV cache. Choose a model with attention in every layer",
    _MULTIMODAL: "the graphs take token ids only. If the text model is published on its own, export that",
    _LATENT: "the KV cache holds keys and values, not what they are computed from. Choose a model with grouped queries",
    _SINKS: "the attention of the kernels has no keys and values but those of tokens. Choose a model without them",
    _LAYER_NORM: "the kernels have RMSNorm. Choose a model with RMSNorm, such as a newer one of the same publisher",
    _UNEVEN: "one kernel serves all layers. Choose a model with equal layers",
}
# Parts of model_type -> what the model is.
_TYPES = (
    (re.compile(r"moe|mixtral|deepseek_v[23]|gpt_oss|llama4|dbrx"), _EXPERTS),
    (re.compile(r"mamba|jamba|bamba|zamba|rwkv|hybrid|falcon_h1|lfm2|recurrent|qwen3_next|nemotron_h"), _HYBRID),
    (re.compile(r"_vl|llava|vision|omni|audio|mllama|gemma3$|gemma3n|mistral3|pixtral|multimodal|paligemma|internvl"),
     _MULTIMODAL),
    (re.compile(r"minicpm3|deepseek_mla"), _LATENT),
    (re.compile(r"nemotron.nas|openelm"), _UNEVEN),
    (re.compile(r"^(gpt2|gpt_?j|gpt_neox?|gpt_bigcode|opt|bloom|falcon|mpt|phi|stablelm|starcoder2|cohere2?|codegen|olmo)$"),
     _LAYER_NORM),
)  # fmt: skip
# Keys -> what the model is, if they have another value than null, false, 0, 1 and "nothing of it".
_KEYS = {
    "num_experts": _EXPERTS,
    "num_local_experts": _EXPERTS,
    "n_routed_experts": _EXPERTS,
    "vision_config": _MULTIMODAL,
    "audio_config": _MULTIMODAL,
    "ssm_cfg": _HYBRID,
    "kv_lora_rank": _LATENT,
    "qk_nope_dim": _SINKS,
    "param_sink_number": _SINKS,
    "block_configs": _UNEVEN,
}
# Whole model_type -> what the model is, and what to use instead.
_MODELS = {
    "hunyuan": (
        "the first layout of Hunyuan, which needs code of its own",
        "Choose one whose model_type is 'hunyuan_v1_dense', such as tencent/Hunyuan-7B-Instruct",
    ),
    "internlm2": (
        "InternLM 2, which needs code of its own",
        "Choose a copy of it that was converted to Llama, or InternLM 3 (model_type 'internlm3')",
    ),
    "qwen": (
        "the first Qwen, which needs code of its own",
        "Choose Qwen2.5 (model_type 'qwen2') or Qwen3 (model_type 'qwen3')",
    ),
    "baichuan": (
        "Baichuan, which needs code of its own",
        "Choose a copy of it that was converted to Llama",
    ),
}


def other_kind(hf: Mapping[str, Any], known: bool) -> str | None:
    """Return why a config.json describes another kind of model, with the remedy; None if nothing says so.

    known: its model_type is one of family.FAMILIES, so only other keys can say so.
    """
    kind = hf.get("model_type")
    found = next((what for key, what in _KEYS.items() if hf.get(key) not in (None, False, 0, 1)), None)
    if not known and isinstance(kind, str):
        found = next((what for pattern, what in _TYPES if pattern.search(kind)), found)
        if found is None and kind in _MODELS:
            what, remedy = _MODELS[kind]
            return f"model_type {shown(kind)} is {what}, and this release runs no code of checkpoints. {remedy}"
    if found is None:
        return None
    return f"model_type {shown(kind)} is {found}, which is not supported: {_WHY[found]}"
