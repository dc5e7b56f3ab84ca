"""Convert the metadata of a GGUF file to LlamaConfig.

An unknown key of the architecture (`llama.*`, `qwen2.*`, ...) raises an error. architectures.py has the differences of
the architectures. Files of Mistral models have the architecture "llama" and no key for a sliding window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from edgellama.errors import UserError, shown

from ...network.config import LlamaConfig
from ...network.family import FAMILIES
from ...network.rope import rope_frequencies
from ..finite import check_finite
from .architectures import ARCHITECTURES
from .file import GGUFFile
from .keys import Keys


def read_config(file: GGUFFile) -> LlamaConfig:
    """Return the LlamaConfig of the metadata and the tensor table.

    Raises UserError for another architecture, an unknown key, or a value that the exporter does not support.
    """
    kind = file.fields.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        known = ", ".join(map(repr, ARCHITECTURES))
        raise UserError(
            f"{file.path}: GGUF architecture {shown(kind)} is not supported; this release exports {known}. "
            "Choose a file of one of them"
        )
    keys = Keys(file, kind)
    heads, hidden = keys.need("attention.head_count", int), keys.need("embedding_length", int)
    head_dim = keys.take("attention.key_length", int) or hidden // max(heads, 1)  # LlamaConfig refuses 0 heads
    partial = "partial_rotary_factor" in FAMILIES[ARCHITECTURES[kind].model_type].keys
    for key in ("attention.value_length", *(() if partial else ("rope.dimension_count",))):
        if (value := keys.take(key, int)) not in (None, head_dim):
            raise UserError(
                f"{file.path}: {kind}.{key} = {value} is not supported; needed: the head size {head_dim}. "
                "Convert the model again"
            )
    tokens = file.fields.get("tokenizer.ggml.tokens", [])
    if not isinstance(tokens, list):
        raise UserError(
            f"{file.path}: tokenizer.ggml.tokens must be of type list, not {type(tokens).__name__}. "
            "Convert the model again"
        )
    config = {
        "model_type": ARCHITECTURES[kind].model_type,
        "vocab_size": keys.take("vocab_size", int) or len(tokens),
        "hidden_size": hidden,
        "intermediate_size": keys.need("feed_forward_length", int),
        "num_hidden_layers": keys.need("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.take("attention.head_count_kv", int) or heads,
        "head_dim": head_dim,
        "max_position_embeddings": keys.need("context_length", int),
        "rms_norm_eps": keys.need("attention.layer_norm_rms_epsilon", float),
        "rope_theta": keys.take("rope.freq_base", float) or 10000.0,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **{f"{name}_token_id": file.fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in _IDS.items()},
    }
    config |= ARCHITECTURES[kind].read(keys, config)
    config.setdefault("rope_scaling", _rope_scaling(keys))
    keys.check_rest()
    if "rope_freqs.weight" in file.tensors:
        config["rope_scaling"] = _llama3_scaling(file, _config(file, config))
    return _config(file, config)


def _config(file: GGUFFile, values: dict[str, Any]) -> LlamaConfig:
    try:
        return LlamaConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from error


_IDS = {"bos": "bos", "eos": "eos", "pad": "padding"}


def _rope_scaling(keys: Keys) -> dict[str, Any] | None:
    """Return Hugging Face's rope_scaling from the `rope.scaling.*` keys, or from the older key `rope.scale_linear`."""
    kind, factor = keys.take("rope.scaling.type", str), keys.take("rope.scaling.factor", float)
    linear = keys.take("rope.scale_linear", float)
    if kind is None and linear not in (None, 1.0):
        return {"rope_type": "linear", "factor": linear}
    original = keys.take("rope.scaling.original_context_length", int)
    if kind in (None, "none"):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        found = f"{keys.prefix}rope.scaling.type = {shown(kind)}"
        raise UserError(
            f"{keys.path}: {found} is not supported; supported: linear, yarn. Choose a file with one of them"
        )
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": keys.take("rope.scaling.yarn_beta_fast", float),
        "beta_slow": keys.take("rope.scaling.yarn_beta_slow", float),
    }
    # GGUF's attention factor multiplies yarn's 1 + 0.1 ln(factor); Hugging Face's attention_factor replaces it.
    attention = [keys.take(f"rope.scaling.{key}", float) for key in ("attn_factor", "yarn_attn_factor")]
    for value in attention:
        if value not in (None, 1.0) and factor is not None and factor > 0:
            scaling["attention_factor"] = value * (1 + 0.1 * float(np.log(factor)))
    return scaling


def _llama3_scaling(file: GGUFFile, config: LlamaConfig) -> dict[str, Any] | None:
    """Return the llama3 scaling that gives a `rope_freqs.weight` tensor, which divides each rotary frequency.

    The file contains the divisors, not the parameters. The function tries the published parameters, which differ
    between Llama 3.1, 3.2 and 3.3 in `factor` only, and raises UserError if they do not reproduce the tensor.
    """
    kind, shape = file.tensors["rope_freqs.weight"].kind, file.tensors["rope_freqs.weight"].shape
    if kind != GGMLQuantizationType.F32 or shape != (config.head_dim // 2,):
        raise UserError(
            f"{file.path}: rope_freqs.weight is {kind.name} {list(shape)}; needed: F32 "
            f"[{config.head_dim // 2}]. Convert the model again"
        )
    stored = file.tensor("rope_freqs.weight").astype(np.float64)
    check_finite(file.path, "rope_freqs.weight", 0, stored)
    if config.rope_scaling is not None:
        raise UserError(
            f"{file.path} has both rope_freqs.weight and rope.scaling metadata, which is not supported. "
            "Convert the model again"
        )
    if np.all(stored == 1):
        return None
    scaling = {
        "rope_type": "llama3",
        "factor": float(stored.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    trial = _config(file, {**config.to_dict(), "rope_scaling": scaling})
    divisors = rope_frequencies(config)[0] / rope_frequencies(trial)[0]
    if not np.allclose(stored, divisors, rtol=1e-4):
        raise UserError(
            f"{file.path}: rope_freqs.weight is not the scaling of Llama 3.1 (factor {stored.max():g}, original "
            "context 8192), and GGUF does not say which it is; export the Hugging Face checkpoint instead"
        )
    return scaling
