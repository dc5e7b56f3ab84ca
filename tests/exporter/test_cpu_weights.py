"""Which checkpoint tensors form the weights of the cpu op set; quantized blocks are copied without a change."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from edgellama.artifact.manifest import TensorSpec
from edgellama.backend import layer_tensors as runtime_layers
from edgellama.errors import UserError
from edgellama.exporter.checkpoint.base import RawBlocks
from edgellama.exporter.graph_spec import Shape
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.opsets.cpu_weights import (
    Place,
    abi_of,
    bias_value,
    format_of,
    layer_tensors,
    layer_variant,
    merged_place,
    packed_matrix,
    weight_pieces,
)
from edgellama.kernels import weight_format as wf
from edgellama.kernels.cpu.library import LibraryError
from support.checkpoints import CONFIGS, DEFAULTS

LAYER = "model.layers.0"
SIZES = {"q_proj": 48, "k_proj": 16, "v_proj": 16, "gate_proj": 40, "up_proj": 40, "o_proj": 64, "down_proj": 200}


class Fake:
    """A checkpoint of one layer whose matrices [n, 64] are stored as blocks of `kind`."""

    path = Path("fake")

    def __init__(self, kind: Kind | None):
        self.kind = kind

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensor(name).shape

    def rows(self, name: str, first: int, count: int) -> np.ndarray:
        assert 0 <= first < first + count <= len(self.tensor(name))
        return self.tensor(name)[first : first + count]

    def tensor(self, name: str) -> np.ndarray:
        part = name.split(".")[-2]
        w = np.random.default_rng(len(name) + ord(part[0])).standard_normal((SIZES[part], 64)).astype(np.float32)
        if name.endswith("bias"):
            return w[:, 0]
        return w if self.kind is None else dequantize(quantize(w, self.kind), self.kind)

    def raw(self, name: str, first: int, count: int) -> RawBlocks | None:
        if self.kind is None:
            return None
        plain = Fake(None)
        return RawBlocks(self.kind.name, quantize(plain.rows(name, first, count), self.kind))


def values(name: str, kind: Kind | None, fmt: str, rows: int) -> np.ndarray:
    checkpoint: Any = Fake(kind)
    packed = np.concatenate([piece() for piece in weight_pieces(name, checkpoint, fmt)])
    return wf.unpack(packed.reshape(-1), fmt, rows, 64)


@pytest.mark.parametrize("piece_bytes", [1, 32 * 64 * 4, 1 << 20])
@pytest.mark.parametrize(("kind", "fmt"), [(None, "f32"), (Kind.Q8_0, "int8"), (Kind.Q4_0, "q4_0")])
def test_matrices_are_the_checkpoints(
    kind: Kind | None, fmt: str, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are exact if the format can hold the source: float32, Q8_0 in int8, Q4_0 in q4_0; in blocks or whole."""
    monkeypatch.setattr("edgellama.exporter.checkpoint.row_blocks.PIECE_BYTES", piece_bytes)
    attention, mlp, source = f"{LAYER}.self_attn", f"{LAYER}.mlp", Fake(kind)
    qkv = np.concatenate([source.tensor(f"{attention}.{x}_proj.weight") for x in "qkv"])
    np.testing.assert_array_equal(values(f"{attention}.qkv_proj.weight", kind, fmt, 80), qkv)
    o = source.tensor(f"{attention}.o_proj.weight")
    np.testing.assert_array_equal(values(f"{attention}.o_proj.weight", kind, fmt, 64), o)
    both = values(f"{mlp}.gate_up_proj.weight", kind, fmt, 96).reshape(3, 2, 16, 64)
    for i, part in enumerate(("gate", "up")):
        want = source.tensor(f"{mlp}.{part}_proj.weight")
        np.testing.assert_array_equal(both[:, i].reshape(48, 64)[:40], want)
        assert not both[:, i].reshape(48, 64)[40:].any()


def test_biases_follow_the_packed_columns() -> None:
    checkpoint: Any = Fake(None)
    gate, up = (checkpoint.tensor(f"{LAYER}.mlp.{part}_proj.bias") for part in ("gate", "up"))
    got = bias_value(f"{LAYER}.mlp.gate_up_proj.bias", checkpoint).reshape(3, 2, 16)
    np.testing.assert_array_equal(got[:, 0].reshape(-1)[:40], gate)
    np.testing.assert_array_equal(got[:, 1].reshape(-1)[:40], up)
    down = bias_value(f"{LAYER}.mlp.down_proj.bias", checkpoint)
    np.testing.assert_array_equal(down[:200], checkpoint.tensor(f"{LAYER}.mlp.down_proj.bias"))
    assert down.shape == (208,) and not down[200:].any()
    parts = [checkpoint.tensor(f"{LAYER}.self_attn.{x}_proj.bias") for x in "qkv"]
    np.testing.assert_array_equal(
        bias_value(f"{LAYER}.self_attn.qkv_proj.bias", checkpoint), np.concatenate(parts).astype(np.float32)
    )


@pytest.mark.parametrize("kind", [None, Kind.Q8_0, Kind.Q4_1])
def test_q4_0_is_made_of_q4_0_only(kind: Kind | None) -> None:
    with pytest.raises(UserError, match=r"WEIGHTS=q4_0 takes GGUF files of type Q4_0.*Use WEIGHTS=int4"):
        values(f"{LAYER}.self_attn.o_proj.weight", kind, "q4_0", 64)
    assert values(f"{LAYER}.self_attn.o_proj.weight", kind, "int4", 64).shape == (64, 64)


def test_tables_keep_eight_bits_under_four() -> None:
    for weights in ("int4", "q4_0", "w4g32", "w4g64", "w4g128"):
        assert format_of("lm_head.weight", weights) == format_of("model.embed_tokens.weight", weights) == "int8"
        assert format_of(f"{LAYER}.mlp.down_proj.weight", weights) == weights


def test_a_piece_is_bounded_and_has_pairs_of_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is at most PIECE_BYTES of float32 rows, here 96 rows of 64."""
    monkeypatch.setattr("edgellama.exporter.checkpoint.row_blocks.PIECE_BYTES", 96 * 64 * 4 + 100)
    checkpoint: Any = Fake(None)
    pieces = [piece() for piece in weight_pieces(f"{LAYER}.mlp.down_proj.weight", checkpoint, "int8")]
    assert [piece.shape for piece in pieces] == [(panels, wf.panel_bytes("int8", 64)) for panels in (6, 6, 1)]
    found = wf.unpack(np.concatenate(pieces).reshape(-1), "int8", 200, 64)
    np.testing.assert_allclose(found, checkpoint.tensor(f"{LAYER}.mlp.down_proj.weight"), atol=0.03)


def test_a_packer_that_is_not_built_is_reported_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise LibraryError("the CPU kernels are not built")

    monkeypatch.setattr("edgellama.kernels.cpu.library.library", missing)
    checkpoint: Any = Fake(None)
    with pytest.raises(UserError, match="the CPU kernels are not built"):
        next(weight_pieces(f"{LAYER}.self_attn.o_proj.weight", checkpoint, "int8"))


def test_an_infinite_scale_of_q4_0_is_refused() -> None:
    class Damaged(Fake):
        def raw(self, name: str, first: int, count: int) -> RawBlocks | None:
            found = super().raw(name, first, count)
            assert found is not None
            found.blocks[5, :2] = np.array([np.inf], np.float16).view(np.uint8)
            return found

    checkpoint: Any = Damaged(Kind.Q4_0)
    with pytest.raises(UserError, match=r"o_proj\.weight is damaged.*row 5\)"):
        list(piece() for piece in weight_pieces(f"{LAYER}.self_attn.o_proj.weight", checkpoint, "q4_0"))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_tensors_of_every_architecture_are_those_that_the_runtime_expects(name: str) -> None:
    """The exporter and the runtime each list them, the exporter by the rows of family.py."""
    config = {**DEFAULTS, "model_type": "llama", **CONFIGS[name]}
    read = LlamaConfig.from_dict(config)
    found = layer_tensors(read, Shape(1, 1, 64, "int8"), 1)
    names = [spec.name for spec in found]
    assert found == runtime_layers.layer_tensors(read.to_dict(), "int8", "model.layers.1.", names)
    assert sum(name.endswith("proj.weight") for name in names) == 4


# What the kernels must know besides Llama, and the oldest ABI that has it, as transformers' classes are written.
BOTH = {"norms": "both", "norm_eps": 1e-5, "activation": "gelu_pytorch_tanh"}
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    **dict.fromkeys(("plain", "mistral", "qwen2", "granite", "internlm3", "exaone", "phi3", "smollm3"), ({}, 2)),
    "gemma": ({"activation": "gelu_pytorch_tanh"}, 3),
    "gemma2": ({**BOTH, "softcap": 5.0}, 3),
    "gemma2-window-3": (BOTH, 3),
    "gemma3": ({**BOTH, "qk_norm": "each"}, 3),
    "qwen3": ({"qk_norm": "each", "norm_eps": 1e-5}, 3),
    "hunyuan": ({"qk_norm": "after_rope", "norm_eps": 1e-5}, 3),
    "olmo2": ({"norms": "post", "qk_norm": "whole", "norm_eps": 1e-5}, 3),
    "exaone4": ({"norms": "post", "qk_norm": "each", "norm_eps": 1e-5}, 3),
    "ministral3-long": ({"query_beta": 0.5, "query_period": 16}, 4),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_kernels_get_what_differs_from_llama(name: str) -> None:
    config = LlamaConfig.from_dict({**DEFAULTS, "model_type": "llama", **CONFIGS[name]})
    variant, abi = VARIANTS[name]
    assert layer_variant(config) == variant
    assert [abi_of(config, weights) for weights in ("int8", "int4", "q4_0")] == [abi] * 3
    assert [abi_of(config, weights) for weights in wf.W4_GROUPS] == [4] * 3


def test_a_cap_of_the_logits_alone_needs_the_abi_that_has_it() -> None:
    gemma = {**DEFAULTS, **CONFIGS["gemma2"], "attn_logit_softcapping": None}
    capped = dataclasses.replace(
        LlamaConfig.from_dict({**DEFAULTS, "model_type": "llama"}), final_logit_softcapping=3.0
    )
    assert (layer_variant(capped), abi_of(capped, "int8")) == ({}, 3)
    assert "softcap" not in layer_variant(LlamaConfig.from_dict(gemma))


@pytest.mark.parametrize("weights", ["int8", "int4", "fp32", "w4g64"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layers_tensors_are_those_that_the_runtime_expects(weights: str, bias: bool) -> None:
    """The exporter and the runtime each list them; sizes that do not fill panels, q wider than k."""
    sizes = {"head_dim": 20, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 104}
    config = {**DEFAULTS, "model_type": "llama", "attention_bias": bias, "mlp_bias": bias, **sizes}
    found = layer_tensors(LlamaConfig.from_dict(config), Shape(1, 1, 64, weights), 3)
    names = [spec.name for spec in found]
    assert sum(name.endswith("bias") for name in names) == (4 if bias else 0)
    assert found == runtime_layers.layer_tensors(config, weights, "model.layers.3.", names)


def test_tables_and_matrices_are_stored_as_panels() -> None:
    shape = Shape(1, 1, 64, "int4")
    assert packed_matrix("lm_head.weight", 33, 40, shape) == TensorSpec(
        "lm_head.weight", "uint8", (3, wf.panel_bytes("int8", 40))
    )
    assert packed_matrix("x.weight", 48, 40, shape).shape == (3, wf.panel_bytes("int4", 40))


def test_the_place_of_a_matrix_inside_its_packed_one() -> None:
    checkpoint: Any = Fake(None)
    attention, mlp = f"{LAYER}.self_attn", f"{LAYER}.mlp"
    packed = f"{attention}.qkv_proj.weight"
    for part, row in (("q", 0), ("k", 48), ("v", 64)):
        assert merged_place(f"{attention}.{part}_proj.weight", checkpoint) == Place(packed, row, 0, 1)
    for first, part in enumerate(("gate", "up")):
        place = merged_place(f"{mlp}.{part}_proj.weight", checkpoint)
        assert place == Place(f"{mlp}.gate_up_proj.weight", 0, first, 2)
    for name in (f"{attention}.o_proj.weight", "lm_head.weight"):
        assert merged_place(name, checkpoint) == Place(name)
