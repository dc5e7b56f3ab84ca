"""Configs with all the keys of published files: also those that a model's class does not use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgellama.errors import UserError
from edgellama.exporter.network.config import LlamaConfig

PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "published_configs.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_of_a_published_config_is_understood(name: str) -> None:
    config = LlamaConfig.from_dict(PUBLISHED[name])
    assert LlamaConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("Hunyuan-7B", "use_qk_norm", False),
        ("Hunyuan-7B", "use_cla", True),
        ("Hunyuan-7B", "num_experts", 16),
        ("Hunyuan-7B", "norm_type", "layer"),
        ("Phi-4-mini-instruct", "full_attn_mod", 2),
        ("Phi-4-mini-instruct", "lm_head_bias", True),
        ("Phi-4-mini-instruct", "auto_map", {"AutoModelForCausalLM": "modeling_own.MyPhi"}),
        ("Phi-4-mini-instruct", "auto_map", {"AutoModelForCausalLM": 3}),
        ("openPangu-Embedded-7B", "num_experts", 8),
        ("MiniCPM-2B-sft-bf16", "use_cla", True),
    ],
)
def test_other_values_of_these_keys_are_refused(name: str, key: str, value: Any) -> None:
    with pytest.raises(UserError, match="experts" if key == "num_experts" else key):
        LlamaConfig.from_dict({**PUBLISHED[name], key: value})
