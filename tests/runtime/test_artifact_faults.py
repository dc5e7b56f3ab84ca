"""Each fault of a weights table has its message. `make torture` mutates tables and manifests at random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgellama.errors import UserError
from support.layered_weights import LayeredWeights, layered_weights, with_header


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> LayeredWeights:
    return layered_weights(tmp_path_factory.mktemp("weights"))


def swap(header: dict[str, Any], first: str, second: str) -> None:
    header[first], header[second] = header[second], header[first]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["model.norm.weight"].update(data_offsets=[0, 128]), "overlaps the one before"),
        (lambda h: h.pop("model.norm.weight"), "bytes follow its last tensor"),
        (lambda h: h["model.norm.weight"].update(data_offsets=[-128, 0]), r"data_offsets \[-128, 0\]"),
        (lambda h: h["model.norm.weight"].update(shape=[33]), r"128 bytes; F32 \[33\] has 132"),
        (lambda h: h["model.norm.weight"].update(shape=[1 << 61, 1 << 61, 0]), "shape|bytes"),
        (lambda h: h["model.norm.weight"].update(dtype="I32"), r"is int32 \[32\]; the graph takes float32"),
        (lambda h: h.update(other=h.pop("model.norm.weight")), "has no tensor 'model.norm.weight'"),
        (
            lambda h: swap(
                h, "model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight"
            ),
            "where the kernel reads",
        ),
        (
            lambda h: swap(h, "model.layers.0.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj.weight"),
            "contiguous|where the kernel reads",
        ),
        (lambda h: h.update({"model.layers.0.more": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}), "reads"),
        (lambda h: h.update(__metadata__=[]), "__metadata__"),
    ],
)
def test_each_fault_of_a_weights_table_has_its_message(
    layered: LayeredWeights,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    whole = layered.path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    change(header)
    (tmp_path / "w").write_bytes(with_header(json.dumps(header).encode(), whole[start:]))
    with pytest.raises(UserError, match=message):
        layered.checked(tmp_path / "w")


def test_bytes_behind_the_last_tensor_and_a_misplaced_start_are_refused(
    layered: LayeredWeights, tmp_path: Path
) -> None:
    whole = layered.path.read_bytes()
    (tmp_path / "w").write_bytes(whole + b"x")
    with pytest.raises(UserError, match="1 bytes follow its last tensor"):
        layered.checked(tmp_path / "w")
    start = 8 + int.from_bytes(whole[:8], "little")
    (tmp_path / "w").write_bytes((start - 8 + 8).to_bytes(8, "little") + whole[8:start] + b" " * 8 + whole[start:])
    with pytest.raises(UserError, match="needed: a multiple of 64"):
        layered.checked(tmp_path / "w")
