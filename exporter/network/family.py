"""The architectures that can be exported, as data: how each differs from Llama, and how its config.json says so.

A new architecture near Llama is one row of FAMILIES, with a reader if its config has keys of its own. Defaults are
those that transformers uses for keys that a config.json lacks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edgellama.errors import UserError, shown

from .family_readers import (
    EXAONE_WINDOWS,
    Values,
    exaone4,
    exaone_as_llama,
    gemma,
    gemma2,
    granite,
    internlm3,
    minicpm,
    minicpm_as_granite,
    pangu,
    pangu_as_llama,
    smollm3,
)
from .other_kinds import other_kind
from .windows import Windows, every_nth_is_full, mistral_windows, qwen_windows, smollm3_windows

# The norms of a layer: their place in the network -> their name in the checkpoint.
PRE_ATTENTION, POST_ATTENTION, PRE_MLP, POST_MLP = "pre_attention", "post_attention", "pre_mlp", "post_mlp"
PRE_NORMS = {PRE_ATTENTION: "input_layernorm", PRE_MLP: "post_attention_layernorm"}
POST_NORMS = {POST_ATTENTION: "post_attention_layernorm", POST_MLP: "post_feedforward_layernorm"}
BOTH_NORMS = {PRE_ATTENTION: "input_layernorm", PRE_MLP: "pre_feedforward_layernorm", **POST_NORMS}


class QKNorm(NamedTuple):
    """RMSNorm of the queries and of the keys.

    Attributes:
        q, k: the names of the norms in the checkpoint.
        whole: one norm spans all heads of a token. If not, each head has its own norm, with shared weights [D].
        after_rope: the norms follow the rotary embedding.
    """

    q: str = "q_norm"
    k: str = "k_norm"
    whole: bool = False
    after_rope: bool = False


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        architecture: the name of its class.
        alias: the name that transformers saves, if it uses another class.
        keys: the keys of its config.json that not every architecture has.
        unused: matches the keys that its published configs have and its class does not use.
        fixed: keys that its published configs have, and the only values that its class implements.
        defaults: the values of keys that a config.json lacks.
        qkv_bias: q, k and v always have biases. If not, the key attention_bias decides.
        norms: the norms of a layer, PRE_NORMS, POST_NORMS or BOTH_NORMS.
        norm_offset: is added to every weight of a norm.
        qk_norm: the norms of queries and keys, if it has them.
        fused: the checkpoint joins q, k and v in qkv_proj, and gate and up in gate_up_proj.
        local_theta: the key with the rope_theta of layers with a window, and its default. These layers have no scaling.
            An empty key: the same rope_theta. None: all layers have the same rotary embedding.
        dynamic_rope: what the rope type "dynamic" means if it has the parameter alpha.
        read: returns fields of LlamaConfig from the values of a config.json, for keys that need more than renaming.
        windows: returns (sliding_window, the kind of each layer) from these values; None: no layer has a window.
        stand_in: for an architecture that transformers does not have. Returns the config.json of an equal network of
            another architecture, given the values of this one.
        renamed: keys of its published config.json that Llama has under another name.
        tensors: (regular expression, replacement): how its published names of tensors become Llama's, in turn.
    """

    architecture: str
    keys: frozenset[str] = frozenset()
    defaults: Values = field(default_factory=dict)
    qkv_bias: bool = False
    norms: Mapping[str, str] = field(default_factory=lambda: PRE_NORMS)
    norm_offset: float = 0.0
    qk_norm: QKNorm | None = None
    fused: bool = False
    local_theta: tuple[str, float] | None = None
    dynamic_rope: str = "dynamic"
    read: Callable[[Values], dict[str, Any]] = lambda values: {}
    windows: Callable[[Values], Windows] | None = None
    stand_in: Callable[[Values], dict[str, Any]] | None = None
    alias: str = ""
    unused: str = ""
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    tensors: tuple[tuple[str, str], ...] = ()

    def with_our_keys(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config.json whose keys have Llama's names."""
        other = {self.renamed[key]: value for key, value in hf.items() if key in self.renamed}
        return {**other, **{key: value for key, value in hf.items() if key not in self.renamed}}

    def tensor_name(self, published: str) -> str:
        """Return Llama's name of a tensor."""
        for pattern, replacement in self.tensors:
            published = re.sub(pattern, replacement, published)
        return published

    def may_be_null(self, key: str) -> bool:
        """Whether null in a config.json is not the default of the key."""
        return key not in self.defaults or key in _NONE

    def may_ignore(self, key: str, value: Any) -> bool:
        """Whether a key that is not one of `keys` changes nothing."""
        if key == "auto_map" and isinstance(value, dict):  # code that the class in transformers has replaced
            return str(value.get("AutoModelForCausalLM")).rpartition(".")[2] in (self.architecture, self.alias)
        return key in self.fixed or re.fullmatch(self.unused, key) is not None

    def other_values(self, hf: Mapping[str, Any]) -> list[str]:
        """Return why keys with other values than the fixed ones are refused."""
        return [
            f"{key} = {shown(hf[key])} is not supported; this release exports {allowed[0]!r} only. Choose another model"
            for key, allowed in self.fixed.items()
            if hf.get(key) is not None and hf[key] not in allowed
        ]


# Keys whose null means none: no window, no cap, no token; or as many KV heads as heads.
_NONE = (
    "sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "num_key_value_heads",
    "head_dim",
    "bos_token_id",
    "eos_token_id",
)


def _keys(names: str) -> frozenset[str]:
    return frozenset(names.split())


_QWEN_KEYS = _keys("sliding_window use_sliding_window max_window_layers layer_types")
_QWEN_DEFAULTS = {"sliding_window": 4096, "num_key_value_heads": 32, "max_window_layers": 28}
_GEMMA_KEYS = _keys("attention_bias hidden_activation")
_GEMMA2_KEYS = _GEMMA_KEYS | _keys(
    "query_pre_attn_scalar sliding_window layer_types attn_logit_softcapping final_logit_softcapping"
)
_GEMMA_DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256, "bos_token_id": 2, "eos_token_id": 1}
_GEMMA2_DEFAULTS = {**_GEMMA_DEFAULTS, "query_pre_attn_scalar": 256, "sliding_window": 4096}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", _keys("attention_bias mlp_bias")),
    "mistral": Family(
        "MistralForCausalLM",
        _keys("sliding_window"),
        defaults={"sliding_window": 4096, "num_key_value_heads": 8, "bos_token_id": 1, "eos_token_id": 2},
        windows=mistral_windows,
    ),
    "qwen2": Family("Qwen2ForCausalLM", _QWEN_KEYS, _QWEN_DEFAULTS, qkv_bias=True, windows=qwen_windows),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _QWEN_KEYS | {"attention_bias"},
        {**_QWEN_DEFAULTS, "head_dim": 128},
        qk_norm=QKNorm(),
        windows=qwen_windows,
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        _keys("attention_bias mlp_bias sliding_window use_sliding_window max_window_layers layer_types no_rope_layers")
        | {"no_rope_layer_interval"},
        {"no_rope_layer_interval": 4, "num_key_value_heads": 4, "tie_word_embeddings": True},
        read=smollm3,
        windows=smollm3_windows,
    ),
    "granite": Family(
        "GraniteForCausalLM",
        _keys("attention_bias mlp_bias embedding_multiplier residual_multiplier logits_scaling attention_multiplier"),
        {
            **{"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0},
            **{"attention_multiplier": 1.0, "bos_token_id": 1, "eos_token_id": 2},
        },
        read=granite,
    ),
    "minicpm": Family(
        "MiniCPMForCausalLM",
        _keys("attention_bias scale_emb scale_depth dim_model_base"),
        {"scale_emb": 1, "scale_depth": 1, "dim_model_base": 1, "tie_word_embeddings": True},
        read=minicpm,
        stand_in=minicpm_as_granite,
        unused="mup_denominator",  # of the initialization
    ),
    "PanguEmbedded": Family("PanguEmbeddedForCausalLM", _keys("bias"), read=pangu, stand_in=pangu_as_llama),
    "hunyuan_v1_dense": Family(
        "HunYuanDenseV1ForCausalLM",
        _keys("attention_bias"),
        qk_norm=QKNorm("query_layernorm", "key_layernorm", after_rope=True),
        dynamic_rope="ntk_alpha",
        unused=r"(anyres|cla|im|image|mask|moe|text|topk|video|vit)_\w+|attention_head_dim|class_num|dense_list|n_group"
        r"|eod_token_id|group_limited_greedy|norm_topk_prob|num_media_embeds|num_shared_expert|org_vocab_size|pad_id"
        r"|pool_type|routed_scaling_factor|skip_cls_token|unpad_\w+|use_vit|enable_lm_head_fp32",
        fixed={
            **{
                "use_qk_norm": (True,),
                "use_rotary_pos_emb": (True,),
                "norm_type": ("rms", "hf_rms"),
                "num_experts": (1,),
            },
            **{"use_mixed_mlp_moe": (False,), "position_embedding_xdrope": (False,), "mlp_bias": (False,)},
            "add_classification_head": (False,),
        },
    ),
    "internlm3": Family(
        "InternLM3ForCausalLM",
        _keys("attention_bias mlp_bias bias qkv_bias"),
        {"head_dim": 128},
        read=internlm3,
        alias="LlamaForCausalLM",
    ),
    "exaone": Family(
        "ExaoneForCausalLM",
        _keys("attention_bias mlp_bias"),
        {
            **{"rope_theta": 500000.0, "num_key_value_heads": 8, "rms_norm_eps": 1e-5},
            **{"bos_token_id": 1, "eos_token_id": 361, "pad_token_id": 0},
        },
        alias="LlamaForCausalLM",
        stand_in=exaone_as_llama,
        fixed={"ln_no_scale": (False,)},
        renamed={
            "num_layers": "num_hidden_layers",
            "layer_norm_epsilon": "rms_norm_eps",
            "activation_function": "hidden_act",
        },
        tensors=(
            (r"^transformer\.wte\.", "model.embed_tokens."),
            (r"^transformer\.h\.(\d+)\.attn\.attention\.out_proj\.", r"model.layers.\1.self_attn.o_proj."),
            (r"^transformer\.h\.(\d+)\.attn\.attention\.", r"model.layers.\1.self_attn."),
            (r"^transformer\.h\.(\d+)\.mlp\.c_fc_0\.", r"model.layers.\1.mlp.gate_proj."),
            (r"^transformer\.h\.(\d+)\.mlp\.c_fc_1\.", r"model.layers.\1.mlp.up_proj."),
            (r"^transformer\.h\.(\d+)\.mlp\.c_proj\.", r"model.layers.\1.mlp.down_proj."),
            (r"^transformer\.h\.(\d+)\.ln_1\.", r"model.layers.\1.input_layernorm."),
            (r"^transformer\.h\.(\d+)\.ln_2\.", r"model.layers.\1.post_attention_layernorm."),
            (r"^transformer\.ln_f\.", "model.norm."),
        ),
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        _keys("attention_bias"),
        {"rms_norm_eps": 1e-5, "eos_token_id": 50279},
        norms=POST_NORMS,
        qk_norm=QKNorm(whole=True),
    ),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        _keys("attention_bias sliding_window layer_types"),
        {"rms_norm_eps": 1e-5, "eos_token_id": 50279, "sliding_window": 4096, "rope_theta": 500000.0},
        norms=POST_NORMS,
        qk_norm=QKNorm(whole=True),
        local_theta=("", 500000.0),
        windows=every_nth_is_full(4),
    ),
    "exaone4": Family(
        "Exaone4ForCausalLM",
        _keys("sliding_window sliding_window_pattern layer_types"),
        {"sliding_window": 4096, "num_key_value_heads": 32, "rms_norm_eps": 1e-5},
        norms=POST_NORMS,
        qk_norm=QKNorm(),
        read=exaone4,
        windows=EXAONE_WINDOWS,
    ),
    "ministral3": Family(
        "Ministral3ForCausalLM",
        _keys("sliding_window"),
        {"num_key_value_heads": 8, "bos_token_id": 1, "eos_token_id": 2},
        windows=mistral_windows,
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        _keys("sliding_window partial_rotary_factor attention_bias"),
        {"bos_token_id": 1, "eos_token_id": 32000, "original_max_position_embeddings": 4096},
        fused=True,
        windows=mistral_windows,
        fixed={"full_attn_mod": (1,), "interpolate_factor": (1,), "lm_head_bias": (False,), "mlp_bias": (False,)},
    ),
    "gemma": Family("GemmaForCausalLM", _GEMMA_KEYS, _GEMMA_DEFAULTS, norm_offset=1.0, read=gemma),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _GEMMA2_KEYS,
        {**_GEMMA2_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        norms=BOTH_NORMS,
        norm_offset=1.0,
        read=gemma2,
        windows=every_nth_is_full(2),
        unused="sliding_window_size",
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _GEMMA2_KEYS | _keys("rope_local_base_freq sliding_window_pattern"),
        {**_GEMMA2_DEFAULTS, "rope_theta": 1e6},
        norms=BOTH_NORMS,
        norm_offset=1.0,
        qk_norm=QKNorm(),
        local_theta=("rope_local_base_freq", 10000.0),
        read=gemma2,
        windows=every_nth_is_full(6),
    ),
}


def model_type_of(hf: Mapping[str, Any]) -> Any:
    """Return the model_type of a config.json; if it has none, as in MiniCPM's, that of its architectures."""
    named = {name.lower() for name in hf.get("architectures") or ()}
    if hf.get("model_type") is None:
        return next((kind for kind, family in FAMILIES.items() if family.architecture.lower() in named), None)
    return hf["model_type"]


def family_of(hf: Mapping[str, Any]) -> Family:
    """Return the architecture of a config.json. Raises UserError if it does not belong to the family."""
    kind = model_type_of(hf)
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if (why := other_kind(hf, known=family is not None)) is not None:
        raise UserError(why)
    if family is None:
        raise UserError(unknown_family(kind, hf.get("architectures")))
    for name in hf.get("architectures") or ():
        if name.lower() not in (family.architecture.lower(), family.alias.lower()):
            raise UserError(
                f"architecture {shown(name)} is not supported; needed: {family.architecture!r}. Choose a "
                "checkpoint of it"
            )
    return family


def unknown_family(kind: Any, architectures: Any = None) -> str:
    """Return the message for a model_type that is not one of FAMILIES, or for a config.json without one."""
    known = ", ".join(map(repr, FAMILIES))
    what = f"model_type {shown(kind)}" if kind is not None else f"a model without model_type ({shown(architectures)})"
    return f"{what} is not supported; this release exports {known}. Choose a model of one of them"
