"""The cpu op set: the custom kernels of kernels/cpu, five a layer, weights as inputs, caches written in place.

Weights are packed (kernels/weight_format.py) and belong to no graph: every bucket's graph reads the one memory-mapped
weights.safetensors. What is fused was decided by measurement: a node costs a few microseconds of dispatch and of
thread synchronisation, the time of reading 100 KB of weights, and a layer of a small model has 3.7 MB. So the norm is
computed where its linear layer reads it, q, k and v (gate and up) are one matrix, and the residual is added where a
linear layer writes.

Letters: B rows, S tokens per row, H query heads, G key/value heads, D head size, C cache capacity, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mindspore
from mindspore import Parameter, nn
from mindspore.common.initializer import initializer
from mindspore.ops import PrimitiveWithInfer

from exporter.checkpoint import Checkpoint
from exporter.config import LlamaConfig
from exporter.opsets import Input, Shape, linear_sizes
from exporter.opsets.cpu_weights import bias_value, format_of, weight_pieces
from exporter.pieces import Piece, tensor_pieces
from exporter.rope import rope_table
from kernels.cpu.library import ABI
from kernels.weight_format import PANEL, panel_bytes, panel_count

CACHE_POLICY = "in_place"
CACHES = ("float16", "int8", "float32")
WEIGHTS = ("int8", "int4", "bf16", "fp32", "q4_0")
WEIGHTS_ARE = "inputs"
DYNAMIC_TOKENS = False
KERNEL_ABI = ABI
CACHE_KINDS = {"float32": "f32", "float16": "f16", "int8": "s8"}  # numpy name -> the kernel's
# MindSpore Lite makes float32 of a float16 input on a CPU, so the bits travel as int16.
CACHE_DTYPES = {"float32": "float32", "float16": "int16", "int8": "int8"}


def inputs(config: LlamaConfig, shape: Shape) -> list[Input]:
    return [
        Input("tokens", (shape.rows, shape.tokens), "int32"),
        Input("start", (shape.rows,), "int32"),
        Input("length", (shape.rows,), "int32"),
    ]


def caches(config: LlamaConfig, shape: Shape) -> list[Input]:
    """A layer's k_cache, v_cache [B, G, C, D], and with int8 their scales [B, G, C] (float16 bits)."""
    dims = (shape.rows, config.num_key_value_heads, shape.context)
    found = []
    for layer in range(config.num_hidden_layers):
        dtype = CACHE_DTYPES[shape.cache]
        found += [Input(f"{kind}_cache.{layer}", (*dims, config.head_dim), dtype) for kind in ("k", "v")]
        if shape.cache == "int8":
            found += [Input(f"{kind}_scale.{layer}", dims, "int16") for kind in ("k", "v")]
    return found


def outputs(config: LlamaConfig, shape: Shape) -> list[Input]:
    return [Input("logits", (shape.rows, config.vocab_size), "float32")]


def check(config: LlamaConfig, shape: Shape, buckets: Sequence[int]) -> None:
    """The kernels take any shape."""


def graphs(buckets: Sequence[int]) -> list[tuple[int, ...]]:
    """One file a bucket: MindSpore Lite 2.0 cannot resize custom kernels."""
    return [(bucket,) for bucket in buckets]


def pieces(name: str, checkpoint: Checkpoint, shape: Shape) -> Iterator[Piece]:
    """The weight `name` of the graphs, packed, block by block."""
    if name.startswith("rope."):
        return iter([lambda: rope_table(name, checkpoint.config, shape.context)])
    if name.endswith(".bias"):
        return iter([lambda: bias_value(name, checkpoint)])
    if "norm" in name:
        return tensor_pieces(name, checkpoint)
    return weight_pieces(name, checkpoint, format_of(name, shape.weights))


def operator(op: str, name: str, infer_shape: Any, **attributes: object) -> PrimitiveWithInfer:
    """The custom operator `op`, called `name` in graph and error messages; its result is float32.

    The attributes become text, the way the kernels read them.
    """
    kind = type(
        op,
        (PrimitiveWithInfer,),
        {
            "infer_shape": lambda self, *shapes: infer_shape(*shapes),
            "infer_dtype": lambda self, *dtypes: mindspore.float32,
        },
    )
    primitive = kind(op)
    for key, attribute in {"abi": KERNEL_ABI, "name": name, **attributes}.items():
        primitive.add_prim_attr(key, str(attribute))
    return primitive


def parameter(name: str, *shape: int, dtype: Any = mindspore.float32) -> Parameter:
    """A weight that is never materialised: tracing needs its shape only."""
    return Parameter(initializer("zeros", shape, dtype), name=name, requires_grad=False)


def packed(name: str, outer: int, inner: int, weights: str) -> Parameter:
    """The packed matrix [outer, inner]: uint8 [panels, bytes of a panel]."""
    size = panel_bytes(format_of(name, weights), inner)
    return parameter(name, panel_count(outer), size, dtype=mindspore.uint8)


class Linear(nn.Cell):
    """kernels.reference.linear: y = epilogue(norm(x) W^T + bias), for the valid tokens."""

    def __init__(
        self,
        config: LlamaConfig,
        shape: Shape,
        name: str,
        inner: int,
        outer: int,
        *,
        norm: str | None = None,
        bias: bool = False,
        epilogue: str = "none",
        weight: Parameter | None = None,
        last_only: bool = False,
    ):
        super().__init__(auto_prefix=False)
        columns = panel_count(outer) * PANEL * (2 if epilogue == "swiglu" else 1)
        self.weight = packed(f"{name}.weight", columns, inner, shape.weights) if weight is None else weight
        self.norm, self.bias = norm is not None, bias
        if norm is not None:
            self.gamma = parameter(f"{norm}.weight", inner)
        if bias:
            self.offset = parameter(f"{name}.bias", columns)
        self.linear = operator(
            "EdgeLinear",
            name,
            lambda x, *rest: [x[0], outer] if last_only else [x[0], x[1], outer],
            format=format_of(f"{name}.weight", shape.weights),
            epilogue=epilogue,
            norm=int(self.norm),
            bias=int(bias),
            last_only=int(last_only),
            eps=config.rms_norm_eps,
            **{"in": inner, "out": outer},
        )

    def construct(self, x: Any, step: Any, *residual: Any) -> Any:
        operands: tuple[Any, ...] = (x, self.weight, step[2])
        if self.norm:
            operands = (*operands, self.gamma)
        if self.bias:
            operands = (*operands, self.offset)
        return self.linear(*operands, *residual)


class Prepare(nn.Cell):
    """The step's inputs and the rotary tables: tokens, start, length, cos, sin."""

    def __init__(self, config: LlamaConfig, shape: Shape):
        super().__init__(auto_prefix=False)
        self.cos, self.sin = (parameter(f"rope.{kind}", shape.context, config.head_dim // 2) for kind in ("cos", "sin"))

    def construct(self, step: Any) -> Any:
        return (*step, self.cos, self.sin)


class Embedding(nn.Cell):
    """Rows of the packed matrix that the head multiplies with, where they are tied."""

    def __init__(self, config: LlamaConfig, shape: Shape):
        super().__init__(auto_prefix=False)
        name, width = "model.embed_tokens.weight", config.hidden_size
        self.weight = packed(name, config.vocab_size, width, shape.weights)
        self.embedding = operator(
            "EdgeEmbedding",
            "model.embed_tokens",
            lambda tokens, weight, length: [*tokens, width],
            format=format_of(name, shape.weights),
            vocabulary=config.vocab_size,
            width=width,
        )

    def construct(self, step: Any) -> Any:
        return self.embedding(step[0], self.weight, step[2])  # [B, S, E]


class NormQKV(nn.Cell):
    def __init__(self, config: LlamaConfig, shape: Shape, norm: str, attention: str):
        super().__init__(auto_prefix=False)
        outer = sum(linear_sizes(config, f"{attention}.{x}_proj")[0] for x in "qkv")
        self.linear = Linear(
            config,
            shape,
            f"{attention}.qkv_proj",
            config.hidden_size,
            outer,
            norm=norm,
            bias=linear_sizes(config, f"{attention}.q_proj")[2],
        )

    def construct(self, h: Any, step: Any) -> Any:
        return self.linear(h, step)  # [B, S, (H + 2G) * D]


class Attention(nn.Cell):
    """kernels.reference.fused_attention"""

    def __init__(self, config: LlamaConfig, shape: Shape, name: str, window: int):
        super().__init__(auto_prefix=False)
        heads, dim = config.num_attention_heads, config.head_dim
        self.attention = operator(
            "FusedAttention",
            name,
            lambda qkv, *rest: [qkv[0], qkv[1], heads * dim],
            heads=heads,
            scale=dim**-0.5,
            window=window,
            cache=CACHE_KINDS[shape.cache],
        )

    def construct(self, qkv: Any, step: Any, caches: Any) -> Any:
        _, start, length, cos, sin = step
        return self.attention(qkv, cos, sin, start, length, *caches), ()


class LinearAdd(nn.Cell):
    def __init__(self, config: LlamaConfig, shape: Shape, name: str):
        super().__init__(auto_prefix=False)
        outer, inner, bias = linear_sizes(config, name)
        self.linear = Linear(config, shape, name, inner, outer, bias=bias, epilogue="residual_add")

    def construct(self, x: Any, h: Any, step: Any) -> Any:
        return self.linear(x, step, h)


class NormSwiGLU(nn.Cell):
    def __init__(self, config: LlamaConfig, shape: Shape, norm: str, mlp: str):
        super().__init__(auto_prefix=False)
        outer, inner, bias = linear_sizes(config, f"{mlp}.gate_proj")
        self.linear = Linear(
            config, shape, f"{mlp}.gate_up_proj", inner, outer, norm=norm, bias=bias, epilogue="swiglu"
        )

    def construct(self, h: Any, step: Any) -> Any:
        return self.linear(h, step)


class Head(nn.Cell):
    """Logits [B, V] of each row's last valid token only."""

    def __init__(self, config: LlamaConfig, shape: Shape, embedding: Parameter):
        super().__init__(auto_prefix=False)
        self.linear = Linear(
            config,
            shape,
            "lm_head",
            config.hidden_size,
            config.vocab_size,
            norm="model.norm",
            weight=embedding if config.tie_word_embeddings else None,
            last_only=True,
        )

    def construct(self, h: Any, step: Any) -> Any:
        return self.linear(h, step)
