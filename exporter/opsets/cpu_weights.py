"""The cpu op set's weights: which checkpoint tensors make each, in which format, packed by the kernel library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellama.artifact.manifest import TensorSpec
from edgellama.backend.cpu_kernels import kernel_library
from edgellama.errors import UserError
from edgellama.kernels.cpu.packing import pack, pack_quantized
from edgellama.kernels.weight_format import PANEL, interleave_gate_up, panel_bytes, panel_count

from ..checkpoint.base import Checkpoint
from ..checkpoint.row_blocks import Piece, row_blocks
from ..graph_spec import Shape
from ..network.config import LlamaConfig
from ..network.layer_sizes import linear_sizes

# --weights -> the packed format of the layers' matrices
FORMATS = {"int8": "int8", "int4": "int4", "bf16": "bf16", "fp32": "f32", "q4_0": "q4_0"}
TABLES = ("model.embed_tokens.weight", "lm_head.weight")  # under four bits they keep eight


def format_of(name: str, weights: str) -> str:
    """The packed format of the matrix `name` in an artifact of this weight format."""
    return "int8" if weights in ("int4", "q4_0") and name in TABLES else FORMATS[weights]


def packed_matrix(name: str, outer: int, inner: int, shape: Shape) -> TensorSpec:
    """The stored form of a matrix [outer, inner]: uint8 [panels, bytes of a panel]."""
    return TensorSpec(name, "uint8", (panel_count(outer), panel_bytes(format_of(name, shape.weights), inner)))


def layer_tensors(config: LlamaConfig, shape: Shape, layer: int) -> list[TensorSpec]:
    """What weights.safetensors holds of a layer, in the order in which the kernel reads it."""
    name = f"model.layers.{layer}"
    found: list[TensorSpec] = []

    def add(linear: str, outer: int, inner: int, bias: bool, norm: str | None = None) -> None:
        found.append(packed_matrix(f"{name}.{linear}.weight", outer, inner, shape))
        if norm:
            found.append(TensorSpec(f"{name}.{norm}.weight", "float32", (inner,)))
        if bias:
            found.append(TensorSpec(f"{name}.{linear}.bias", "float32", (panel_count(outer) * PANEL,)))

    (q, hidden, bias), (k, _, _) = (linear_sizes(config, f"{part}_proj") for part in "qk")
    add("self_attn.qkv_proj", q + 2 * k, hidden, bias, norm="input_layernorm")
    add("self_attn.o_proj", *linear_sizes(config, "o_proj"))
    gate, _, bias = linear_sizes(config, "gate_proj")
    add("mlp.gate_up_proj", panel_count(gate) * PANEL * 2, hidden, bias, norm="post_attention_layernorm")
    add("mlp.down_proj", *linear_sizes(config, "down_proj"))
    return found


def weight_pieces(name: str, checkpoint: Checkpoint, fmt: str) -> Iterator[Piece]:
    """What makes the packed matrix `name`, uint8 [panels, bytes of a panel], some panels at a time.

    GGUF's Q8_0 comes out of int8 as it went in: each group's largest is 127 steps of its scale, so rounding again finds
    the same scale and the same steps. Q4_0 would not, hence the format q4_0, which is never made of other weights.
    """
    kernel_library()  # raises UserError when the packer is not built
    matrix = Merged.of(name, checkpoint)
    inner = checkpoint.shape(matrix.parts[0])[1]
    make = _repacked if fmt == "q4_0" else _packed
    for first, count in row_blocks(matrix.rows, 4 * inner, multiple=2 * PANEL):
        yield partial(make, matrix, checkpoint, fmt, first, count)


def _packed(matrix: Merged, checkpoint: Checkpoint, fmt: str, first: int, count: int) -> NDArray[np.uint8]:
    w = matrix.read(checkpoint.rows, first, count)
    return pack(w, fmt, threads=1).reshape(-1, panel_bytes(fmt, w.shape[1]))


def _repacked(matrix: Merged, checkpoint: Checkpoint, fmt: str, first: int, count: int) -> NDArray[np.uint8]:
    def read(name: str, first: int, count: int) -> NDArray[np.uint8]:
        raw = checkpoint.raw(name, first, count)
        if raw is None or raw.kind != "Q4_0":
            found = "plain" if raw is None else raw.kind
            raise UserError(f"WEIGHTS=q4_0 takes GGUF files of type Q4_0; {name} is {found}. Use WEIGHTS=int4")
        return raw.blocks

    scales, q = _q4_0_groups(matrix.read(read, first, count))
    return pack_quantized(fmt, scales, q, threads=1).reshape(-1, panel_bytes(fmt, q.shape[1]))


def _q4_0_groups(rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Scales [N, K/32] (float16 bits) and q [N, K], 0..15, of rows of GGUF's Q4_0 blocks."""
    blocks = rows.reshape(len(rows), -1, 18)  # float16 d, then 16 bytes: steps 0..15 below, 16..31 above
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.uint16).reshape(len(rows), -1)
    q = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1).reshape(len(rows), -1)
    return scales, q


def bias_value(name: str, checkpoint: Checkpoint) -> NDArray[np.float32]:
    """The bias `name` in the order of the packed columns, filled up to whole panels."""
    matrix = Merged.of(name, checkpoint)
    bias = matrix.read(lambda *rows: checkpoint.rows(*rows)[:, None], 0, matrix.rows)[:, 0]
    return np.pad(bias, (0, -len(bias) % PANEL))


Read = Callable[[str, int, int], NDArray[Any]]  # name, first, count -> rows [count, ...]


@dataclass(frozen=True)
class Merged:
    """Checkpoint tensors that the kernels take as one: q, k, v under another; gate and up by alternating panels."""

    parts: tuple[str, ...]
    sizes: tuple[int, ...]  # rows of each
    alternating: bool

    @classmethod
    def of(cls, name: str, checkpoint: Checkpoint) -> Merged:
        layer, _, kind = name.rpartition(".")
        parts: tuple[str, ...] = (name,)
        if layer.endswith("qkv_proj"):
            parts = tuple(f"{layer[:-8]}{x}_proj.{kind}" for x in "qkv")
        if layer.endswith("gate_up_proj"):
            parts = tuple(f"{layer[:-12]}{x}_proj.{kind}" for x in ("gate", "up"))
        return cls(parts, tuple(checkpoint.shape(part)[0] for part in parts), layer.endswith("gate_up_proj"))

    @property
    def rows(self) -> int:
        return 2 * PANEL * panel_count(self.sizes[0]) if self.alternating else sum(self.sizes)

    def read(self, read: Read, first: int, count: int) -> NDArray[Any]:
        """Rows first .. first + count - 1 [count, ...]; where panels alternate, both of 2 * PANEL."""
        if self.alternating:
            first, count = first // 2, min(count // 2, self.sizes[0] - first // 2)
            return interleave_gate_up(*(read(part, first, count) for part in self.parts))
        rows, begin = [], 0
        for part, size in zip(self.parts, self.sizes, strict=True):
            low, high = max(first - begin, 0), min(first + count - begin, size)
            if low < high:
                rows.append(read(part, low, high - low))
            begin += size
        return rows[0] if len(rows) == 1 else np.concatenate(rows)


class Place(NamedTuple):
    """Where a checkpoint's matrix lies: in the packed matrix `name`, in every panel_step-th panel from first_panel on;
    counting these only, from row first_row on."""

    name: str
    first_row: int = 0
    first_panel: int = 0
    panel_step: int = 1


def merged_place(name: str, checkpoint: Checkpoint) -> Place:
    """The inverse of Merged: where the rows of the checkpoint's matrix `name` are."""
    layer, projection, kind = name.rsplit(".", 2) if "_proj." in name else (name, "", "")
    if projection in ("gate_proj", "up_proj"):
        return Place(f"{layer}.gate_up_proj.{kind}", first_panel=int(projection == "up_proj"), panel_step=2)
    if projection in ("q_proj", "k_proj", "v_proj"):
        merged = Merged.of(f"{layer}.qkv_proj.{kind}", checkpoint)
        return Place(f"{layer}.qkv_proj.{kind}", first_row=sum(merged.sizes[: merged.parts.index(name)]))
    return Place(name)
