"""What each op set is: a frozen record that export, plan and the cells read. Free of MindSpore.

Letters: B rows, S tokens per row, T = B * S, H query heads, G key/value heads, R = H / G, D head size, C cache
capacity, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from edgellama.artifact.manifest import TensorSpec

from ..graph_spec import Shape
from ..network.config import LlamaConfig
from ..network.layer_sizes import windows
from .ascend_weights import QUANTIZED, matrix_spec
from .cpu_weights import FORMATS, abi_of, packed_matrix

Tensors = Callable[[LlamaConfig, Shape], list[TensorSpec]]
Matrix = Callable[[str, int, int, Shape], list[TensorSpec]]


@dataclass(frozen=True)
class OpSetSpec:
    """One op set.

    Attributes:
        name: its name in the manifest, and of the module in this folder that has its cells.
        weights: the weight formats that WEIGHTS may name; the first is the default.
        caches: the cache dtypes that CACHE may name; the first is the default.
        cache_policy: "in_place" or "returned", as runtime.artifact.manifest.CacheSpec defines them.
        weights_are_inputs: the weights are inputs of the graphs, in weights.safetensors. If not, they are constants of
            the graph, in its data file.
        one_graph: one graph file serves all buckets. If not, each bucket has its own file.
        dynamic_tokens: the graph declares its token axis as -1. If not, as the bucket that it is traced at.
        fused_layer: a decoder layer is one operator, the cell DecoderLayer. If not, it is made of the cells NormQKV,
            Attention, LinearAdd and NormGLU.
        joined_qkv: q, k and v are one matrix.
        kernel_abi: returns the version of the kernel library that the graphs of a config and a weight format need;
            None if they need none.
        step_inputs: the graph's inputs before the caches.
        cache_inputs: the graph's caches, layer by layer.
        outputs: the graph's outputs.
        matrix: the stored tensors of a matrix [outer, inner] without its bias, given its name, outer, inner and shape.
        bias_dtype: the dtype of a linear layer's bias.
    """

    name: str
    weights: tuple[str, ...]
    caches: tuple[str, ...]
    cache_policy: str
    weights_are_inputs: bool
    one_graph: bool
    dynamic_tokens: bool
    fused_layer: bool
    joined_qkv: bool
    kernel_abi: Callable[[LlamaConfig, str], int | None]
    step_inputs: Tensors
    cache_inputs: Tensors
    outputs: Tensors
    matrix: Matrix
    bias_dtype: str

    def cells(self) -> Any:
        """Import the op set's cells, and with them MindSpore."""
        return import_module(f".{self.name}", __package__)

    def graphs(self, buckets: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the buckets that each graph file serves. A graph is traced at the largest of its buckets."""
        return [tuple(buckets)] if self.one_graph else [(bucket,) for bucket in buckets]

    def inputs(self, config: LlamaConfig, shape: Shape) -> list[TensorSpec]:
        """Return the graph's inputs except the weights, in order, at the bucket shape.tokens."""
        return self.step_inputs(config, shape) + self.cache_inputs(config, shape)

    def declared_inputs(self, config: LlamaConfig, shape: Shape) -> list[TensorSpec]:
        """Return `inputs` as the graph declares them: a dynamic token axis is -1."""
        found = self.inputs(config, shape)
        if not self.dynamic_tokens:
            return found
        return [replace(x, shape=(-1, shape.rows)) if x.name == "tokens_by_step" else x for x in found]


def _layer_caches(config: LlamaConfig, shape: Shape, dtype: str) -> list[TensorSpec]:
    """One key cache and one value cache per layer, each [B, G, C, D]."""
    dims = (shape.rows, config.num_key_value_heads, shape.context, config.head_dim)
    layers = range(config.num_hidden_layers)
    return [TensorSpec(f"{kind}_cache.{layer}", dtype, dims) for layer in layers for kind in ("k", "v")]


def _logits(config: LlamaConfig, shape: Shape) -> list[TensorSpec]:
    return [TensorSpec("logits", "float32", (shape.rows, config.vocab_size))]


def _portable_inputs(config: LlamaConfig, shape: Shape) -> list[TensorSpec]:
    rows, tokens = shape.rows, shape.tokens
    queries = config.num_attention_heads // config.num_key_value_heads * tokens  # R * S, the heads of a group in order
    found = [
        TensorSpec("tokens", "int32", (rows, tokens)),
        TensorSpec("positions", "int32", (rows, tokens)),
        TensorSpec("last", "int32", (rows,)),  # index of each row's last valid token in [T]
    ]
    kinds = windows(config, shape.context)
    if not all(kinds):
        found.append(TensorSpec("cache_mask", "float32", (rows, 1, 1, shape.context)))  # 0 or -1e30, added to scores
        found.append(TensorSpec("self_mask", "float32", (rows, 1, queries, tokens)))
    if any(kinds):
        found.append(TensorSpec("window_cache_mask", "float32", (rows, 1, queries, shape.context)))
        found.append(TensorSpec("window_self_mask", "float32", (rows, 1, queries, tokens)))
    return found


def _portable_outputs(config: LlamaConfig, shape: Shape) -> list[TensorSpec]:
    """The logits, then each layer's new rows of both caches, [B, G, S, D]."""
    rows = (shape.rows, config.num_key_value_heads, shape.tokens, config.head_dim)
    layers = range(config.num_hidden_layers)
    new = [TensorSpec(f"{kind}_new.{layer}", "float32", rows) for layer in layers for kind in ("k", "v")]
    return [*_logits(config, shape), *new]


def _portable_matrix(name: str, outer: int, inner: int, shape: Shape) -> list[TensorSpec]:
    return [TensorSpec(f"{name}.weight", "float32", (outer, inner))]


def _cpu_inputs(config: LlamaConfig, shape: Shape) -> list[TensorSpec]:
    return [
        TensorSpec("tokens", "int32", (shape.rows, shape.tokens)),
        TensorSpec("start", "int32", (shape.rows,)),
        TensorSpec("length", "int32", (shape.rows,)),
    ]


# MindSpore Lite converts a float16 input to float32 on a CPU, so the bits of a float16 cache travel as int16.
_CPU_CACHE_DTYPES = {"float16": "int16", "int8": "int8", "float32": "float32"}


def _cpu_caches(config: LlamaConfig, shape: Shape) -> list[TensorSpec]:
    """The caches of each layer, [B, G, C, D]. An int8 cache has scales [B, G, C], the bits of float16 values."""
    dims = (shape.rows, config.num_key_value_heads, shape.context)
    dtype = _CPU_CACHE_DTYPES[shape.cache]
    found = []
    for layer in range(config.num_hidden_layers):
        found += [TensorSpec(f"{kind}_cache.{layer}", dtype, (*dims, config.head_dim)) for kind in ("k", "v")]
        if shape.cache == "int8":
            found += [TensorSpec(f"{kind}_scale.{layer}", "int16", dims) for kind in ("k", "v")]
    return found


def _cpu_matrix(name: str, outer: int, inner: int, shape: Shape) -> list[TensorSpec]:
    return [packed_matrix(f"{name}.weight", outer, inner, shape)]


def _ascend_inputs(config: LlamaConfig, shape: Shape) -> list[TensorSpec]:
    return [
        TensorSpec("tokens_by_step", "int32", (shape.tokens, shape.rows)),  # a gear changes the first dimension
        TensorSpec("start", "int32", (shape.rows,)),
        TensorSpec("length", "int32", (shape.rows,)),
        TensorSpec("last", "int32", (shape.rows,)),  # index of each row's last valid token in [T]
    ]


def _ascend_matrix(name: str, outer: int, inner: int, shape: Shape) -> list[TensorSpec]:
    return [matrix_spec(name, outer, inner, shape)]


PORTABLE = OpSetSpec(
    name="portable",
    weights=("fp32",),
    caches=("float32",),
    cache_policy="returned",
    weights_are_inputs=False,
    one_graph=True,  # the runtime resizes it, so its constants are in memory once
    dynamic_tokens=False,  # MindSpore Lite 2.0 accepts no -1 beside a Gather
    fused_layer=False,
    joined_qkv=False,
    kernel_abi=lambda config, weights: None,
    step_inputs=_portable_inputs,
    cache_inputs=lambda config, shape: _layer_caches(config, shape, "float32"),
    outputs=_portable_outputs,
    matrix=_portable_matrix,
    bias_dtype="float32",
)
CPU = OpSetSpec(
    name="cpu",
    weights=tuple(FORMATS),
    caches=tuple(_CPU_CACHE_DTYPES),
    cache_policy="in_place",
    weights_are_inputs=True,
    one_graph=False,  # MindSpore Lite 2.0 cannot resize custom kernels
    dynamic_tokens=False,
    fused_layer=True,
    joined_qkv=True,
    kernel_abi=abi_of,
    step_inputs=_cpu_inputs,
    cache_inputs=_cpu_caches,
    outputs=_logits,
    matrix=_cpu_matrix,
    bias_dtype="float32",
)
ASCEND = OpSetSpec(
    name="ascend",
    weights=("fp16", *QUANTIZED),
    caches=("float16",),
    cache_policy="in_place",
    weights_are_inputs=False,
    one_graph=True,  # each bucket is a gear of the converted graph
    dynamic_tokens=True,
    fused_layer=False,
    joined_qkv=True,
    kernel_abi=lambda config, weights: None,
    step_inputs=_ascend_inputs,
    cache_inputs=lambda config, shape: _layer_caches(config, shape, shape.cache),
    outputs=_logits,
    matrix=_ascend_matrix,
    bias_dtype="float16",
)
OPSETS = (CPU, PORTABLE, ASCEND)
