"""What a step graph is fixed to, and its inputs and outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np

from exporter.network.config import LlamaConfig


@dataclass(frozen=True)
class Shape:
    """What a graph is fixed to: rows B, tokens per row S (the bucket), cache capacity C, weight format, cache dtype;
    and the chip it is written for (kernels/ascend/chips.py), for the ascend op set."""

    rows: int
    tokens: int
    context: int
    weights: str = "fp32"
    cache: str = "float32"
    chip: str | None = None


@dataclass(frozen=True)
class Input:
    """An input or output of a graph: its name, shape and numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def declared_inputs(config: LlamaConfig, shape: Shape, ops: ModuleType) -> list[Input]:
    """The inputs of an op set's graph as it declares them: tokens_by_step [-1, B] where its token axis is dynamic."""
    found: list[Input] = ops.inputs(config, shape) + ops.caches(config, shape)
    if not ops.DYNAMIC_TOKENS:
        return found
    return [replace(x, shape=(-1, shape.rows)) if x.name == "tokens_by_step" else x for x in found]


def cache_inputs(config: LlamaConfig, shape: Shape, dtype: str) -> list[Input]:
    """One key cache and one value cache a layer, each [B, G, C, D]."""
    dims = (shape.rows, config.num_key_value_heads, shape.context, config.head_dim)
    return [
        Input(f"{kind}_cache.{layer}", dims, dtype) for layer in range(config.num_hidden_layers) for kind in ("k", "v")
    ]
