"""The weights of the cpu op set: the checkpoint's tensors of each, and its format; packed by the kernel library."""

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
from edgellama.kernels.cpu.library import ABI, OLDEST_ABI
from edgellama.kernels.cpu.packing import pack, pack_quantized
from edgellama.kernels.weight_format import (
    GROUP,
    PANEL,
    W4_GROUPS,
    interleave_gate_up,
    panel_bytes,
    panel_count,
    round_up,
)

from ..calibration.calibrated import CalibratedCheckpoint
from ..calibration.rounding import Rounded
from ..checkpoint.base import Checkpoint
from ..checkpoint.finite import check_finite
from ..checkpoint.row_blocks import Piece, row_blocks
from ..graph_spec import Shape
from ..network.config import LlamaConfig
from ..network.family import POST_ATTENTION, POST_MLP, POST_NORMS, PRE_ATTENTION, PRE_MLP, PRE_NORMS
from ..network.layer_sizes import layer_norms, linear_sizes
from ..network.rope import query_scale
from .cpu_grids import grid_columns, grid_rows

# WEIGHTS -> the packed format of the layers' matrices
FORMATS = {"int8": "int8", "int4": "int4", "bf16": "bf16", "fp32": "f32", "q4_0": "q4_0", **{x: x for x in W4_GROUPS}}
FOUR_BITS = ("int4", "q4_0", *W4_GROUPS)
TABLES = ("model.embed_tokens.weight", "lm_head.weight")  # they stay int8 when the layers have 4 bits
# The oldest ABI of the kernels with the attributes of layer_variant; ABI has w4g32 to w4g128, and query_beta.
VARIANTS_ABI = 3


def format_of(name: str, weights: str) -> str:
    """Return the packed format of the matrix `name` in an artifact of this weight format."""
    return "int8" if weights in FOUR_BITS and name in TABLES else FORMATS[weights]


def packed_matrix(name: str, outer: int, inner: int, shape: Shape) -> TensorSpec:
    """Return the stored form of a matrix [outer, inner]: uint8 [panels, bytes per panel]."""
    return TensorSpec(name, "uint8", (panel_count(outer), panel_bytes(format_of(name, shape.weights), inner)))


def layer_tensors(config: LlamaConfig, shape: Shape, layer: int) -> list[TensorSpec]:
    """Return the tensors of a layer in weights.safetensors, in the order in which the kernel reads them."""
    name = f"model.layers.{layer}"
    found: list[TensorSpec] = []

    def add(linear: str, outer: int, inner: int, bias: bool, norm: str | None = None) -> None:
        found.append(packed_matrix(f"{name}.{linear}.weight", outer, inner, shape))
        if norm:
            add_norm(norm)
        if bias:
            found.append(TensorSpec(f"{name}.{linear}.bias", "float32", (panel_count(outer) * PANEL,)))

    def add_norm(norm: str | None) -> None:
        if norm:
            found.append(TensorSpec(f"{name}.{norm}.weight", "float32", (sizes[norm],)))

    sizes, norms, qk_norm = layer_norms(config), config.family.norms, config.family.qk_norm
    (q, hidden, bias), (k, _, _) = (linear_sizes(config, f"{part}_proj") for part in "qk")
    add("self_attn.qkv_proj", q + 2 * k, hidden, bias, norm=norms.get(PRE_ATTENTION))
    for norm in (qk_norm.q, qk_norm.k) if qk_norm is not None else ():
        add_norm(f"self_attn.{norm}")
    add("self_attn.o_proj", *linear_sizes(config, "o_proj"))
    add_norm(norms.get(POST_ATTENTION))
    gate, _, bias = linear_sizes(config, "gate_proj")
    add("mlp.gate_up_proj", panel_count(gate) * PANEL * 2, hidden, bias, norm=norms.get(PRE_MLP))
    add("mlp.down_proj", *linear_sizes(config, "down_proj"))
    add_norm(norms.get(POST_MLP))
    return found


def layer_variant(config: LlamaConfig) -> dict[str, Any]:
    """Return the attributes of a decoder layer that differ from Llama's, which the kernels of ABI 2 do not know."""
    family = config.family
    found: dict[str, Any] = {}
    if config.hidden_act != "silu":
        found["activation"] = config.hidden_act
    if config.attn_logit_softcapping is not None:
        found["softcap"] = config.attn_logit_softcapping
    if (scale := query_scale(config)) is not None:
        found["query_beta"], found["query_period"] = scale
    if family.norms is not PRE_NORMS:
        found["norms"] = "post" if family.norms is POST_NORMS else "both"
    if family.qk_norm is not None:
        found["qk_norm"] = "whole" if family.qk_norm.whole else "after_rope" if family.qk_norm.after_rope else "each"
    if found.keys() & {"norms", "qk_norm"}:
        found["norm_eps"] = config.rms_norm_eps
    return found


def abi_of(config: LlamaConfig, weights: str) -> int:
    """Return the oldest ABI of the kernels that run this network, so that older releases run what they can."""
    if weights in W4_GROUPS or query_scale(config) is not None:
        return ABI
    plain = not layer_variant(config) and config.final_logit_softcapping is None
    return OLDEST_ABI if plain else VARIANTS_ABI


def weight_pieces(name: str, checkpoint: Checkpoint, fmt: str) -> Iterator[Piece]:
    """Yield the pieces of the packed matrix `name`: uint8 [some panels, bytes per panel].

    int8 reproduces GGUF's Q8_0 exactly: the largest value of a group is 127 steps of its scale, so quantizing again
    finds the same scale and the same steps. int4 would not reproduce Q4_0. So the format q4_0 takes the blocks of Q4_0
    unchanged, and accepts no other weights. w4g32, w4g64 and w4g128 do so with the integers of AWQ, GPTQ and
    compressed-tensors.
    """
    kernel_library()  # raises UserError when the packer is not built
    matrix = Merged.of(name, checkpoint)
    inner = checkpoint.shape(matrix.parts[0])[1]
    if isinstance(checkpoint, CalibratedCheckpoint) and name not in TABLES:
        make = partial(_packed_rounded, matrix, checkpoint, fmt)
    else:
        reader = _repacked if fmt == "q4_0" else _packed_grid if fmt in W4_GROUPS else _packed
        make = partial(reader, matrix, checkpoint, fmt)
    for first, count in row_blocks(matrix.rows, 4 * inner, multiple=2 * PANEL):
        yield partial(make, first, count)


def _packed(matrix: Merged, checkpoint: Checkpoint, fmt: str, first: int, count: int) -> NDArray[np.uint8]:
    w = matrix.read(checkpoint.rows, first, count)
    return pack(w, fmt, threads=1).reshape(-1, panel_bytes(fmt, w.shape[1]))


def _repacked(matrix: Merged, checkpoint: Checkpoint, fmt: str, first: int, count: int) -> NDArray[np.uint8]:
    def read(name: str, first: int, count: int) -> NDArray[np.uint8]:
        raw = checkpoint.raw(name, first, count)
        if raw is None or raw.kind != "Q4_0":
            found = "plain" if raw is None else raw.kind
            raise UserError(f"WEIGHTS=q4_0 takes GGUF files of type Q4_0; {name} is {found}. Use WEIGHTS=int4")
        check_finite(checkpoint.path, name, first, _q4_0_groups(raw.blocks)[0].view(np.float16))
        return raw.blocks

    scales, q = _q4_0_groups(matrix.read(read, first, count))
    return pack_quantized(fmt, scales, q, threads=1).reshape(-1, panel_bytes(fmt, q.shape[1]))


def _packed_grid(matrix: Merged, checkpoint: Checkpoint, fmt: str, first: int, count: int) -> NDArray[np.uint8]:
    rows = matrix.read(partial(grid_rows, checkpoint, fmt), first, count)
    scales, zeros, q = grid_columns(fmt, rows)
    return pack_quantized(fmt, scales, q, 1, zeros).reshape(-1, panel_bytes(fmt, q.shape[1]))


def _packed_rounded(
    matrix: Merged, checkpoint: CalibratedCheckpoint, fmt: str, first: int, count: int
) -> NDArray[np.uint8]:
    rows = matrix.read(lambda *wanted: checkpoint.rounded(*wanted).joined(), first, count)
    depth = round_up(checkpoint.shape(matrix.parts[0])[1], GROUP)
    cells, q, quarters = Rounded.parted(rows, fmt, depth)
    return pack_quantized(fmt, cells, q, 1, quarters).reshape(-1, panel_bytes(fmt, q.shape[1]))


def _q4_0_groups(rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Return scales [N, K/32] (bits of float16) and q [N, K] (0..15) of rows of GGUF's Q4_0 blocks."""
    blocks = rows.reshape(
        len(rows), -1, 18
    )  # float16 d, then 16 bytes: q 0..15 in the lower halves, q 16..31 in the upper
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.uint16).reshape(len(rows), -1)
    q = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1).reshape(len(rows), -1)
    return scales, q


def bias_value(name: str, checkpoint: Checkpoint) -> NDArray[np.float32]:
    """Return the bias `name` in the order of the packed columns, padded with zeros to whole panels."""
    matrix = Merged.of(name, checkpoint)
    bias = matrix.read(lambda *rows: checkpoint.rows(*rows)[:, None], 0, matrix.rows)[:, 0]
    return np.pad(bias, (0, -len(bias) % PANEL))


Read = Callable[[str, int, int], NDArray[Any]]  # name, first, count -> rows [count, ...]


@dataclass(frozen=True)
class Merged:
    """The checkpoint's tensors that one packed matrix merges.

    q, k and v follow one another; gate and up alternate by panels.
    """

    parts: tuple[str, ...]
    sizes: tuple[int, ...]  # rows of each part
    alternating: bool

    @classmethod
    def of(cls, name: str, checkpoint: Checkpoint) -> Merged:
        """Return the parts of the packed matrix or bias `name`."""
        layer, _, kind = name.rpartition(".")
        parts: tuple[str, ...] = (name,)
        if layer.endswith("qkv_proj"):
            parts = tuple(f"{layer[:-8]}{x}_proj.{kind}" for x in "qkv")
        if layer.endswith("gate_up_proj"):
            parts = tuple(f"{layer[:-12]}{x}_proj.{kind}" for x in ("gate", "up"))
        return cls(parts, tuple(checkpoint.shape(part)[0] for part in parts), layer.endswith("gate_up_proj"))

    @property
    def rows(self) -> int:
        """Rows of the merged matrix."""
        return 2 * PANEL * panel_count(self.sizes[0]) if self.alternating else sum(self.sizes)

    def read(self, read: Read, first: int, count: int) -> NDArray[Any]:
        """Return rows first .. first + count - 1, [count, ...].

        Args:
            read: reads rows of a part. If panels alternate, first and count must be multiples of 2 * PANEL.
        """
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
    """The place of a checkpoint's matrix in a packed matrix.

    Attributes:
        name: the packed matrix.
        first_panel, panel_step: the panels to look at: first_panel, first_panel + panel_step, ...
        first_row: the matrix begins at this row of these panels.
    """

    name: str
    first_row: int = 0
    first_panel: int = 0
    panel_step: int = 1


def merged_place(name: str, checkpoint: Checkpoint) -> Place:
    """Return the place of the checkpoint's matrix `name`: the inverse of Merged."""
    layer, projection, kind = name.rsplit(".", 2) if "_proj." in name else (name, "", "")
    if projection in ("gate_proj", "up_proj"):
        return Place(f"{layer}.gate_up_proj.{kind}", first_panel=int(projection == "up_proj"), panel_step=2)
    if projection in ("q_proj", "k_proj", "v_proj"):
        merged = Merged.of(f"{layer}.qkv_proj.{kind}", checkpoint)
        return Place(f"{layer}.qkv_proj.{kind}", first_row=sum(merged.sizes[: merged.parts.index(name)]))
    return Place(name)
