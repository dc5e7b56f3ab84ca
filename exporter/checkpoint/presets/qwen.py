"""Qwen2.5 and Qwen3, and the models that DeepSeek-R1 was distilled into."""

from __future__ import annotations

from .llama import LLAMA31_8B
from .preset import APACHE, MIT, Preset, network

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
    config = network(*sizes, 32768, rope_theta=1000000.0, bos_token_id=151643, eos_token_id=151645)
    config |= {
        "model_type": "qwen2",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": size in ("0.5b", "1.5b", "3b"),
        "use_sliding_window": False,
        "sliding_window": 32768 if size in ("0.5b", "1.5b", "3b") else 131072,
        "max_window_layers": window_layers,
    }
    licence = "Qwen Research License" if size == "3b" else APACHE
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
    config = network(*sizes, 151936, 40960, rope_theta=1000000.0, bos_token_id=151643, eos_token_id=151645)
    config |= {
        "model_type": "qwen3",
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": size in ("0.6b", "1.7b", "4b"),
        "use_sliding_window": False,
    }
    return Preset(f"qwen3-{size}", f"Qwen/Qwen3-{size.upper()}", APACHE, config)


def _qwen3_4b_2507(kind: str) -> Preset:
    """Return one of the models of July 2025, which have a longer context."""
    config = _qwen3("4b").hf_config | {"max_position_embeddings": 262144, "rope_theta": 5000000.0}
    return Preset(f"qwen3-4b-{kind.lower()}-2507", f"Qwen/Qwen3-4B-{kind}-2507", APACHE, config)


# Size of the Qwen2.5 of the same sizes -> (rope_theta, rms_norm_eps). The smaller two are Qwen2.5-Math models.
_R1_QWEN = {"1.5b": (10000.0, 1e-6), "7b": (10000.0, 1e-6), "14b": (1000000.0, 1e-5)}


def _r1_qwen(size: str) -> Preset:
    theta, eps = _R1_QWEN[size]
    config = _qwen25(size).hf_config | {
        **{"max_position_embeddings": 131072, "rope_theta": theta, "rms_norm_eps": eps},
        **{"bos_token_id": 151646, "eos_token_id": 151643, "sliding_window": None, "tie_word_embeddings": False},
    }
    name = f"DeepSeek-R1-Distill-Qwen-{size.upper()}"
    return Preset(name.lower(), f"deepseek-ai/{name}", MIT, config)


QWENS = (
    *(_qwen25(size) for size in _QWEN25),
    *(_qwen3(size) for size in _QWEN3),
    _qwen3_4b_2507("Instruct"),
    _qwen3_4b_2507("Thinking"),
    *(_r1_qwen(size) for size in _R1_QWEN),
    Preset(
        "deepseek-r1-distill-llama-8b",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        "MIT, and Llama 3.1 Community License",
        LLAMA31_8B,
    ),
)
