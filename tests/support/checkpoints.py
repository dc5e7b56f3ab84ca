"""Makes small random checkpoints of the Llama family with transformers, and exports artifacts from them.

Weights have a much larger spread than those of a new model, and norms and biases are random. So every tensor changes
the logits: a graph that drops a bias or rotates by wrong angles exceeds every tolerance of the tests.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.child import run_support

DEFAULTS: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "tie_word_embeddings": False,
}


def rope(kind: str, theta: float = 10000.0, **parameters: float) -> dict[str, Any]:
    """Returns the rope_parameters of a config."""
    return {"rope_type": kind, "rope_theta": theta, **parameters}


# Every option of LlamaConfig. The context exceeds the original one of each kind of rope, so that scaling has an effect.
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied-1to1": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "gqa-3to1": {"hidden_size": 96, "num_attention_heads": 6, "rope_parameters": rope("default", theta=500000.0)},
    "gqa-8to1-bias": {"num_attention_heads": 8, "num_key_value_heads": 1, "attention_bias": True},
    "head-size-20": {
        "head_dim": 20,
        "mlp_bias": True,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-3,
    },
    "mlp-bias": {"mlp_bias": True, "num_hidden_layers": 3},
    "linear": {"rope_parameters": rope("linear", factor=4.0)},
    "dynamic": {"rope_parameters": rope("dynamic", factor=2.0), "num_key_value_heads": 1},
    "yarn": {"rope_parameters": rope("yarn", factor=4.0, original_max_position_embeddings=32), "head_dim": 32},
    "yarn-mscale": {
        "rope_parameters": rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=32,
            mscale=1.0,
            mscale_all_dim=0.7,
            beta_fast=16.0,
            beta_slow=2.0,
            truncate=False,
        )
    },
    "llama3": {
        "rope_parameters": rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
        "tie_word_embeddings": True,
    },
    # The schedule of step_runs has a row that begins with 17 tokens, continues with 1, and then with 15.
    "mistral-window-17": {"model_type": "mistral", "sliding_window": 17},
    "mistral-window-3": {"model_type": "mistral", "sliding_window": 3, "head_dim": 20, "num_key_value_heads": 4},
    "mistral": {"model_type": "mistral", "sliding_window": None, "num_key_value_heads": 1},
    "qwen2": {"model_type": "qwen2", "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    "qwen2-windows-16": {
        **{"model_type": "qwen2", "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 16},
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "qwen2-window-18": {
        **{"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 18, "max_window_layers": 0},
        **{"hidden_size": 96, "num_attention_heads": 6},
    },
}


# Two or more configs of every other architecture in exporter/network/family.py, with small windows, caps and factors.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "head_dim": 20},
    "qwen3-windows": {
        **{"model_type": "qwen3", "head_dim": 32, "use_sliding_window": True, "sliding_window": 16},
        **{"max_window_layers": 1, "attention_bias": True, "tie_word_embeddings": True},
    },
    "smollm3": {
        **{"model_type": "smollm3", "pad_token_id": 0, "no_rope_layer_interval": 2, "num_hidden_layers": 3},
        "rope_parameters": rope("default", theta=500000.0),
    },
    "smollm3-bias": {
        **{"model_type": "smollm3", "pad_token_id": 0, "no_rope_layers": [0, 1], "attention_bias": True},
        **{"mlp_bias": True, "tie_word_embeddings": True},
    },
    "granite": {
        **{"model_type": "granite", "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
        **{"logits_scaling": 8.0, "attention_multiplier": 0.0156},
    },
    "granite-tied": {
        **{"model_type": "granite", "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
        **{"attention_multiplier": 0.1, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        "rms_norm_eps": 1e-2,
    },
    "hunyuan": {
        **{"model_type": "hunyuan_v1_dense", "head_dim": 32},
        "rope_parameters": rope("dynamic", alpha=1000.0, factor=1.0, beta_fast=32, beta_slow=1, mscale=1.0),
    },
    "hunyuan-bias": {
        **{"model_type": "hunyuan_v1_dense", "head_dim": 16, "attention_bias": True},
        "tie_word_embeddings": True,
    },
    "olmo2": {"model_type": "olmo2"},
    "olmo2-bias": {"model_type": "olmo2", "attention_bias": True, "num_key_value_heads": 4, "head_dim": 20},
    "olmo3": {
        **{"model_type": "olmo3", "sliding_window": 16, "num_hidden_layers": 4},
        "rope_parameters": {
            "full_attention": rope("yarn", factor=4.0, original_max_position_embeddings=32),
            "sliding_attention": rope("default"),
        },
    },
    "olmo3-kinds": {
        **{"model_type": "olmo3", "sliding_window": 17},
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "exaone": {"model_type": "exaone", "pad_token_id": 0, "rope_parameters": rope("default", theta=500000.0)},
    "exaone-tied": {
        **{"model_type": "exaone", "pad_token_id": 0, "head_dim": 20, "tie_word_embeddings": True},
        "rope_parameters": rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
        ),
    },
    "exaone4": {
        **{"model_type": "exaone4", "sliding_window": 16, "num_hidden_layers": 4},
        "rope_parameters": rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
        ),
    },
    "exaone4-full": {
        **{"model_type": "exaone4", "sliding_window": None, "tie_word_embeddings": True},
        "layer_types": ["full_attention", "full_attention"],
    },
    "ministral3": {
        **{"model_type": "ministral3", "head_dim": 32},
        "rope_parameters": rope(
            "yarn",
            **{"factor": 4.0, "original_max_position_embeddings": 64, "llama_4_scaling_beta": 0.1},
            **{"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0},
        ),
    },
    # Contexts of 64 go up to four times the original one, from which on queries are scaled.
    "ministral3-long": {
        **{"model_type": "ministral3", "head_dim": 32, "num_key_value_heads": 4},
        "rope_parameters": rope(
            "yarn",
            **{"factor": 4.0, "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.5},
            **{"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0},
        ),
    },
    "ministral3-window": {
        **{"model_type": "ministral3", "head_dim": 20, "sliding_window": 12},
        "rope_parameters": rope("yarn", factor=2.0, original_max_position_embeddings=20, llama_4_scaling_beta=0.3),
    },
    "phi3": {"model_type": "phi3", "pad_token_id": 0},
    "phi3-partial": {
        **{"model_type": "phi3", "pad_token_id": 0, "original_max_position_embeddings": 32, "sliding_window": 20},
        "rope_parameters": {
            **rope("longrope", original_max_position_embeddings=32),
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "partial_rotary_factor": 0.75,
        },
    },
    "gemma": {"model_type": "gemma", "head_dim": 32, "tie_word_embeddings": True},
    "gemma-untied": {"model_type": "gemma", "head_dim": 20, "tie_word_embeddings": False},
    "gemma2": {
        **{"model_type": "gemma2", "head_dim": 32, "tie_word_embeddings": True, "sliding_window": 16},
        **{"query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    },
    "gemma2-window-3": {
        **{"model_type": "gemma2", "head_dim": 20, "tie_word_embeddings": True, "sliding_window": 3},
        **{"num_hidden_layers": 3, "attn_logit_softcapping": None, "final_logit_softcapping": 4.0},
    },
    "gemma3": {
        **{"model_type": "gemma3_text", "head_dim": 32, "tie_word_embeddings": True, "sliding_window": 16},
        **{"num_hidden_layers": 7, "query_pre_attn_scalar": 32},
    },
    "gemma3-linear": {
        **{"model_type": "gemma3_text", "head_dim": 20, "tie_word_embeddings": True, "sliding_window": 17},
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": rope("linear", theta=1e6, factor=8.0),
            "sliding_attention": rope("default"),
        },
    },
    "internlm3": {"model_type": "internlm3", "head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "internlm3-plain": {"model_type": "internlm3", "head_dim": 20, "tie_word_embeddings": True},
}
CONFIGS |= ARCHITECTURES


def make_checkpoint(folder: Path, seed: int = 0, **config: Any) -> Path:
    """Writes a Hugging Face folder (config.json, model.safetensors, tokenizer.json) of a random model.

    - folder: where the files go.
    - seed: of the weights.
    - config: replaces keys of DEFAULTS; the keys of transformers' LlamaConfig, or of its config for "model_type".
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(**{"model_type": "llama", **DEFAULTS, **config})
    model = AutoModelForCausalLM.from_config(settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(".bias"):
                weight.uniform_(-0.5, 0.5, generator=generator)
            elif "embed_tokens" in name:
                weight.normal_(0.0, 1.0, generator=generator)
            else:
                weight.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)
    model.save_pretrained(folder)
    byte_tokenizer(settings.vocab_size).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"})
    )
    return folder


def byte_tokenizer(vocab_size: int) -> Any:
    """Returns a tokenizers.Tokenizer of single bytes: ids 0..255, then <s>, </s> and <extra_i> up to `vocab_size`.

    A vocabulary under 258 has only the first `vocab_size` bytes.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:vocab_size]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"] + [f"<extra_{i}>" for i in range(max(0, vocab_size - 258))]
    if vocab_size >= 258:
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def export_all(jobs: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Export one artifact per mapping of exporter.export_options.ExportOptions, all in one process of its own.

    MindSpore, which export imports, cannot live in this one beside MindSpore Lite.
    """
    text = json.dumps([{k: str(v) if isinstance(v, Path) else v for k, v in job.items()} for job in jobs])
    run_support("checkpoints", input=text)
    return [Path(job["out"]) for job in jobs]


def _main() -> None:
    from edgellama.exporter.export import export
    from edgellama.exporter.export_options import ExportOptions
    from edgellama.exporter.progress import Progress

    for job in json.load(sys.stdin):
        job["out"] = Path(job["out"])
        if job.get("buckets"):
            job["buckets"] = tuple(job["buckets"])
        export(ExportOptions(**job), Progress())


if __name__ == "__main__":
    _main()
