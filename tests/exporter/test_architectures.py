"""The architectures beside Llama: the reference of the proof, configs that transformers does not have, what is refused.

tests/exporter/test_export.py, test_cpu_graph.py and test_graphs_agree.py run every config of checkpoints.CONFIGS.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgellama.backend.layer_tensors import layer_tensors as runtime_tensors
from edgellama.errors import UserError
from edgellama.exporter.checkpoint.open import open_checkpoint
from edgellama.exporter.graph_spec import Shape
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.network.family import FAMILIES
from edgellama.exporter.network.rope import query_scale
from edgellama.exporter.opsets.ascend_model_checks import check_model
from edgellama.exporter.opsets.cpu_weights import layer_tensors
from edgellama.exporter.proof.float_reference import _numpy, _transformers
from edgellama.kernels.ascend.chips import CHIPS
from support.checkpoints import ARCHITECTURES, CONFIGS, DEFAULTS
from support.step_runs import CONTEXT, relative_error, token_rows

TINY = {**DEFAULTS, "pad_token_id": 0}


def logits(folder: Path) -> np.ndarray:
    """Returns transformers' logits of the tokens of `token_rows`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.from_numpy(token_rows(model.config.vocab_size)[:1].astype(np.int64))
    with torch.no_grad():
        return np.asarray(model(ids).logits[0].numpy())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_both_references_agree(name: str, tiny_checkpoint: Callable[..., Path]) -> None:
    """The proof uses transformers, or numpy over folded weights."""
    folder = tiny_checkpoint(**CONFIGS[name])
    checkpoint = open_checkpoint(folder)
    tokens, positions = token_rows(checkpoint.config.vocab_size)[0], list(range(CONTEXT))
    expected = logits(folder)
    assert relative_error(_transformers(checkpoint)(tokens, positions), expected) < 1e-6
    assert relative_error(_numpy(checkpoint, tokens, positions), expected) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_of_an_artifact_gives_the_same_network(name: str, tiny_checkpoint: Callable[..., Path]) -> None:
    config = open_checkpoint(tiny_checkpoint(**CONFIGS[name])).config
    assert LlamaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", CONFIGS)
def test_the_runtime_knows_the_tensors_of_a_layer(name: str, tiny_checkpoint: Callable[..., Path]) -> None:
    config = open_checkpoint(tiny_checkpoint(**CONFIGS[name])).config
    ours = layer_tensors(config, Shape(1, 1, CONTEXT, weights="int8"), 0)
    names = [tensor.name for tensor in ours]
    assert runtime_tensors(config.to_dict(), "int8", "model.layers.0.", names) == ours


def renamed(folder: Path, out: Path, keys: dict[str, Any], without: tuple[str, ...]) -> Path:
    """Returns a copy of a checkpoint whose config.json has other keys."""
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (out / "config.json").unlink()
    (out / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in without} | keys))
    return out


def test_minicpm_is_granite_with_other_keys(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """MiniCPM 1 and 2 (arXiv:2404.06395), which transformers does not have: scale_emb, scale_depth, dim_model_base."""
    multipliers = {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 1.4 / DEFAULTS["num_hidden_layers"] ** 0.5,
        "logits_scaling": DEFAULTS["hidden_size"] / 16,
        "attention_multiplier": (DEFAULTS["hidden_size"] / DEFAULTS["num_attention_heads"]) ** -0.5,
    }
    granite = tiny_checkpoint(model_type="granite", tie_word_embeddings=True, **multipliers)
    keys = {"model_type": "minicpm", "architectures": ["MiniCPMForCausalLM"], "scale_emb": 12, "scale_depth": 1.4}
    own_code = {"auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"}}
    folder = renamed(granite, tmp_path / "m", {**keys, **own_code, "dim_model_base": 16}, tuple(multipliers))
    checkpoint = open_checkpoint(folder)
    tokens, positions = token_rows(checkpoint.config.vocab_size)[0], list(range(CONTEXT))
    assert relative_error(_numpy(checkpoint, tokens, positions), logits(granite)) < 1e-5
    assert relative_error(_transformers(checkpoint)(tokens, positions), logits(granite)) < 1e-5


def test_openpangu_is_llama_with_biases(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """openPangu-Embedded: `bias` means biases of q, k, v and o."""
    llama = tiny_checkpoint(attention_bias=True, tie_word_embeddings=True)
    keys = {"model_type": "PanguEmbedded", "architectures": ["PanguEmbeddedForCausalLM"], "bias": True}
    folder = renamed(llama, tmp_path / "m", keys, ("attention_bias", "mlp_bias"))
    checkpoint = open_checkpoint(folder)
    tokens, positions = token_rows(checkpoint.config.vocab_size)[0], list(range(CONTEXT))
    assert relative_error(_numpy(checkpoint, tokens, positions), logits(llama)) < 1e-5
    assert relative_error(_transformers(checkpoint)(tokens, positions), logits(llama)) < 1e-5


@pytest.mark.parametrize("chip", CHIPS)
def test_ascend_refuses_scaled_queries(chip: str) -> None:
    """Ministral 3 scales queries from the original context on, 16 here. The remedy of the message passes."""
    config = LlamaConfig.from_dict({**DEFAULTS, **CONFIGS["ministral3-long"], "head_dim": 32})
    with pytest.raises(UserError, match=r"from position 16 on.*CONTEXT is 17\. Export with CONTEXT=16 or less"):
        check_model(config, Shape(1, 4, 17, weights="fp16", cache="float16", chip=chip), [4])
    check_model(config, Shape(1, 4, 16, weights="fp16", cache="float16", chip=chip), [4])


def test_an_immense_factor_of_queries_is_refused() -> None:
    rope = {**CONFIGS["ministral3-long"]["rope_parameters"], "llama_4_scaling_beta": 1e200}
    config = LlamaConfig.from_dict({**DEFAULTS, **CONFIGS["ministral3-long"], "rope_parameters": rope})
    with pytest.raises(UserError, match=r"llama_4_scaling_beta = 1e\+200.*at most 1e\+06"):
        query_scale(config)


def test_zeros_in_ministral_3_mean_without(tiny_checkpoint: Callable[..., Path]) -> None:
    """Devstral 2 publishes such a config. Without a scale of the queries, the context may exceed the original one."""
    rope = {
        **{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 16},
        **{"beta_fast": 4.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0, "llama_4_scaling_beta": 0.0},
    }
    folder = tiny_checkpoint(model_type="ministral3", head_dim=32, rope_parameters=rope)
    checkpoint = open_checkpoint(folder)
    tokens, positions = token_rows(checkpoint.config.vocab_size)[0], list(range(CONTEXT))
    assert relative_error(_numpy(checkpoint, tokens, positions), logits(folder)) < 1e-5


def test_longrope_has_two_sets_of_factors(tiny_checkpoint: Callable[..., Path]) -> None:
    """A context within the original maximum has the short factors, which transformers uses for such lengths."""
    from edgellama.exporter.network.rope import rope_frequencies

    config = open_checkpoint(tiny_checkpoint(**CONFIGS["phi3-partial"])).config
    assert config.rope_scaling is not None
    short, long = (rope_frequencies(config, positions)[0] for positions in (32, 33))
    np.testing.assert_allclose(
        short / long, np.divide(config.rope_scaling.long_factor, config.rope_scaling.short_factor)
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "qwen3_moe"}, "a mixture of experts"),
        ({"model_type": "llama", "num_local_experts": 8}, "a mixture of experts"),
        ({"model_type": "jamba"}, "a hybrid"),
        ({"model_type": "gemma3", "vision_config": {}}, "multimodal"),
        ({"model_type": "qwen2_5_vl"}, "is a multimodal model"),
        ({"model_type": "minicpm3", "kv_lora_rank": 256}, "latent attention.*grouped queries"),
        ({"model_type": "deci", "block_configs": [{}]}, "different sizes"),
        ({"model_type": "PanguEmbedded", "param_sink_number": 128}, "attention sinks.*Choose a model without them"),
        ({"model_type": "hunyuan"}, "first layout of Hunyuan.*hunyuan_v1_dense"),
        ({"model_type": "internlm2"}, "InternLM 2.*'internlm3'"),
        ({"model_type": "gpt2"}, "LayerNorm"),
        ({"model_type": "strange"}, "'strange' is not supported.*Choose a model of one of them"),
        ({"model_type": None}, "without model_type"),
    ],
)
def test_other_kinds_of_models_are_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        LlamaConfig.from_dict({**TINY, **config})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model_type": "granite", "embedding_multiplier": 0}, "embedding_multiplier = 0"),
        ({"model_type": "granite", "logits_scaling": "8"}, "logits_scaling"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "for each of 2 layers"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 2]}, "0 or 1"),
        ({"model_type": "phi3", "partial_rotary_factor": 0.2}, "rotates 3 of 16"),
        ({"model_type": "phi3", "partial_rotary_factor": 1.5}, "rotates 24 of 16"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": -1}, "query_pre_attn_scalar"),
        ({"model_type": "gemma3_text", "sliding_window_pattern": "LX"}, "letters L and G"),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 0}, "sliding_window_pattern"),
        ({"model_type": "internlm3", "qkv_bias": True, "bias": False}, "equal"),
        ({"model_type": "qwen3", "hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_wrong_values_are_refused_by_key(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        LlamaConfig.from_dict({**TINY, **keys})


def test_every_architecture_has_two_configs() -> None:
    named = [config.get("model_type", "llama") for config in CONFIGS.values()]
    own_tests = {"minicpm", "PanguEmbedded"}
    assert {kind for kind in FAMILIES if named.count(kind) < 2} == own_tests
