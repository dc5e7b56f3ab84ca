"""The portable op set: built-in operators only, float32, weights as constants of the graph.

Built-in operators cannot write in place. So the graph returns the new K/V rows of every layer, and the runtime writes
them. Positions and masks are inputs: the runtime computes them from start and length. The graph computes the scores of
the cache and those of the call's own tokens separately, so it never copies the cache to join it with the new rows.
Without a sliding window, every token of a call sees the whole cache, so the cache's mask has one row for all tokens.
With a window, each token has its own row.

Letters: B rows, S tokens per row, T = B * S, H query heads, G key/value heads, R = H / G, D head size, C cache
capacity, E hidden size. Each Reshape has -1 for the token axis, so that the runtime can resize the graph to any bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from ..checkpoint.base import Checkpoint
from ..checkpoint.row_blocks import Piece, tensor_pieces
from ..graph_spec import Shape
from ..network.config import LlamaConfig
from ..network.layer_sizes import linear_sizes
from ..network.rope import rope_table
from .specs import PORTABLE

SPEC = PORTABLE


def pieces(name: str, checkpoint: Checkpoint, shape: Shape) -> Iterator[Piece]:
    """Yield the pieces of the graph's weight `name`: a rotary table, or the checkpoint's tensor, unchanged."""
    if name.startswith("rope."):
        return iter([lambda: rope_table(name, checkpoint.config, shape.context)])
    return tensor_pieces(name, checkpoint)


def weight(name: str, *shape: int) -> Parameter:
    """Return a float32 weight without data: tracing needs the shape only, so no memory is allocated."""
    return Parameter(initializer("zeros", shape, mindspore.float32), name=name, requires_grad=False)


class RMSNorm(nn.Cell):
    """x * weight / sqrt(mean(x^2) + eps), arXiv:1910.07467.

    Does not use Rsqrt: the error of MindSpore Lite's is up to 5e-5 on x86, and 30 layers make it visible in the logits.
    """

    def __init__(self, config: LlamaConfig, name: str):
        super().__init__(auto_prefix=False)
        self.weight = weight(f"{name}.weight", config.hidden_size)
        self.eps = Tensor(np.full((1, 1), config.rms_norm_eps, np.float32))
        self.square, self.mean, self.sqrt = ops.Square(), ops.ReduceMean(keep_dims=True), ops.Sqrt()
        self.add, self.mul, self.div = ops.Add(), ops.Mul(), ops.Div()

    def construct(self, x: Any) -> Any:
        scale = self.sqrt(self.add(self.mean(self.square(x), -1), self.eps))  # [T, 1]
        return self.mul(self.div(x, scale), self.weight)


class Linear(nn.Cell):
    """x [T, K] -> x W^T + b [T, N]."""

    def __init__(self, config: LlamaConfig, name: str):
        super().__init__(auto_prefix=False)
        n, k, self.has_bias = linear_sizes(config, name)
        self.weight = weight(f"{name}.weight", n, k)
        if self.has_bias:
            self.bias = weight(f"{name}.bias", n)
        self.matmul, self.add = ops.MatMul(transpose_b=True), ops.Add()

    def construct(self, x: Any) -> Any:
        y = self.matmul(x, self.weight)
        return self.add(y, self.bias) if self.has_bias else y


class Prepare(nn.Cell):
    """Replaces the positions among the step's inputs by their rows of the rotary tables."""

    def __init__(self, config: LlamaConfig, shape: Shape):
        super().__init__(auto_prefix=False)
        half = config.head_dim // 2
        self.cos, self.sin = (weight(f"rope.{kind}", shape.context, half) for kind in ("cos", "sin"))
        self.gather, self.reshape = ops.Gather(), ops.Reshape()
        self.table_shape = (shape.rows, 1, -1, half)

    def construct(self, step: Any) -> Any:
        tokens, positions, last = step[:3]
        cos = self.reshape(self.gather(self.cos, positions, 0), self.table_shape)  # [B, 1, S, D/2]
        sin = self.reshape(self.gather(self.sin, positions, 0), self.table_shape)
        return (tokens, cos, sin, last, *step[3:])


class Embedding(nn.Cell):
    """Looks up the embedding of each token."""

    def __init__(self, config: LlamaConfig, shape: Shape):
        super().__init__(auto_prefix=False)
        self.weight = weight("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        self.gather, self.reshape, self.width = ops.Gather(), ops.Reshape(), config.hidden_size

    def construct(self, step: Any) -> Any:
        return self.reshape(self.gather(self.weight, step[0], 0), (-1, self.width))  # [T, E]


class NormQKV(nn.Cell):
    """The attention's norm, then its q, k and v projections."""

    def __init__(self, config: LlamaConfig, shape: Shape, norm: str, attention: str):
        super().__init__(auto_prefix=False)
        self.norm = RMSNorm(config, norm)
        self.q, self.k, self.v = (Linear(config, f"{attention}.{x}_proj") for x in "qkv")

    def construct(self, h: Any, step: Any) -> Any:
        x = self.norm(h)
        return self.q(x), self.k(x), self.v(x)


class Attention(nn.Cell):
    """Grouped-query attention (arXiv:2305.13245) over the cache and the call's own tokens."""

    def __init__(self, config: LlamaConfig, shape: Shape, name: str, window: int):
        super().__init__(auto_prefix=False)
        # The windowed masks are the last of the step. If other layers have no window, their masks come before.
        self.masks = -2 if window else 4
        rows, heads, groups, dim = shape.rows, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_shape, self.kv_shape = (rows, -1, heads, dim), (rows, -1, groups, dim)
        self.grouped, self.flat = (rows, groups, -1, dim), (-1, heads * dim)
        # Not [B, H, S, D]: with R = 1 or G = 1, MindSpore Lite 2.0 transposes it wrongly after a call with S = H.
        self.by_head = (rows, groups, heads // groups, -1, dim)
        self.scale = Tensor(np.full((1, 1, 1, 1), dim**-0.5, np.float32))
        self.capacity = shape.context
        self.reshape, self.transpose = ops.Reshape(), ops.Transpose()
        self.halves, self.join, self.softmax = ops.Split(3, 2), ops.Concat(-1), ops.Softmax(-1)
        self.add, self.sub, self.mul = ops.Add(), ops.Sub(), ops.Mul()
        self.scores, self.values = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
        # -1 means the rest of the axis: the token axis changes when the graph is resized.
        self.slice, self.first = ops.Slice(), (0, 0, 0, 0)
        self.past_size, self.own = (-1, -1, -1, shape.context), (0, 0, 0, shape.context)
        self.own_size = (-1, -1, -1, -1)

    def heads(self, x: Any, shape: Any) -> Any:
        return self.transpose(self.reshape(x, shape), (0, 2, 1, 3))  # [B, heads, S, D]

    def rope(self, x: Any, cos: Any, sin: Any) -> Any:
        lo, hi = self.halves(x)
        return self.join(
            (self.sub(self.mul(lo, cos), self.mul(hi, sin)), self.add(self.mul(hi, cos), self.mul(lo, sin)))
        )

    def construct(self, qkv: Any, step: Any, caches: Any) -> Any:
        q, k, v = qkv
        cos, sin = step[1], step[2]
        cache_mask, self_mask = step[self.masks], step[self.masks + 1]
        k_cache, v_cache = caches
        q = self.mul(self.rope(self.heads(q, self.q_shape), cos, sin), self.scale)
        q = self.reshape(q, self.grouped)  # [B, G, R * S, D]
        k = self.rope(self.heads(k, self.kv_shape), cos, sin)  # [B, G, S, D]
        v = self.heads(v, self.kv_shape)
        past = self.add(self.scores(q, k_cache), cache_mask)  # [B, G, R * S, C]
        own = self.add(self.scores(q, k), self_mask)  # [B, G, R * S, S]
        p = self.softmax(self.join((past, own)))  # [B, G, R * S, C + S]
        p_past, p_own = self.slice(p, self.first, self.past_size), self.slice(p, self.own, self.own_size)
        out = self.add(self.values(p_past, v_cache), self.values(p_own, v))
        out = self.transpose(self.reshape(out, self.by_head), (0, 3, 1, 2, 4))  # [B, S, G, R, D]
        return self.reshape(out, self.flat), (k, v)


class LinearAdd(nn.Cell):
    """A linear layer whose result is added to the residual stream."""

    def __init__(self, config: LlamaConfig, shape: Shape, name: str):
        super().__init__(auto_prefix=False)
        self.linear, self.add = Linear(config, name), ops.Add()

    def construct(self, x: Any, h: Any, step: Any) -> Any:
        return self.add(h, self.linear(x))


class NormSwiGLU(nn.Cell):
    """The MLP's norm, then silu(gate) * up, arXiv:2002.05202."""

    def __init__(self, config: LlamaConfig, shape: Shape, norm: str, mlp: str):
        super().__init__(auto_prefix=False)
        self.norm = RMSNorm(config, norm)
        self.gate, self.up = Linear(config, f"{mlp}.gate_proj"), Linear(config, f"{mlp}.up_proj")
        self.sigmoid, self.mul = ops.Sigmoid(), ops.Mul()

    def construct(self, h: Any, step: Any) -> Any:
        x = self.norm(h)
        gate = self.gate(x)
        return self.mul(self.mul(gate, self.sigmoid(gate)), self.up(x))


class Head(nn.Cell):
    """The final norm and the logits [B, V] of each row's last valid token."""

    def __init__(self, config: LlamaConfig, shape: Shape, embedding: Parameter):
        super().__init__(auto_prefix=False)
        self.norm = RMSNorm(config, "model.norm")
        tied = config.tie_word_embeddings
        self.weight = embedding if tied else weight("lm_head.weight", config.vocab_size, config.hidden_size)
        self.gather, self.matmul = ops.Gather(), ops.MatMul(transpose_b=True)

    def construct(self, h: Any, step: Any) -> Any:
        return self.matmul(self.norm(self.gather(h, step[3], 0)), self.weight)
