"""Op sets: what the pieces of the network become on a target. Each is one module with the same names:

inputs(config, shape) -> list[Input]   the graph's inputs before the caches
caches(config, shape) -> list[Input]   the graph's caches, layer by layer
outputs(config, shape) -> list[Input]  the graph's outputs
graphs(buckets) -> list[tuple[int, ...]]        the buckets that each graph file serves; it is traced at the largest
pieces(name, checkpoint, shape)        what makes one weight of the graph, block by block (exporter.pieces)
check(config, shape, buckets)          raises UserError for what the op set cannot do
CACHE_POLICY, CACHES                   "returned" or "in_place"; the cache dtypes it takes, its default first
stored(weight, config, shape) -> list[Input]    where weights are inputs: the tensors of the file that make up one
WEIGHTS, WEIGHTS_ARE                   the weight formats it takes, its default first; "constants" or "inputs"
DYNAMIC_TOKENS                         whether the graph's token axis is -1, or that of the traced bucket
Prepare, Embedding, Head               the cells that exporter.llama is made of, and of a layer either
NormQKV, Attention, LinearAdd, NormSwiGLU       its parts, or
DecoderLayer                           the whole, where one operator does it
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np

from exporter.config import LlamaConfig


@dataclass(frozen=True)
class Shape:
    """What a graph is fixed to: rows B, tokens per row S (the bucket), cache capacity C, weight format, cache dtype;
    and the chip it is written for (exporter.chips), for the ascend op set."""

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


def linear_sizes(config: LlamaConfig, name: str) -> tuple[int, int, bool]:
    """(out_features, in_features, has_bias) of a checkpoint's linear layer, by the last part of its name."""
    heads, groups = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    return {
        "q_proj": (heads, hidden, config.qkv_bias),
        "k_proj": (groups, hidden, config.qkv_bias),
        "v_proj": (groups, hidden, config.qkv_bias),
        "o_proj": (hidden, heads, config.attention_bias),
        "gate_proj": (inner, hidden, config.mlp_bias),
        "up_proj": (inner, hidden, config.mlp_bias),
        "down_proj": (hidden, inner, config.mlp_bias),
    }[name.rpartition(".")[2]]


def windows(config: LlamaConfig, context: int) -> tuple[int, ...]:
    """Each layer's sliding window in a graph of that cache capacity: 0 where there is none, or it is never passed."""
    return tuple(0 if window >= context else window for window in config.windows)
