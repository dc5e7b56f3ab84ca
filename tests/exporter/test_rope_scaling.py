"""ROPE_SCALING, the user's own scaling of the rotary embedding, against transformers with the same override."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgellama.__main__ import main
from edgellama.artifact.source import Source
from edgellama.errors import UserError
from edgellama.exporter.checkpoint.open import open_checkpoint, opened_for
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.network.rope import rope_tables
from edgellama.exporter.proof.float_reference import _numpy
from support.checkpoints import CONFIGS
from support.child import run_cli
from support.step_runs import relative_error

MADE_FOR = 64  # max_position_embeddings of these configs, or original_max_position_embeddings of phi3
YARN = {"rope_type": "yarn", "factor": 4.0}
SCALINGS: list[dict[str, Any]] = [
    YARN,
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "attention_factor": 0.9},
    {"rope_type": "linear", "factor": 4.0},
    {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "default"},
]
NAMES = ("plain", "llama3", "qwen3", "phi3-partial", "gemma3", "olmo3", "smollm3")
LONG = 128  # tokens of a comparison


def overridden(folder: Path, rope: dict[str, Any]) -> Any:
    """Return transformers' model with the rope parameters replaced, as a user of transformers would."""
    config = AutoConfig.from_pretrained(folder)
    old = config.rope_parameters
    if "full_attention" in old:
        config.rope_parameters = {**old, "full_attention": {**kept(old["full_attention"]), **rope}}
    else:
        config.rope_parameters = {**kept(old), **rope}
    config.standardize_rope_params()
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()


def kept(rope: dict[str, Any]) -> dict[str, Any]:
    return {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}


@pytest.mark.parametrize("rope", SCALINGS, ids=lambda rope: "-".join(map(str, rope.values())))
@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_that_of_transformers(
    name: str, rope: dict[str, Any], tiny_checkpoint: Callable[..., Path]
) -> None:
    folder = tiny_checkpoint(**{**CONFIGS[name], "max_position_embeddings": MADE_FOR})
    checkpoint = open_checkpoint(folder)
    before = checkpoint.config
    checkpoint.config = before.with_rope_scaling(rope)
    tokens = np.random.default_rng(3).integers(0, before.vocab_size, LONG)
    with torch.no_grad():
        expected = overridden(folder, rope)(torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert relative_error(_numpy(checkpoint, tokens.astype(np.int32), list(range(LONG))), expected) < 1e-5
    assert checkpoint.config.to_dict() != before.to_dict() or before.rope_scaling is None
    assert LlamaConfig.from_dict(json.loads(json.dumps(checkpoint.config.to_dict()))) == checkpoint.config


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        (YARN, 4 * MADE_FOR),
        ({**YARN, "original_max_position_embeddings": 32}, 128),
        ({**YARN, "original_max_position_embeddings": 8}, MADE_FOR),
        ({"type": "linear", "factor": 2.5}, 160),
        ({"rope_type": "dynamic", "factor": 4.0}, MADE_FOR),
        ({"rope_type": "default"}, MADE_FOR),
    ],
)
def test_the_longest_context(rope: dict[str, Any], longest: int, tiny_checkpoint: Callable[..., Path]) -> None:
    config = open_checkpoint(tiny_checkpoint(max_position_embeddings=MADE_FOR)).config.with_rope_scaling(rope)
    assert config.max_position_embeddings == config.longest_context == longest


def test_a_config_with_yarn_holds_more_than_its_maximum(tiny_checkpoint: Callable[..., Path]) -> None:
    """Model cards say: add rope_scaling to config.json. The maximum in the same file stays."""
    rope = {"rope_theta": 10000.0, **YARN, "original_max_position_embeddings": MADE_FOR}
    config = open_checkpoint(tiny_checkpoint(max_position_embeddings=MADE_FOR, rope_parameters=rope)).config
    assert (config.max_position_embeddings, config.longest_context) == (MADE_FOR, 4 * MADE_FOR)


@pytest.mark.parametrize("repeated", [False, True])
def test_the_checkpoint_of_an_artifact_opens_again(repeated: bool, tiny_checkpoint: Callable[..., Path]) -> None:
    """ROPE_SCALING may repeat the scaling that the config has; the maximum then grows all the same."""
    own = {"rope_parameters": {"rope_theta": 10000.0, **YARN, "original_max_position_embeddings": MADE_FOR}}
    folder = tiny_checkpoint(max_position_embeddings=MADE_FOR, **(own if repeated else {}))
    exported = open_checkpoint(folder).config.with_rope_scaling(YARN)
    assert exported.max_position_embeddings == 4 * MADE_FOR
    source = Source(str(folder), "here", None, None)
    manifest: Any = SimpleNamespace(name="m", source=source, config=exported.to_dict())
    assert opened_for(manifest, None).config == exported


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "yarn"}, None),  # the factor is then maximum / original, as in transformers
        ({"factor": 4.0}, "does not take factor"),
        ({"rope_type": "mrope"}, "'mrope' is not supported"),
        ({"rope_type": "yarn", "factor": "4"}, "rope_scaling.factor = '4'"),
        ({"rope_type": "yarn", "factor": -1.0}, "rope_scaling.factor = -1.0"),
        ({"rope_type": ["yarn"]}, "rope_scaling.rope_type"),
        ({**YARN, "beta": 1}, "does not take beta = 1"),
        ({**YARN, "original_max_position_embeddings": 0}, "original_max_position_embeddings = 0 .* above 0"),
        ({"rope_type": "yarn", "original_max_position_embeddings": 0}, "needs factor|embeddings = 0"),
        ({"rope_type": "llama3", "factor": 8.0}, "needs high_freq_factor, low_freq_factor"),
    ],
)
def test_bad_values(rope: dict[str, Any], message: str | None, tiny_checkpoint: Callable[..., Path]) -> None:
    config = open_checkpoint(tiny_checkpoint(max_position_embeddings=MADE_FOR)).config
    if message is None:
        assert config.with_rope_scaling(rope).longest_context == MADE_FOR
        return
    with pytest.raises(UserError, match=message):
        config.with_rope_scaling(rope)


@pytest.mark.parametrize("factor", [{"attention_factor": 1e39}, {"mscale": 1e29, "mscale_all_dim": 1e-29}])
def test_an_attention_factor_beyond_float32_is_refused(
    factor: dict[str, float], tiny_checkpoint: Callable[..., Path]
) -> None:
    """The tables would be infinite, and an export without a proof would not notice."""
    config = open_checkpoint(tiny_checkpoint(max_position_embeddings=MADE_FOR)).config
    with pytest.raises(UserError, match=r"attention factor .* needed: at most 1e\+06"):
        rope_tables(config.with_rope_scaling({**YARN, **factor}), 8)


@pytest.mark.parametrize("text", ["yarn", "[4]", "{", '{"factor": NaN}', "4.0"])
def test_bad_texts(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "llama3-8b", "--rope-scaling", text])
    assert "Give a JSON object such as" in capsys.readouterr().err


def test_an_artifact_beyond_the_maximum(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder, out = tiny_checkpoint(**CONFIGS["qwen3"], max_position_embeddings=MADE_FOR), tmp_path / "out"
    words = ["export", str(folder), "--weights=fp32", "--buckets=64,128", f"--out={out}", "--no-verify"]
    assert run_cli(*words, f"--context={MADE_FOR + 1}").returncode == 2
    assert run_cli(*words, "--context=256", f"--rope-scaling={json.dumps(YARN)}").returncode == 0
    # Opens the checkpoint again; compares at 63 to 129, and in 64 steps.
    assert run_cli("verify", str(out)).returncode == 0
