"""Compares LlamaConfig with published configs, and with transformers' configs of the same model types."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig
from transformers import LlamaConfig as HFLlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgellama.errors import UserError
from edgellama.exporter.checkpoint.presets import PRESETS
from edgellama.exporter.network.config import LlamaConfig, RopeScaling
from edgellama.exporter.network.rope import rope_frequencies
from support.checkpoints import DEFAULTS

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
# As published, in the form of transformers 4.45.
LLAMA_32_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
SMOLLM2_135M: dict[str, Any] = {
    "_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
MISTRAL_7B_V01: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
QWEN25_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {
        **{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False},
        **{"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25},
    },
    {
        **{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
        **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    },
]


def test_published_llama_32_1b() -> None:
    config = LlamaConfig.from_dict(LLAMA_32_1B)
    assert (config.head_dim, config.num_key_value_heads, config.rope_theta) == (64, 8, 500000.0)
    assert config.rope_scaling == RopeScaling(
        "llama3", 32.0, original_max_position_embeddings=8192, low_freq_factor=1.0, high_freq_factor=4.0
    )
    assert config.tie_word_embeddings
    assert config.eos_token_id == (128001,)
    assert config == PRESETS["llama3.2-1b"].config


def test_published_smollm2() -> None:
    assert LlamaConfig.from_dict(SMOLLM2_135M) == PRESETS["smollm2-135m-instruct"].config


def test_published_mistral_and_qwen2() -> None:
    mistral, qwen2 = LlamaConfig.from_dict(MISTRAL_7B_V01), LlamaConfig.from_dict(QWEN25_7B)
    assert mistral == PRESETS["mistral-7b-instruct-v0.1"].config
    assert qwen2 == PRESETS["qwen2.5-7b-instruct"].config
    assert (mistral.windows, mistral.qkv_bias, mistral.attention_bias) == ((4096,) * 32, False, False)
    assert (qwen2.windows, qwen2.qkv_bias, qwen2.attention_bias) == ((0,) * 28, True, False)
    assert PRESETS["mistral-7b-instruct-v0.2"].config.windows == (0,) * 32


QWEN2: dict[str, Any] = {**SMALL, "model_type": "qwen2", "num_key_value_heads": 2, "num_hidden_layers": 4}
MISTRAL: dict[str, Any] = {**SMALL, "model_type": "mistral", "num_key_value_heads": 2}
MIXED = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
WINDOWS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({**MISTRAL, "sliding_window": 9}, (9, 9)),
    ({**MISTRAL, "sliding_window": None}, (0, 0)),
    (MISTRAL, (4096, 4096)),  # the default of transformers
    ({**QWEN2, "sliding_window": 9, "max_window_layers": 1}, (0, 0, 0, 0)),
    ({**QWEN2, "sliding_window": 9, "max_window_layers": 1, "use_sliding_window": True}, (0, 9, 9, 9)),
    ({**QWEN2, "sliding_window": 9, "max_window_layers": 0, "use_sliding_window": True}, (9, 9, 9, 9)),
    ({**QWEN2, "sliding_window": 9, "use_sliding_window": True}, (0, 0, 0, 0)),  # starting with layer 28
    ({**QWEN2, "sliding_window": None, "max_window_layers": 0, "use_sliding_window": True}, (0, 0, 0, 0)),
    ({**QWEN2, "sliding_window": 9, "layer_types": MIXED, "use_sliding_window": True}, (9, 0, 0, 9)),
    ({**QWEN2, "max_window_layers": 2, "use_sliding_window": True}, (0, 0, 4096, 4096)),
]


@pytest.mark.parametrize(("hf", "windows"), WINDOWS)
def test_windows_are_those_of_transformers_layers(hf: dict[str, Any], windows: tuple[int, ...]) -> None:
    config, theirs = LlamaConfig.from_dict(hf), AutoConfig.for_model(**hf)
    assert config.windows == windows
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * 2
    assert tuple((theirs.sliding_window or 0) * (kind == "sliding_attention") for kind in kinds) == windows
    assert LlamaConfig.from_dict(config.to_dict()) == config
    again = AutoConfig.for_model(**config.to_dict())
    if any(windows):
        assert again.sliding_window == theirs.sliding_window
        assert getattr(again, "layer_types", None) == getattr(theirs, "layer_types", None)


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({**MISTRAL, "sliding_window": 0}, "sliding_window = 0"),
        ({**MISTRAL, "sliding_window": "wide"}, "sliding_window = 'wide'"),
        ({**MISTRAL, "layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({**MISTRAL, "attention_bias": True}, "attention_bias = True"),
        ({**MISTRAL, "use_sliding_window": True}, "use_sliding_window = True"),
        ({**MISTRAL, "architectures": ["LlamaForCausalLM"]}, "'LlamaForCausalLM'.*needed: 'MistralForCausalLM'"),
        ({**QWEN2, "mlp_bias": True}, "mlp_bias = True"),
        ({**QWEN2, "use_mrope": True}, "use_mrope = True"),
        ({**QWEN2, "use_sliding_window": "no"}, "use_sliding_window = 'no'"),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": "all"}, "max_window_layers = 'all'"),
        ({**QWEN2, "layer_types": ["full_attention"]}, "layer_types.*each of 4 layers"),
        ({**QWEN2, "layer_types": ["full_attention"] * 3 + ["chunked_attention"]}, "chunked_attention"),
        ({**QWEN2, "layer_types": MIXED}, "sliding_window is not set or not in use"),
        ({**QWEN2, "model_type": ["qwen2"]}, "'llama', 'mistral', 'qwen2'"),
    ],
)
def test_unsupported_keys_of_mistral_and_qwen2_are_refused(hf: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LlamaConfig.from_dict(hf)


def test_earliest_llama_config_has_no_rope_and_no_kv_heads() -> None:
    config = LlamaConfig.from_dict({**SMALL, "pad_token_id": -1, "bos_token_id": 1, "eos_token_id": 2})
    assert (config.rope_theta, config.rope_scaling) == (10000.0, None)
    assert (config.num_key_value_heads, config.head_dim, config.pad_token_id) == (4, 24, None)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_read_back_through_transformers(name: str) -> None:
    config = LlamaConfig.from_dict(PRESETS[name].config.reference_dict)  # of a class that transformers has
    theirs = AutoConfig.for_model(**config.to_dict())
    assert LlamaConfig.from_dict(theirs.to_dict()) == config
    assert (theirs.architectures, theirs.model_type) == (config.to_dict()["architectures"], config.model_type)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("extra", [{}, {"head_dim": 40, "attention_bias": True, "eos_token_id": [5, 7]}])
def test_every_rope_kind_in_both_spellings(rope: dict[str, Any], extra: dict[str, Any]) -> None:
    """rope_scaling + rope_theta of transformers 4 and rope_parameters of transformers 5 convert into each other."""
    old = LlamaConfig.from_dict({**SMALL, **extra, "rope_theta": 5000.0, "rope_scaling": rope})
    new = LlamaConfig.from_dict({**SMALL, **extra, "rope_parameters": {**rope, "rope_theta": 5000.0}})
    assert old == new
    assert LlamaConfig.from_dict(old.to_dict()) == old
    theirs = HFLlamaConfig(**old.to_dict())
    assert theirs.rope_parameters["rope_type"] == rope["rope_type"]
    assert theirs.rope_parameters["rope_theta"] == 5000.0
    assert LlamaConfig.from_dict(theirs.to_dict()) == old


def test_older_spelling_of_the_rope_kind() -> None:
    config = LlamaConfig.from_dict({**SMALL, "rope_scaling": {"type": "linear", "factor": 2}})
    assert config.rope_scaling == RopeScaling("linear", 2)


def test_original_context_beside_the_rope_parameters_wins_as_in_transformers() -> None:
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    given = {**SMALL, "rope_scaling": rope, "original_max_position_embeddings": 128}
    config = LlamaConfig.from_dict(given)
    assert config.rope_scaling is not None
    assert config.rope_scaling.original_max_position_embeddings == 128
    theirs = HFLlamaConfig(**given)
    LlamaRotaryEmbedding(theirs)  # computes the parameters
    assert theirs.rope_parameters["original_max_position_embeddings"] == 128


@pytest.mark.parametrize("key", [k for k in SMALL if k != "model_type"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(UserError, match=rf"lacks {key}\b"):
        LlamaConfig.from_dict({k: v for k, v in SMALL.items() if k != key})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mixtral"}, "'mixtral'.*mixture of experts"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.*awq.*unquantized"),
    ({"sliding_window": 4096}, "sliding_window = 4096"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ({"rope_interleaved": True}, "rope_interleaved = True"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "auto_map.*its own code"),
    ({"logits_scaling": 8.0}, "logits_scaling = 8.0"),
    ({"frobnication": 3, "qk_layernorm": True}, "qk_layernorm = True.*frobnication = 3.*remove it"),
    ({"num_key_value_heads": 3}, "num_attention_heads = 4.*num_key_value_heads = 3"),
    ({"hidden_size": 98}, "hidden_size = 98.*num_attention_heads = 4"),
    ({"head_dim": 25}, "head_dim = 25 is odd"),
    ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
    ({"num_attention_heads": 0}, "num_attention_heads = 0"),
    ({"vocab_size": "many"}, "vocab_size = 'many'"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps = -1e-05"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'"),
    ({"eos_token_id": ["</s>"]}, "'</s>'"),
    ({"rope_scaling": "linear"}, "rope_scaling = 'linear'"),
    ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "'longrope'.*long_factor"),
    ({"rope_scaling": {"rope_type": "mrope"}}, "'mrope'.*supported: default, linear"),
    ({"rope_scaling": {"rope_type": "linear"}}, "'linear' needs factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor = 0"),
    # wrong types and numbers out of range, found by `make torture`: each was a traceback or came up later
    ({"architectures": 7}, "architectures = 7.*list of texts"),
    ({"auto_map": {"AutoModel": 1}, "model_type": "llama"}, "auto_map"),
    ({"rope_scaling": {"rope_type": ["linear"]}}, "rope_scaling.rope_type"),
    ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "rope_scaling.factor = '4'"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 10**400}}, "rope_parameters.rope_theta"),
    ({"num_hidden_layers": 1 << 31}, "num_hidden_layers = 2147483648.*1 to 10,000"),
    ({"bos_token_id": 1 << 31}, "bos_token_id = 2147483648"),
    ({"model_type": "mistral", "sliding_window": 1 << 40}, "sliding_window = 1099511627776"),
    ({"frobnication": "[" * 5000}, "frobnication = .{10,80} is no known setting of LlamaForCausalLM"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "alpha": 1000}}, "does not take alpha = 1000"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "partial_rotary_factor = 0.25"),
    (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
        "which differ",
    ),
    (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
        "high_freq_factor = 1.0 must be above",
    ),
]


def test_rope_parameters_without_finite_frequencies_are_refused() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    config = LlamaConfig.from_dict({**SMALL, "rope_theta": 1.0, "rope_scaling": rope})
    with pytest.raises(UserError, match=r"no finite frequencies: rope_theta = 1\.0"):
        rope_frequencies(config)


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[str(sorted(c)) for c, _ in REFUSED])
def test_unsupported_config_keys_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LlamaConfig.from_dict({**SMALL, **change})


@pytest.mark.parametrize(
    "harmless",
    [
        {"frobnication": None, "_attn_implementation_autoset": True, "unsloth_version": "2024.9"},
        {"sliding_window": None, "layer_types": ["full_attention", "full_attention"]},
        {"auto_map": {"AutoTokenizer": "tokenization_x.X"}},
        {"partial_rotary_factor": 1.0, "rope_interleaved": False, "logits_scaling": 1},
        {"rope_scaling": None, "rope_parameters": None},
    ],
)
def test_neutral_values_are_ignored(harmless: dict[str, Any]) -> None:
    assert LlamaConfig.from_dict({**SMALL, **harmless}) == LlamaConfig.from_dict(SMALL)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("qwen2", "max_window_layers"),
        ("smollm3", "no_rope_layer_interval"),
        ("granite", "residual_multiplier"),
        ("minicpm", "scale_emb"),
        ("gemma2", "query_pre_attn_scalar"),
        ("gemma3_text", "rope_theta"),
    ],
)
def test_null_means_the_default(kind: str, key: str) -> None:
    values = {"model_type": kind, **DEFAULTS}
    values.pop(key, None)
    config = LlamaConfig.from_dict({**values, key: None})
    assert config == LlamaConfig.from_dict(values)
    assert config.to_dict() == LlamaConfig.from_dict(values).to_dict()


def test_unknown_keys_are_one_sentence() -> None:
    """It names the architecture, the first five keys, and the remedy."""
    strange = {f"strange_{i}": i + 1 for i in range(7)}
    with pytest.raises(UserError) as raised:
        LlamaConfig.from_dict({**SMALL, "model_type": "olmo2", **strange})
    message = str(raised.value)
    assert message.count("mathematics") == message.count("config.json") == message.count("Olmo2ForCausalLM") == 1
    assert "strange_4 = 5 and 2 more keys are no known settings" in message
    assert "strange_5" not in message
