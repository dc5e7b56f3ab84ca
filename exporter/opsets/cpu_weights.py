"""The cpu op set's weights: which checkpoint tensors make each, in which format, packed by the kernel library."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.checkpoint import Checkpoint
from exporter.rope import rope_tables
from kernels.cpu.packing import pack, pack_quantized
from kernels.weight_format import PANEL, interleave_gate_up, panel_bytes
from runtime.errors import UserError

# --weights -> the packed format of the layers' matrices
FORMATS = {"int8": "int8", "int4": "int4", "bf16": "bf16", "fp32": "f32", "q4_0": "q4_0"}
TABLES = ("model.embed_tokens.weight", "lm_head.weight")  # under four bits they keep eight


def format_of(name: str, weights: str) -> str:
    """The packed format of the matrix `name` in an artifact of this weight format."""
    return "int8" if weights in ("int4", "q4_0") and name in TABLES else FORMATS[weights]


def rope_value(name: str, checkpoint: Checkpoint, context: int) -> NDArray[np.float32]:
    cos, sin = rope_tables(checkpoint.config, context)
    return cos if name == "rope.cos" else sin


def weight_value(name: str, checkpoint: Checkpoint, fmt: str) -> NDArray[np.uint8]:
    """The packed matrix `name`, uint8 [panels, bytes of a panel].

    GGUF's Q8_0 comes out of int8 as it went in: each group's largest is 127 steps of its scale, so rounding again finds
    the same scale and the same steps. Q4_0 would not, hence the format q4_0, which is never made of other weights.
    """
    threads = os.cpu_count() or 1
    if fmt == "q4_0":
        scales = _merged(name, lambda part: _q4_0_blocks(part, checkpoint)[0])
        q = _merged(name, lambda part: _q4_0_blocks(part, checkpoint)[1])
        return pack_quantized(fmt, scales, q, threads).reshape(-1, panel_bytes(fmt, q.shape[1]))
    w = _merged(name, checkpoint.tensor)
    return pack(w, fmt, threads).reshape(-1, panel_bytes(fmt, w.shape[1]))


def bias_value(name: str, checkpoint: Checkpoint) -> NDArray[np.float32]:
    """The bias `name` in the order of the packed columns, filled up to whole panels."""
    bias = _merged(name, checkpoint.tensor)
    return np.pad(bias, (0, -len(bias) % PANEL))


def _q4_0_blocks(name: str, checkpoint: Checkpoint) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Scales [N, K/32] (float16 bits) and q [N, K], 0..15, of a GGUF matrix whose blocks are Q4_0."""
    raw = checkpoint.raw(name)
    if raw is None or raw.kind != "Q4_0":
        found = "plain" if raw is None else raw.kind
        raise UserError(f"WEIGHTS=q4_0 takes GGUF files of type Q4_0; {name} is {found}. Use WEIGHTS=int4")
    rows = len(raw.blocks)
    blocks = raw.blocks.reshape(rows, -1, 18)  # float16 d, then 16 bytes: steps 0..15 below, 16..31 above
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.uint16).reshape(rows, -1)
    q = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1).reshape(rows, -1)
    return scales, q


def _merged(name: str, read: Callable[[str], NDArray[Any]]) -> NDArray[Any]:
    """The checkpoint's tensor, or those that the kernels take as one: q, k, v under another; gate and up by panels."""
    layer, _, kind = name.rpartition(".")
    if layer.endswith("qkv_proj"):
        return np.concatenate([read(f"{layer[:-8]}{x}_proj.{kind}") for x in "qkv"])
    if layer.endswith("gate_up_proj"):
        gate, up = (read(f"{layer[:-12]}{x}_proj.{kind}") for x in ("gate", "up"))
        if kind == "bias":
            return interleave_gate_up(gate[:, None], up[:, None])[:, 0]
        return interleave_gate_up(gate, up)
    return read(name)
