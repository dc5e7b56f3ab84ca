"""Regular expressions in the configs of strangers: those that take for ever, and those that are none, are errors."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgellama.errors import UserError
from edgellama.exporter.checkpoint.quantized.scheme import read_scheme
from edgellama.limited.expressions import check_expressions
from edgellama.lora.adapter import Adapter, Base
from edgellama.lora.config import read_config

MODULES = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(32) for part in "qkvo"]
BASE = Base("a model", {f"{module}.weight": (8, 8) for module in MODULES})
ENDLESS = r"(([a-z_.\d]+)+)+!"


def adapter(folder: Path, **settings: Any) -> Path:
    """Writes an adapter of rank 2 for all MODULES."""
    folder.mkdir(exist_ok=True)
    prefix = "base_model.model."
    tensors = {f"{prefix}{module}.lora_A.weight": np.ones((2, 8), np.float32) for module in MODULES}
    tensors |= {f"{prefix}{module}.lora_B.weight": np.ones((8, 2), np.float32) for module in MODULES}
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [f"{part}_proj" for part in "qkvo"]
    config = {"peft_type": "LORA", "r": 2, "target_modules": targets, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ENDLESS},
        {"rank_pattern": {ENDLESS: 2}},
        {"layers_to_transform": [0], "layers_pattern": [ENDLESS]},
    ],
    ids=lambda settings: next(reversed(settings)),
)
def test_an_adapters_expression_that_takes_for_ever_is_an_error(tmp_path: Path, settings: dict[str, Any]) -> None:
    began = time.process_time()
    with pytest.raises(
        UserError,
        match=r"adapter_config\.json: matching .* takes more than 2 seconds .* Name the modules in plain",
    ):
        Adapter(adapter(tmp_path / "a", **settings), 1.0, BASE)
    assert time.process_time() - began < 2  # this process has matched nothing


def test_expressions_that_end_are_matched(tmp_path: Path) -> None:
    settings = {
        "target_modules": r".*\.(\d+)\.self_attn\.[qkvo]_proj",
        "rank_pattern": {r"layers\.(1|2)\..*q_proj": 2, "k_proj": 2},
        "exclude_modules": r"(?i).*vision.*",
    }
    found = Adapter(adapter(tmp_path / "a", **settings), 1.0, BASE)
    assert sorted(found.low_rank) == sorted(MODULES)
    # The groups of a pattern for the lists of layers are not the number of the layer.
    layers = {"layers_to_transform": list(range(32)), "layers_pattern": "(lay)(ers|x)?"}
    config = read_config(adapter(tmp_path / "b", **layers))
    assert all(config.adapts(module) for module in MODULES)
    config = read_config(adapter(tmp_path / "c", **layers | {"layers_to_transform": [99]}))
    assert not any(config.adapts(module) for module in MODULES)
    config = read_config(adapter(tmp_path / "d", exclude_modules="a+", alpha_pattern={"b+": 2}, layers_pattern="c+"))
    assert config.expressions() == ["a+", r"(.*\.)?(b+)$", r"(?:^|.*?\.)c+\.(\d+)\."]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank_pattern", {"(?i)q_proj": 2}),
        ("alpha_pattern", {"(?i)q_proj": 2}),
        ("layers_pattern", "(?i)layers"),
        ("target_modules", "(" * 5000 + ")" * 5000),
        ("target_modules", "(?:a){99999999999999999999}"),
        ("target_modules", "a**"),
        ("rank_pattern", {"a)|(b": 2}),
    ],
)
def test_an_expression_that_is_none_where_it_stands_is_named(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"adapter_config\.json: {key} is .*needed: a regular expression"):
        read_config(adapter(tmp_path, **{key: value, "layers_to_transform": [0]}))


def test_a_long_key_is_shortened_in_the_message(tmp_path: Path) -> None:
    for settings in ({"x" * 100_000: 1}, {"rank_pattern": {"x" * 100_000: "a"}}):
        with pytest.raises(UserError) as caught:
            read_config(adapter(tmp_path, **settings))
        assert len(str(caught.value)) < 500


def test_the_targets_of_compressed_tensors_are_checked_likewise() -> None:
    def scheme(target: str) -> Any:
        weights = {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": True}
        group = {"targets": [target], "weights": weights}
        given = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
        return read_scheme({"quantization_config": given})

    for target in ("re:(?:a){99999999999999999999}", "re:" + "(" * 5000 + ")" * 5000, "re:a**"):
        with pytest.raises(UserError, match=r"targets = .*needed: a valid regular expression"):
            scheme(target)
    expressions = scheme(f"re:{ENDLESS}").expressions()
    assert expressions == [ENDLESS] and scheme("Linear").expressions() == []
    with pytest.raises(UserError, match=r"config: matching 1 regular expressions .* Use another"):
        check_expressions(expressions, MODULES, "config", "Use another")


def test_without_expressions_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellama.limited.process._start", lambda: pytest.fail("a process"))
    check_expressions([], MODULES, "x", "y")
    check_expressions(["a.*"], [], "x", "y")
