"""The types of the keys of a config.json. They are checked before anything uses a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from edgellama.errors import UserError, shown

MOST_LAYERS = 10_000
LARGEST = (1 << 31) - 1  # of a size or a token id: MindSpore Lite counts in int32
CORRECT = "Correct it in the config, or download the checkpoint again"


class Kind(NamedTuple):
    """What a value must be: a test, and its description in words."""

    fits: Callable[[Any], bool]
    needed: str


def is_whole(value: Any, least: int = 0) -> bool:
    """Whether a value is an integer from `least` to LARGEST."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300 and math.isfinite(value)


def _are_ids(value: Any) -> bool:
    return all(is_whole(item) for item in (value if isinstance(value, list | tuple) else [value]))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _are_positive(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(is_number(item) and item > 0 for item in value)


SIZE = Kind(lambda value: is_whole(value, 1), f"an integer above 0, at most {LARGEST:,}")
POSITIVE = Kind(lambda value: is_number(value) and value > 0, "a number above 0")
NOT_NEGATIVE = Kind(lambda value: is_number(value) and value >= 0, "a number of at least 0")
FLAG = Kind(lambda value: isinstance(value, bool), "true or false")
TEXT = Kind(lambda value: isinstance(value, str), "text")
TEXTS = Kind(_are_texts, "a list of texts")
OBJECT = Kind(lambda value: isinstance(value, dict), "an object")
COUNT = Kind(is_whole, "an integer, at least 0")

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window"),
    "original_max_position_embeddings",
)
KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(SIZES, SIZE),
    "num_hidden_layers": Kind(lambda value: is_whole(value, 1) and value <= MOST_LAYERS, f"1 to {MOST_LAYERS:,}"),
    **dict.fromkeys(
        (
            *("rms_norm_eps", "rope_theta", "rope_local_base_freq", "local_rope_theta", "partial_rotary_factor"),
            *("embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier"),
            *("logits_multiplier", "attention_scale", "scale_emb", "scale_depth", "dim_model_base"),
            *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
        ),
        POSITIVE,
    ),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"), FLAG),
    **dict.fromkeys(("bias", "qkv_bias"), FLAG),
    **dict.fromkeys(("hidden_act", "hidden_activation"), TEXT),
    "no_rope_layer_interval": SIZE,
    "no_rope_layers": Kind(lambda value: isinstance(value, list) and all(map(is_whole, value)), "a list of integers"),
    "sliding_window_pattern": Kind(lambda value: isinstance(value, str) or is_whole(value), "an integer or text"),
    **dict.fromkeys(("architectures", "layer_types"), TEXTS),
    **dict.fromkeys(("rope_scaling", "rope_parameters", "auto_map"), OBJECT),
    "max_window_layers": COUNT,
    "bos_token_id": Kind(is_whole, "an integer of at least 0"),
    "pad_token_id": Kind(lambda value: is_whole(value, -1), "an integer of at least 0, or -1 for none"),
    "eos_token_id": Kind(_are_ids, "an integer of at least 0, or a list of them"),
}
ROPE_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("type", "rope_type"), TEXT),
    **dict.fromkeys(
        (
            *("factor", "rope_theta", "partial_rotary_factor", "low_freq_factor", "high_freq_factor"),
            *("attention_factor", "beta_fast", "beta_slow", "alpha"),
        ),
        POSITIVE,
    ),
    **dict.fromkeys(("mscale", "mscale_all_dim", "llama_4_scaling_beta"), NOT_NEGATIVE),  # 0: without it
    **dict.fromkeys(("short_factor", "long_factor"), Kind(_are_positive, "a list of numbers above 0")),
    "truncate": FLAG,
    "original_max_position_embeddings": SIZE,
}


def check_types(values: Mapping[str, Any]) -> None:
    """Raise UserError, which names the key, if a value is of a wrong type or out of range. null means "not set"."""
    for name, kind in KINDS.items():
        check_type(name, kind, values.get(name))
    for name in ("rope_scaling", "rope_parameters"):
        _check_rope(name, values.get(name) or {})


def _check_rope(name: str, rope: Mapping[str, Any]) -> None:
    for key, value in rope.items():
        if key in ROPE_KINDS:  # others belong to no kind of rope
            check_type(f"{name}.{key}", ROPE_KINDS[key], value)
        elif isinstance(value, dict) and name in ("rope_scaling", "rope_parameters"):  # of one kind of layers
            _check_rope(f"{name}.{key[:40]}", value)


def check_type(name: str, kind: Kind, value: Any) -> None:
    """Raise UserError, which names the key, unless a value is None or fits."""
    if value is not None and not kind.fits(value):
        raise UserError(f"{name} = {shown(value)} in the config must be {kind.needed}. {CORRECT}")
