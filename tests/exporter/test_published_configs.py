"""Configs as they are published: supported ones give the network of transformers, refused ones say what they are.

tests/data/published_configs.json has them by hub id; some are fine-tuned, converted or quantized copies.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from edgellama.errors import UserError
from edgellama.exporter.checkpoint.base import account, read_config_file
from edgellama.exporter.checkpoint.fused import split_fused
from edgellama.exporter.checkpoint.presets import PRESETS
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.network.rope import LOCAL, MAIN, rope_frequencies

_DATA = json.loads((Path(__file__).parents[1] / "data" / "published_configs.json").read_text())
SUPPORTED: dict[str, dict[str, Any]] = _DATA["supported"]
REFUSED: dict[str, dict[str, Any]] = _DATA["refused"]
LAYERS = 4  # of the models that the tests build; the configs have up to 88


def read(values: dict[str, Any], folder: Path) -> LlamaConfig:
    """Reads the config as the export of a folder does."""
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return read_config_file(path)


def shallow(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of a model with few layers and without quantized weights."""
    cut = {key: value for key, value in values.items() if key != "quantization_config"}
    depth = "num_layers" if "num_layers" in values else "num_hidden_layers"
    cut[depth] = min(LAYERS, values[depth])
    if cut.get("layer_types"):
        cut["layer_types"] = cut["layer_types"][:LAYERS]
    return cut


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_published_config_survives_an_artifact(name: str, tmp_path: Path) -> None:
    config = read(SUPPORTED[name], tmp_path)
    assert LlamaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", SUPPORTED)
def test_transformers_builds_the_same_network(name: str) -> None:
    """Its tensors, windows, rotary frequencies and eps are those that the export computes with."""
    ours = LlamaConfig.from_dict(shallow(SUPPORTED[name]))
    known = ours.family.stand_in is None or ours.model_type in CONFIG_MAPPING
    published = shallow(SUPPORTED[name]) if known else ours.reference_dict
    theirs = AutoConfig.for_model(**published)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    tensors = {key: tuple(value.shape) for key, value in model.named_parameters()}  # tied ones once
    account(Path(name), split_fused(tensors, ours)[0], ours)

    eps = {
        getattr(m, "variance_epsilon", getattr(m, "eps", None)) for m in model.modules() if "RMSNorm" in repr(type(m))
    }
    assert eps == {ours.rms_norm_eps}
    assert ours.windows == _windows(theirs)
    for layer in model.model.layers:
        assert layer.self_attn.scaling == pytest.approx(ours.scale)
    assert ours.eos_token_id == _ids(theirs.eos_token_id)

    rotary = type(model.model.rotary_emb)(theirs)
    buffers = {
        key: value for key, value in rotary.named_buffers() if key.endswith("inv_freq") and "original" not in key
    }
    assert buffers
    for key, frequencies in buffers.items():
        kind = LOCAL if key.startswith("sliding_attention") and ours.local_rope_theta is not None else MAIN
        expected, factor = rope_frequencies(ours, kind=kind)
        np.testing.assert_allclose(frequencies.numpy(), expected, rtol=2e-5)
        scaling = key.replace("inv_freq", "attention_scaling")
        assert getattr(rotary, scaling) == pytest.approx(factor)


def _windows(theirs: Any) -> tuple[int, ...]:
    window = getattr(theirs, "sliding_window", None) or 0
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
    return tuple(window * (kind == "sliding_attention") for kind in kinds)


def _ids(value: Any) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


# Presets -> copies of their config.json, where the data do not have that of the publisher.
COPIES = {
    "deepseek-r1-distill-qwen-1.5b": "oumi-ai/MiniMath-R1-1.5B",
    "falcon3-1b-instruct": "AIFunOver/Falcon3-1B-Instruct-openvino-fp16",
    "falcon3-10b-instruct": "Echo9Zulu/Falcon3-10B-Instruct-awq-ns-ov",
    "gemma-2-2b-it": "mlx-community/gemma-2-2b-it-fp16",
    "hunyuan-0.5b-instruct": "gss1147/Hunyuan-PythonGOD-0.5B",
    "hunyuan-1.8b-instruct": "Ba2han/phi-transation",
    "llama3.2-1b-instruct": "meta-llama/Llama-3.2-1B",
    "minicpm-2b-sft": "mlx-community/MiniCPM-2B-dpo-bf16",
    "mistral-7b-instruct-v0.1": "mistralai/Mistral-7B-v0.1",
    "olmo-2-0425-1b-instruct": "CodeAtCMU/OLMo-2-0425-1B_full_sft_code_data_120K_remove_comments",
    "olmo-2-1124-7b-instruct": "allenai/OLMo-2-1124-7B",
    "olmo-2-1124-13b-instruct": "allenai/OLMo-2-1124-13B",
    "olmo-2-0325-32b-instruct": "allenai/OLMo-2-0325-32B",
    "openpangu-embedded-1b": "PIKA665/openPangu-Embedded-1B",
}
COPIES |= {name: preset.hub_id for name, preset in PRESETS.items() if preset.hub_id in SUPPORTED}


@pytest.mark.parametrize("name", COPIES)
def test_a_preset_is_the_published_network(name: str) -> None:
    """The token ids of a copy may be other ones."""
    nothing: dict[str, Any] = {"bos_token_id": None, "eos_token_id": (), "pad_token_id": None}
    published = LlamaConfig.from_dict({k: v for k, v in SUPPORTED[COPIES[name]].items() if k != "quantization_config"})
    assert replace(PRESETS[name].config, **nothing) == replace(published, **nothing)
    if PRESETS[name].hub_id == COPIES[name]:
        assert PRESETS[name].config.eos_token_id[:1] == published.eos_token_id[:1]


WORDS = {
    "allenai/OLMo-1B-hf": "LayerNorm",
    "atsuki-yamaguchi/gemma-2-9b-te-30K-rand": "'Gemma2ForMultiCausalLM' is not supported; needed: 'Gemma2ForCausalLM'",
    "corupta/dseek-draft-test": "attn_factor = 0.878",
    "crumb/f358a4-8h-64d": "attention_mod = 1 is no known setting of MistralForCausalLM",
    "decompute/slm1": "quantization = .*unquantized checkpoint",
    "emredeveloper/DeepSeek-R1-Distill-Qwen-1.5B-4bit": "bitsandbytes.*Export the checkpoint that it was made of",
    "mlx-community/EXAONE-3.5-2.4B-Instruct-4bit": "quantization = .*unquantized checkpoint",
    "mlx-community/MiniCPM-2B-dpo-bf16-4bit": "quantization = .*unquantized checkpoint",
    "mlx-community/Mistral-7B-Instruct-v0.2": "lacks hidden_size.*published with the model",
    "mlx-community/Phi-4-mini-instruct-4bit": "quantization = .*unquantized checkpoint",
    "openbmb/MiniCPM-Embedding": r"without model_type \(\['MiniCPM'\]\)",
    "openbmb/MiniCPM3-4B": "multi-head latent attention",
    "openpangu/openPangu-R-7B-2512": "attention sinks",
    "qingy2024/Falcon3-2x10B-MoE-Instruct": "mixture of experts",
    "SparseLLM/sparsing-law-0.4b-relu": "hidden_act 'relu'",
    "tencent/Hunyuan-7B-Pretrain": "first layout of Hunyuan.*'hunyuan_v1_dense'",
    "tencent/Tencent-Hunyuan-Large": "mixture of experts",
    "tiiuae/falcon-11B": "LayerNorm",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_config_says_what_it_is(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=WORDS[name]) as raised:
        read(REFUSED[name], tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("tencent/Hunyuan-7B-Instruct", "use_qk_norm", False),
        ("tencent/Hunyuan-7B-Instruct", "use_cla", True),
        ("tencent/Hunyuan-7B-Instruct", "num_experts", 16),
        ("tencent/Hunyuan-7B-Instruct", "norm_type", "layer"),
        ("microsoft/Phi-4-mini-instruct", "full_attn_mod", 2),
        ("microsoft/Phi-4-mini-instruct", "lm_head_bias", True),
        ("microsoft/Phi-4-mini-instruct", "auto_map", {"AutoModelForCausalLM": "modeling_own.MyPhi"}),
        ("microsoft/Phi-4-mini-instruct", "auto_map", {"AutoModelForCausalLM": 3}),
        ("PIKA665/openPangu-Embedded-1B", "num_experts", 8),
        ("mlx-community/MiniCPM-2B-dpo-bf16", "use_cla", True),
        ("tiiuae/Falcon3-3B-Base", "activation", "relu"),
    ],
)
def test_other_values_of_these_keys_are_refused(name: str, key: str, value: Any) -> None:
    with pytest.raises(UserError, match="experts" if key == "num_experts" else key):
        LlamaConfig.from_dict({**SUPPORTED[name], key: value})
