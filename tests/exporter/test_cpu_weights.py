"""Which checkpoint tensors form the weights of the cpu op set; quantized blocks are copied without a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from edgellama.errors import UserError
from edgellama.exporter.checkpoint.base import RawBlocks
from edgellama.exporter.opsets.cpu_weights import bias_value, format_of, weight_pieces
from edgellama.kernels import weight_format as wf

LAYER = "model.layers.0"
SIZES = {"q_proj": 48, "k_proj": 16, "v_proj": 16, "gate_proj": 40, "up_proj": 40, "o_proj": 64}


class Fake:
    """A checkpoint of one layer whose matrices [n, 64] are stored as blocks of `kind`."""

    path = Path("fake")

    def __init__(self, kind: Kind | None):
        self.kind = kind

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensor(name).shape

    def rows(self, name: str, first: int, count: int) -> np.ndarray:
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


@pytest.mark.parametrize("kind", [None, Kind.Q8_0, Kind.Q4_1])
def test_q4_0_is_made_of_q4_0_only(kind: Kind | None) -> None:
    with pytest.raises(UserError, match=r"WEIGHTS=q4_0 takes GGUF files of type Q4_0.*Use WEIGHTS=int4"):
        values(f"{LAYER}.self_attn.o_proj.weight", kind, "q4_0", 64)
    assert values(f"{LAYER}.self_attn.o_proj.weight", kind, "int4", 64).shape == (64, 64)


def test_tables_keep_eight_bits_under_four() -> None:
    for weights in ("int4", "q4_0"):
        assert format_of("lm_head.weight", weights) == format_of("model.embed_tokens.weight", weights) == "int8"
        assert format_of(f"{LAYER}.mlp.down_proj.weight", weights) == weights
