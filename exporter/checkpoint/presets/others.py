"""Granite 3.3, OLMo 2 and 3.1, EXAONE 4, Hunyuan, openPangu-Embedded and MiniCPM."""

from __future__ import annotations

from typing import Any

from .preset import APACHE, Preset, network


def _granite33(size: str, hidden: int, mlp: int, logits: float, attention: float) -> Preset:
    config = network(hidden, mlp, 40, 32, 8, 49159, 131072, rope_theta=10000000.0, bos_token_id=0, eos_token_id=0)
    config |= {
        **{"model_type": "granite", "tie_word_embeddings": True, "pad_token_id": 0},
        **{"embedding_multiplier": 12.0, "residual_multiplier": 0.22},
        **{"logits_scaling": logits, "attention_multiplier": attention},
    }
    return Preset(f"granite-3.3-{size}-instruct", f"ibm-granite/granite-3.3-{size}-instruct", APACHE, config)


def _olmo2(version: str, hidden: int, mlp: int, layers: int, heads: int, kv_heads: int) -> Preset:
    """Return an instruct model."""
    config = network(hidden, mlp, layers, heads, kv_heads, 100352, 4096, rope_theta=500000.0, eos_token_id=100257)
    config |= {"model_type": "olmo2", "rms_norm_eps": 1e-6, "pad_token_id": 100277}
    return Preset(f"olmo-2-{version.lower()}-instruct", f"allenai/OLMo-2-{version}-Instruct", APACHE, config)


_THREE_OF_FOUR_HAVE_A_WINDOW = (["sliding_attention"] * 3 + ["full_attention"]) * 16
_OLMO31_32B = network(5120, 27648, 64, 40, 8, 100278, 65536, rope_theta=500000.0, eos_token_id=100257) | {
    **{"model_type": "olmo3", "rms_norm_eps": 1e-6, "pad_token_id": 100277, "sliding_window": 4096},
    "layer_types": _THREE_OF_FOUR_HAVE_A_WINDOW,
    "rope_scaling": {
        **{"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192},
        **{"attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1},
    },
}


def _exaone4(size: str, hidden: int, mlp: int, heads: int, context: int, kinds: list[str], **rest: Any) -> Preset:
    config = network(hidden, mlp, len(kinds), heads, 8, 102400, context, rope_theta=1000000.0, bos_token_id=1)
    config |= {
        **{"model_type": "exaone4", "eos_token_id": 361, "pad_token_id": 0, "layer_types": kinds},
        "rope_scaling": {
            **{"rope_type": "llama3", "factor": 16.0, "original_max_position_embeddings": 8192},
            **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        },
    }
    licence = "EXAONE AI Model License Agreement 1.2 - NC, not for commercial use"
    return Preset(f"exaone-4.0-{size.lower()}", f"LGAI-EXAONE/EXAONE-4.0-{size}", licence, config | rest)


_EXAONE4_1B = {"head_dim": 64, "tie_word_embeddings": True, "sliding_window": None}
_EXAONE4_32B = {"head_dim": 128, "sliding_window": 4096, "sliding_window_pattern": "LLLG"}


def _hunyuan(size: str, hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, **rest: Any) -> Preset:
    """Return an instruct model."""
    config = network(hidden, mlp, layers, heads, kv_heads, 120818, 262144, eos_token_id=120020, pad_token_id=120002)
    config |= {
        **{"model_type": "hunyuan_v1_dense", "head_dim": 128, "tie_word_embeddings": True},
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0},
    }
    name = f"Hunyuan-{size}-Instruct"
    licence = "Tencent Hunyuan Community License, not for the EU, the UK and South Korea"
    return Preset(name.lower(), f"tencent/{name}", licence, config | rest)


_HUNYUAN_7B = {
    **{"vocab_size": 128167, "max_position_embeddings": 32768},
    **{"bos_token_id": 1, "eos_token_id": 127960, "pad_token_id": 127961},
}


def _pangu(name: str, repository: str, config: dict[str, Any], **rest: Any) -> Preset:
    config = config | {"model_type": "PanguEmbedded", "bias": True, "bos_token_id": 1, "eos_token_id": 45892} | rest
    return Preset(name, f"openpangu/{repository}", "openPangu Model License Agreement 1.0", config)


_MINICPM_2B = network(2304, 5760, 40, 36, 36, 122753, 4096, bos_token_id=1, eos_token_id=2) | {
    **{"model_type": "minicpm", "tie_word_embeddings": True},
    **{"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},
}

OTHERS = (
    _granite33("2b", 2048, 8192, 8.0, 0.015625),
    _granite33("8b", 4096, 12800, 16.0, 0.0078125),
    _olmo2("0425-1B", 2048, 8192, 16, 16, 16),
    _olmo2("1124-7B", 4096, 11008, 32, 32, 32),
    _olmo2("1124-13B", 5120, 13824, 40, 40, 40),
    _olmo2("0325-32B", 5120, 27648, 64, 40, 8),
    Preset("olmo-3.1-32b-instruct", "allenai/Olmo-3.1-32B-Instruct", APACHE, _OLMO31_32B),
    _exaone4("1.2B", 2048, 4096, 32, 65536, ["full_attention"] * 30, **_EXAONE4_1B),
    _exaone4("32B", 5120, 27392, 40, 131072, _THREE_OF_FOUR_HAVE_A_WINDOW, **_EXAONE4_32B),
    _hunyuan("0.5B", 1024, 3584, 24, 16, 8),
    _hunyuan("1.8B", 2048, 6144, 32, 16, 4),
    _hunyuan("7B", 4096, 14336, 32, 32, 8, **_HUNYUAN_7B),
    _pangu(
        "openpangu-embedded-1b",
        "openPangu-Embedded-1B-V1.1",
        network(1536, 6144, 26, 12, 6, 153376, 32768, rope_theta=4000000.0),
        tie_word_embeddings=True,
    ),
    _pangu(
        "openpangu-embedded-7b",
        "openPangu-Embedded-7B-model",
        network(4096, 12800, 34, 32, 8, 153376, 32768, rope_theta=16000000.0),
    ),
    Preset("minicpm-2b-sft", "openbmb/MiniCPM-2B-sft-bf16", "MiniCPM Model License", _MINICPM_2B),
)
