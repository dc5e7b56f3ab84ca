"""The ascend op set: float16 products, the operators of kernels/ascend, caches written in place.

Weights are float16 constants in an external data file. The residual stream and the norms are float32. This costs one
more node where the result of a linear layer is added, and avoids overflow and loss in the sum over the layers. Products
have float16 inputs and outputs; the chip accumulates them in float32. LmHead gives the logits in float32, because the
difference between the two best logits is often smaller than a step of float16. Shape.chip determines which built-in
operators exist (kernels/ascend/chips.py). Without RmsNorm, the norm is composed of other operators. SwiGLU is always
composed.

One graph serves all buckets, decode too: its token axis is dynamic, and each bucket becomes a gear. So all attention is
FusedAttention; its tiling selects the decode kernel at the gear of one token. A separate decode graph would be a second
file. MindSpore Lite shares no constants between files on this path, so the weights would be in memory twice.

Letters: B rows, S tokens per row, T = B * S, H query heads, G key/value heads, D head size, C cache capacity, E hidden
size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mindspore
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops import PrimitiveWithInfer

from edgellama.kernels.ascend.chips import CHIPS

from ..checkpoint.base import Checkpoint
from ..checkpoint.row_blocks import Piece
from ..graph_spec import Shape
from ..network.config import LlamaConfig
from ..network.layer_sizes import linear_sizes
from . import portable
from .ascend_model_checks import logits_in_float32
from .ascend_weights import is_quantized, weight_pieces
from .specs import ASCEND

SPEC = ASCEND
FLOAT16, FLOAT32 = mindspore.float16, mindspore.float32


def pieces(name: str, checkpoint: Checkpoint, shape: Shape) -> Iterator[Piece]:
    """Yield the pieces of the graph's weight `name`."""
    return weight_pieces(name, checkpoint, shape)


def weight(name: str, *shape: int, dtype: Any = FLOAT16) -> Parameter:
    """Return a weight without data: tracing needs the shape only, so no memory is allocated."""
    return Parameter(initializer("zeros", shape, dtype), name=name, requires_grad=False)


class KernelOperator(PrimitiveWithInfer):
    """An operator of kernels/ascend, as its op_host declares it.

    The graph engine finds inputs, outputs and attributes by the names that the subclass gives. `node` is the name of
    the node in the graph; the kernel does not get it.
    """

    INPUTS: Sequence[str]
    OUTPUTS: Sequence[str]

    def __init__(self, node: str, **attributes: Any):
        kind = type(self).__name__
        super().__init__(kind)
        attributes |= {"name": node, "reg_op_name": kind, "func_type": "aot"}
        for name, attribute in {**attributes, "input_names": [*self.INPUTS], "output_names": [*self.OUTPUTS]}.items():
            self.add_prim_attr(name, attribute)


class FusedAttention(KernelOperator):
    """kernels.reference.fused_attention.

    The outputs k_cache and v_cache are the inputs of the same names, written in place. Each layer has its own caches,
    so no later node reads them; the first output keeps the node in the graph.
    """

    INPUTS = ("qkv", "cos", "sin", "start", "length", "k_cache", "v_cache")
    OUTPUTS = ("out", "k_cache", "v_cache")

    def __init__(self, node: str, heads: int, scale: float, window: int):
        super().__init__(node, heads=heads, scale=scale, window=window)
        self.heads = heads

    def infer_shape(self, qkv: Any, cos: Any, sin: Any, start: Any, length: Any, k_cache: Any, v_cache: Any) -> Any:
        return [qkv[0], qkv[1], self.heads * k_cache[3]], k_cache, v_cache

    def infer_dtype(self, qkv: Any, cos: Any, sin: Any, start: Any, length: Any, k_cache: Any, v_cache: Any) -> Any:
        return qkv, k_cache, v_cache


class LmHead(KernelOperator):
    """kernels.reference.lm_head"""

    INPUTS, OUTPUTS = ("x", "weight"), ("logits",)

    def infer_shape(self, x: Any, weight: Any) -> Any:
        return [x[0], weight[0]]

    def infer_dtype(self, x: Any, weight: Any) -> Any:
        return FLOAT32


class RMSNorm(nn.Cell):
    """float32 [T, E] -> float16 [T, E], computed in float32; arXiv:1910.07467."""

    def __init__(self, config: LlamaConfig, shape: Shape, name: str):
        super().__init__(auto_prefix=False)
        self.cast = ops.Cast()
        self.fused = CHIPS[str(shape.chip)].has("RmsNorm")
        if self.fused:
            self.weight = weight(f"{name}.weight", config.hidden_size, dtype=FLOAT32)
            self.norm = ops.RmsNorm(config.rms_norm_eps)
        else:
            self.norm = portable.RMSNorm(config, name)

    def construct(self, h: Any) -> Any:
        y = self.norm(h, self.weight)[0] if self.fused else self.norm(h)
        return self.cast(y, FLOAT16)


class MatMul(nn.Cell):
    """x [T, K] -> x W^T [T, N] in float16. W is float16, or int8 with one scale per row."""

    def __init__(self, shape: Shape, name: str, n: int, k: int):
        super().__init__(auto_prefix=False)
        self.quantized = is_quantized(name, shape)
        if self.quantized:
            self.weight = weight(f"{name}.weight", n, k, dtype=mindspore.int8)
            self.scale = weight(f"{name}.scale", n)
            # transposed: the only layout of the weight that the 310P supports
            self.matmul = ops.auto_generate.WeightQuantBatchMatmul(transpose_x=False, transpose_weight=True)
        else:
            self.weight = weight(f"{name}.weight", n, k)
            self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x: Any) -> Any:
        if self.quantized:
            return self.matmul(x, self.weight, self.scale, None, None, None, None)
        return self.matmul(x, self.weight)


class Linear(nn.Cell):
    """x [T, K] -> x W^T + b [T, N], float16. `name` may join projections of one input: qkv_proj."""

    def __init__(self, shape: Shape, name: str, sizes: tuple[int, int, bool]):
        super().__init__(auto_prefix=False)
        n, k, self.has_bias = sizes
        self.matmul, self.add = MatMul(shape, name, n, k), ops.Add()
        if self.has_bias:
            self.bias = weight(f"{name}.bias", n)

    def construct(self, x: Any) -> Any:
        y = self.matmul(x)
        return self.add(y, self.bias) if self.has_bias else y


class Prepare(nn.Cell):
    """Returns the step's inputs and the rotary tables: tokens_by_step, start, length, last, cos, sin."""

    def __init__(self, config: LlamaConfig, shape: Shape):
        super().__init__(auto_prefix=False)
        half = config.head_dim // 2
        self.cos, self.sin = (weight(f"rope.{kind}", shape.context, half, dtype=FLOAT32) for kind in ("cos", "sin"))

    def construct(self, step: Any) -> Any:
        return (*step, self.cos, self.sin)


class Embedding(nn.Cell):
    """Looks up the embedding of each token, float16, and converts it to float32."""

    def __init__(self, config: LlamaConfig, shape: Shape):
        super().__init__(auto_prefix=False)
        self.weight = weight("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        self.gather, self.reshape, self.cast, self.transpose = ops.Gather(), ops.Reshape(), ops.Cast(), ops.Transpose()
        self.flat, self.one_row = (-1, config.hidden_size), shape.rows == 1

    def construct(self, step: Any) -> Any:
        tokens = step[0] if self.one_row else self.transpose(step[0], (1, 0))  # [S, B] -> [B, S]
        return self.cast(self.reshape(self.gather(self.weight, tokens, 0), self.flat), FLOAT32)  # [T, E]


class NormQKV(nn.Cell):
    """The attention's norm, then its q, k and v projections as one product."""

    def __init__(self, config: LlamaConfig, shape: Shape, norm: str, attention: str):
        super().__init__(auto_prefix=False)
        self.norm = RMSNorm(config, shape, norm)
        rows = sum(linear_sizes(config, f"{attention}.{x}_proj")[0] for x in "qkv")
        _, k, bias = linear_sizes(config, f"{attention}.q_proj")
        self.linear = Linear(shape, f"{attention}.qkv_proj", (rows, k, bias))
        self.reshape, self.by_row = ops.Reshape(), (shape.rows, -1, rows)

    def construct(self, h: Any, step: Any) -> Any:
        return self.reshape(self.linear(self.norm(h)), self.by_row)  # [B, S, (H + 2G) * D]


class Attention(nn.Cell):
    """kernels.reference.fused_attention"""

    def __init__(self, config: LlamaConfig, shape: Shape, name: str, window: int):
        super().__init__(auto_prefix=False)
        heads, dim = config.num_attention_heads, config.head_dim
        self.attention = FusedAttention(f"{name}.attention", heads, dim**-0.5, window)
        self.reshape, self.flat = ops.Reshape(), (-1, heads * dim)

    def construct(self, qkv: Any, step: Any, caches: Any) -> Any:
        _, start, length, _, cos, sin = step
        out = self.attention(qkv, cos, sin, start, length, *caches)[0]
        return self.reshape(out, self.flat), ()  # [T, H * D]


class LinearAdd(nn.Cell):
    """A linear layer whose result is added to the residual stream in float32."""

    def __init__(self, config: LlamaConfig, shape: Shape, name: str):
        super().__init__(auto_prefix=False)
        self.linear, self.add, self.cast = Linear(shape, name, linear_sizes(config, name)), ops.Add(), ops.Cast()

    def construct(self, x: Any, h: Any, step: Any) -> Any:
        return self.add(h, self.cast(self.linear(x), FLOAT32))


class NormSwiGLU(nn.Cell):
    """The MLP's norm, then silu(gate) * up, arXiv:2002.05202."""

    def __init__(self, config: LlamaConfig, shape: Shape, norm: str, mlp: str):
        super().__init__(auto_prefix=False)
        self.norm = RMSNorm(config, shape, norm)
        self.gate, self.up = (
            Linear(shape, f"{mlp}.{x}_proj", linear_sizes(config, f"{mlp}.{x}_proj")) for x in ("gate", "up")
        )
        self.sigmoid, self.mul = ops.Sigmoid(), ops.Mul()

    def construct(self, h: Any, step: Any) -> Any:
        x = self.norm(h)
        gate = self.gate(x)
        return self.mul(self.mul(gate, self.sigmoid(gate)), self.up(x))


class Head(nn.Cell):
    """The final norm and the logits [B, V], float32, of each row's last valid token.

    If LmHead does not support the vocabulary or the hidden size, MatMul computes the logits in float16.
    """

    def __init__(self, config: LlamaConfig, shape: Shape, embedding: Parameter):
        super().__init__(auto_prefix=False)
        self.norm = RMSNorm(config, shape, "model.norm")
        vocabulary, hidden = config.vocab_size, config.hidden_size
        self.weight = embedding if config.tie_word_embeddings else weight("lm_head.weight", vocabulary, hidden)
        self.fused = logits_in_float32(config)
        self.matmul = LmHead("lm_head") if self.fused else ops.MatMul(transpose_b=True)
        self.gather, self.cast = ops.Gather(), ops.Cast()

    def construct(self, h: Any, step: Any) -> Any:
        x = self.norm(self.gather(h, step[3], 0))  # [B, E]
        return self.matmul(x, self.weight) if self.fused else self.cast(self.matmul(x, self.weight), FLOAT32)
