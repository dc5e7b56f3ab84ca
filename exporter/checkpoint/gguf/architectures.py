"""How a GGUF file stores each architecture: the names of its tensors, the order of their rows, and its metadata keys.

The facts are those of llama.cpp's converters. A reader returns keys of a config.json; `keys` has the metadata, of which
each key is taken once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...network.family import FAMILIES, POST_ATTENTION, POST_MLP, PRE_ATTENTION, PRE_MLP
from ...network.windows import FULL, SLIDING
from .keys import Keys

Reader = Callable[[Keys, dict[str, Any]], dict[str, Any]]
_NORMS = {PRE_ATTENTION: "attn_norm", POST_ATTENTION: "post_attention_norm", PRE_MLP: "ffn_norm"} | {
    POST_MLP: "post_ffw_norm"
}
_LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_JOINED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}


@dataclass(frozen=True)
class Architecture:
    """One value of general.architecture.

    Attributes:
        model_type: a key of family.FAMILIES; `read` may replace it.
        interleaved: q and k are stored for rotary pairs of neighbours (rows 2i, 2i + 1 of a head). If not, they are as
            in Hugging Face's files, which pair row i of a head with row i + head_dim/2.
        read: returns keys of a config.json, given the metadata and the keys that every architecture has.
    """

    model_type: str
    interleaved: bool = False
    read: Reader = lambda keys, values: {}


def _llama(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "attention_bias": "blk.0.attn_q.bias" in keys.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in keys.tensors,
    }


def _attention_bias(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in keys.tensors}


def _pangu(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    return {"bias": "blk.0.attn_q.bias" in keys.tensors}


def _granite(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    """A scale that a file lacks is 1, that of attention 1 / sqrt(head_dim)."""
    return {
        **_llama(keys, values),
        "attention_multiplier": keys.take("attention.scale", float) or values["head_dim"] ** -0.5,
        "embedding_multiplier": keys.take("embedding_scale", float) or 1.0,
        "residual_multiplier": keys.take("residual_scale", float) or 1.0,
        "logits_scaling": keys.take("logit_scale", float) or 1.0,
    }


def _minicpm(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    """The first files lack the scales, which are those of MiniCPM-2B then."""
    depth, width = values["num_hidden_layers"], values["hidden_size"]
    residual, logits = keys.take("residual_scale", float), keys.take("logit_scale", float)
    return {
        "scale_emb": keys.take("embedding_scale", float) or 12.0,
        "scale_depth": 1.4 if residual is None else residual * depth**0.5,
        "dim_model_base": 256 if logits is None else width / logits,
    }


def _windows(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    """Return sliding_window and layer_types, if the file has them: an array says which layers have the window."""
    window, pattern = keys.take("attention.sliding_window", int), keys.array("attention.sliding_window_pattern")
    if window is None or pattern is None:
        return {"sliding_window": window}
    return {"sliding_window": window, "layer_types": [SLIDING if windowed else FULL for windowed in pattern]}


def _olmo(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    """OLMo 2 and 3 have one name. Only OLMo 3 has windows."""
    windows = _windows(keys, values)
    windowed = windows if windows["sliding_window"] is not None else {}
    return {**_attention_bias(keys, values), **windowed, "model_type": "olmo3" if windowed else "olmo2"}


def _phi3(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    """Phi-3 rotates a part of each head; longrope's factors are tensors. A window of 0 means none."""
    rotated = keys.take("rope.dimension_count", int) or values["head_dim"]
    found: dict[str, Any] = {
        "partial_rotary_factor": rotated / max(values["head_dim"], 1),
        "sliding_window": keys.take("attention.sliding_window", int) or None,
    }
    original = keys.take("rope.scaling.original_context_length", int) or values["max_position_embeddings"]
    attention = keys.take("rope.scaling.attn_factor", float)
    if "rope_factors_long.weight" in keys.tensors and "rope_factors_short.weight" in keys.tensors:
        long, short = (keys.vector(f"rope_factors_{which}.weight") for which in ("long", "short"))
        found["rope_scaling"] = {
            **{"rope_type": "longrope", "long_factor": long, "short_factor": short},
            **({} if attention is None else {"attention_factor": attention}),
        }
    return {**found, "original_max_position_embeddings": original}


def _gemma2(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    """The file lacks the scale of scores: that of the 27B models (46 and 62 layers) follows from the width."""
    largest = values["num_hidden_layers"] in (46, 62)
    scalar = values["hidden_size"] // values["num_attention_heads"] if largest else values["head_dim"]
    return {
        **_windows(keys, values),
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": keys.take("attn_logit_softcapping", float),
        "final_logit_softcapping": keys.take("final_logit_softcapping", float),
    }


def _gemma3(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    local = keys.take("rope.freq_base_swa", float)
    return {**_gemma2(keys, values), **({} if local is None else {"rope_local_base_freq": local})}


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True, read=_llama),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", read=_attention_bias),
    "smollm3": Architecture("smollm3", interleaved=True, read=_llama),
    "granite": Architecture("granite", interleaved=True, read=_granite),
    "minicpm": Architecture("minicpm", interleaved=True, read=_minicpm),
    "pangu-embedded": Architecture("PanguEmbedded", read=_pangu),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", read=_attention_bias),
    "olmo2": Architecture("olmo2", read=_olmo),
    "exaone": Architecture("exaone"),
    "exaone4": Architecture("exaone4", read=_windows),
    "phi3": Architecture("phi3", read=_phi3),
    "gemma": Architecture("gemma"),
    "gemma2": Architecture("gemma2", read=_gemma2),
    "gemma3": Architecture("gemma3_text", read=_gemma3),
}


@functools.cache
def inner_names(model_type: str) -> Mapping[str, str]:
    """Return the tensors of a layer: name in a GGUF file -> name in Hugging Face's."""
    family = FAMILIES[model_type]
    names = _LINEARS | (_JOINED if family.fused else {})
    names |= {_NORMS[place]: name for place, name in family.norms.items()}
    if family.qk_norm is not None:
        names |= {"attn_q_norm": f"self_attn.{family.qk_norm.q}", "attn_k_norm": f"self_attn.{family.qk_norm.k}"}
    return names


def halves_first(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Return where an interleaved file stores these rows of q or k, which are numbered as in Hugging Face's files."""
    head, row = np.divmod(rows, head_dim)
    half, pair = np.divmod(row, head_dim // 2)
    return np.asarray(head * head_dim + 2 * pair + half)
