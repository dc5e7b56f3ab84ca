"""The cpu op set's weights: which checkpoint tensors make each, in which format, packed by the kernel library."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from exporter.checkpoint import Checkpoint
from exporter.rope import rope_tables
from kernels.cpu.packing import pack
from kernels.weight_format import PANEL, interleave_gate_up, panel_bytes

FORMATS = {"int8": "int8", "int4": "int4", "bf16": "bf16", "fp32": "f32"}  # --weights -> the packed format
TABLES = ("model.embed_tokens.weight", "lm_head.weight")  # under int4 they keep 8 bits


def format_of(name: str, weights: str) -> str:
    """The packed format of the matrix `name` in an artifact of this weight format."""
    return "int8" if weights == "int4" and name in TABLES else FORMATS[weights]


def rope_value(name: str, checkpoint: Checkpoint, context: int) -> NDArray[np.float32]:
    cos, sin = rope_tables(checkpoint.config, context)
    return cos if name == "rope.cos" else sin


def weight_value(name: str, checkpoint: Checkpoint, fmt: str) -> NDArray[np.uint8]:
    """The packed matrix `name`, uint8 [panels, bytes of a panel]."""
    w = _merged(name, checkpoint)
    return pack(w, fmt, os.cpu_count() or 1).reshape(-1, panel_bytes(fmt, w.shape[1]))


def bias_value(name: str, checkpoint: Checkpoint) -> NDArray[np.float32]:
    """The bias `name` in the order of the packed columns, filled up to whole panels."""
    bias = _merged(name, checkpoint)
    return np.pad(bias, (0, -len(bias) % PANEL))


def _merged(name: str, checkpoint: Checkpoint) -> NDArray[np.float32]:
    """The checkpoint's tensor, or those that the kernels take as one: q, k, v under another; gate and up by panels."""
    layer, _, kind = name.rpartition(".")
    if layer.endswith("qkv_proj"):
        return np.concatenate([checkpoint.tensor(f"{layer[:-8]}{x}_proj.{kind}") for x in "qkv"])
    if layer.endswith("gate_up_proj"):
        gate, up = (checkpoint.tensor(f"{layer[:-12]}{x}_proj.{kind}") for x in ("gate", "up"))
        if kind == "bias":
            return interleave_gate_up(gate[:, None], up[:, None])[:, 0]
        return interleave_gate_up(gate, up)
    return checkpoint.tensor(name)
