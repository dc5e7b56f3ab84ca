"""Gemma 2 and 3 (text), and Phi-3 and 4."""

from __future__ import annotations

from typing import Any

from .preset import MIT, Preset, network

_GEMMA3_1B = {
    **network(1152, 6912, 26, 4, 1, 262144, 32768, rope_theta=1000000.0, bos_token_id=2, eos_token_id=[1, 106]),
    **{"model_type": "gemma3_text", "head_dim": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    **{"sliding_window": 512, "sliding_window_pattern": 6, "rope_local_base_freq": 10000.0, "pad_token_id": 0},
    "query_pre_attn_scalar": 256,
}


def _gemma2(size: str, hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, **rest: Any) -> Preset:
    """Return an instruct model."""
    config = network(hidden, mlp, layers, heads, kv_heads, 256000, 8192, bos_token_id=2, eos_token_id=[1, 107])
    config |= {
        **{"model_type": "gemma2", "head_dim": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
        **{"sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        **{"query_pre_attn_scalar": 256, "pad_token_id": 0},
    }
    return Preset(f"gemma-2-{size}-it", f"google/gemma-2-{size}-it", _GEMMA, config | rest)


def _phi(
    hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int, context: int
) -> dict[str, Any]:
    config = network(hidden, mlp, layers, heads, kv_heads, vocabulary, context)
    return {**config, "model_type": "phi3", "original_max_position_embeddings": 4096}


_PHI4_MINI_FACTORS = [
    *(1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649),
    *(2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533),
    *(5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651),
    *(14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03),
    *(32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7),
    *(32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77),
]
_PHI4_MINI = _phi(3072, 8192, 32, 24, 8, 200064, 131072) | {
    **{"bos_token_id": 199999, "eos_token_id": 199999, "pad_token_id": 199999, "tie_word_embeddings": True},
    **{"partial_rotary_factor": 0.75, "sliding_window": 262144},
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": _PHI4_MINI_FACTORS},
}
_PHI3_MINI_4K = _phi(3072, 8192, 32, 32, 32, 32064, 4096) | {
    **{"bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000, "sliding_window": 2047}
}
_PHI4 = _phi(5120, 17920, 40, 40, 10, 100352, 16384) | {
    **{"bos_token_id": 100257, "eos_token_id": 100265, "pad_token_id": 100349, "rope_theta": 250000.0},
    **{"sliding_window": None, "original_max_position_embeddings": 16384},
}
_GEMMA = "Gemma Terms of Use"

GEMMAS = (
    _gemma2("2b", 2304, 9216, 26, 8, 4),
    _gemma2("9b", 3584, 14336, 42, 16, 8),
    _gemma2("27b", 4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144),
    Preset("gemma-3-1b-it", "google/gemma-3-1b-it", _GEMMA, _GEMMA3_1B),
)
PHIS = (
    Preset("phi-3-mini-4k-instruct", "microsoft/Phi-3-mini-4k-instruct", MIT, _PHI3_MINI_4K),
    Preset("phi-4-mini-instruct", "microsoft/Phi-4-mini-instruct", MIT, _PHI4_MINI),
    Preset("phi-4", "microsoft/phi-4", MIT, _PHI4),
)
