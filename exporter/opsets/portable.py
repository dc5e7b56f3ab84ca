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
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from ..checkpoint.base import Checkpoint
from ..checkpoint.row_blocks import Piece, tensor_pieces
from ..graph_spec import Shape
from ..network.config import LlamaConfig
from ..network.layer_sizes import layer_norms, linear_sizes, windows
from ..network.rope import QUERY_NAMES, query_scale, rope_index, rope_names, rope_table
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


def scalar(value: float, rank: int) -> Tensor:
    """Return a float32 constant that broadcasts to tensors of `rank` axes."""
    return Tensor(np.full((1,) * rank, value, np.float32))


class RMSNorm(nn.Cell):
    """x * weight / sqrt(mean(x^2) + eps), arXiv:1910.07467.

    Does not use Rsqrt: the error of MindSpore Lite's is up to 5e-5 on x86, and 30 layers make it visible in the logits.
    """

    def __init__(self, name: str, size: int, eps: float):
        super().__init__(auto_prefix=False)
        self.weight = weight(f"{name}.weight", size)
        self.eps = scalar(eps, 2)
        self.square, self.mean, self.sqrt = ops.Square(), ops.ReduceMean(keep_dims=True), ops.Sqrt()
        self.add, self.mul, self.div = ops.Add(), ops.Mul(), ops.Div()

    def construct(self, x: Any) -> Any:
        scale = self.sqrt(self.add(self.mean(self.square(x), -1), self.eps))  # [..., 1]
        return self.mul(self.div(x, scale), self.weight)


def stream_norm(config: LlamaConfig, name: str) -> RMSNorm:
    """Return the norm `name` of the residual stream."""
    return RMSNorm(name, config.hidden_size, config.stream_norm_eps)


class SoftCap(nn.Cell):
    """cap * tanh(x / cap), for x of `rank` axes.

    tanh(y) = 2 sigmoid(2 y) - 1, because the error of MindSpore Lite's Tanh is up to 1e-4 on x86.
    """

    def __init__(self, cap: float, rank: int):
        super().__init__(auto_prefix=False)
        self.before, self.after, self.cap = (scalar(value, rank) for value in (2 / cap, 2 * cap, cap))
        self.mul, self.sigmoid, self.sub = ops.Mul(), ops.Sigmoid(), ops.Sub()

    def construct(self, x: Any) -> Any:
        return self.sub(self.mul(self.sigmoid(self.mul(x, self.before)), self.after), self.cap)


class GELU(nn.Cell):
    """The tanh approximation of GELU, arXiv:1606.08415: x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.linear, self.cubic = scalar(2 * np.sqrt(2 / np.pi), 2), scalar(2 * np.sqrt(2 / np.pi) * 0.044715, 2)
        self.mul, self.add, self.sigmoid = ops.Mul(), ops.Add(), ops.Sigmoid()

    def construct(self, x: Any) -> Any:
        factor = self.add(self.mul(self.mul(x, x), self.cubic), self.linear)
        return self.mul(x, self.sigmoid(self.mul(x, factor)))


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
    """Appends the positions' rows of the rotary tables to the step's inputs: cos, sin of each kind of table."""

    def __init__(self, config: LlamaConfig, shape: Shape):
        super().__init__(auto_prefix=False)
        half = config.head_dim // 2
        names = rope_names(config) + (QUERY_NAMES if query_scale(config) else [])
        self.tables = ParameterTuple([weight(name, shape.context, half) for name in names])
        self.gather, self.reshape = ops.Gather(), ops.Reshape()
        self.table_shape = (shape.rows, 1, -1, half)

    def construct(self, step: Any) -> Any:
        for table in self.tables:
            step = (*step, self.reshape(self.gather(table, step[1], 0), self.table_shape))  # [B, 1, S, D/2]
        return step


class Embedding(nn.Cell):
    """Looks up the embedding of each token."""

    def __init__(self, config: LlamaConfig, shape: Shape):
        super().__init__(auto_prefix=False)
        self.weight = weight("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        self.gather, self.reshape, self.width = ops.Gather(), ops.Reshape(), config.hidden_size

    def construct(self, step: Any) -> Any:
        return self.reshape(self.gather(self.weight, step[0], 0), (-1, self.width))  # [T, E]


class NormQKV(nn.Cell):
    """The attention's norm, if there is one before it, then its q, k and v projections."""

    def __init__(self, config: LlamaConfig, shape: Shape, norm: str | None, attention: str):
        super().__init__(auto_prefix=False)
        self.has_norm = norm is not None
        if norm is not None:
            self.norm = stream_norm(config, norm)
        self.q, self.k, self.v = (Linear(config, f"{attention}.{x}_proj") for x in "qkv")

    def construct(self, h: Any, step: Any) -> Any:
        x = self.norm(h) if self.has_norm else h
        return self.q(x), self.k(x), self.v(x)


class Attention(nn.Cell):
    """Grouped-query attention (arXiv:2305.13245) over the cache and the call's own tokens."""

    def __init__(self, config: LlamaConfig, shape: Shape, name: str, layer: int):
        super().__init__(auto_prefix=False)
        first = len(SPEC.step_inputs(config, shape))
        self.tables = self.q_tables = first + rope_index(config, layer)
        if query_scale(config):
            self.q_tables = first + len(rope_names(config))
        # The windowed masks are the last inputs. If other layers have no window, their masks come before.
        kinds = windows(config, shape.context)
        self.masks = 5 if kinds[layer] and not all(kinds) else 3
        self.norms(config, name)
        rows, heads, groups, dim = shape.rows, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_shape, self.kv_shape = (rows, -1, heads, dim), (rows, -1, groups, dim)
        self.grouped, self.flat = (rows, groups, -1, dim), (-1, heads * dim)
        # Not [B, H, S, D]: with R = 1 or G = 1, MindSpore Lite 2.0 transposes it wrongly after a call with S = H.
        self.by_head = (rows, groups, heads // groups, -1, dim)
        self.scale = scalar(config.scale, 4)
        self.capacity = shape.context
        self.reshape, self.transpose = ops.Reshape(), ops.Transpose()
        self.halves, self.join, self.softmax = ops.Split(3, 2), ops.Concat(-1), ops.Softmax(-1)
        self.add, self.sub, self.mul = ops.Add(), ops.Sub(), ops.Mul()
        self.scores, self.values = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
        # -1 means the rest of the axis: the token axis changes when the graph is resized.
        self.slice, self.first = ops.Slice(), (0, 0, 0, 0)
        self.past_size, self.own = (-1, -1, -1, shape.context), (0, 0, 0, shape.context)
        self.own_size = (-1, -1, -1, -1)

        self.capped = config.attn_logit_softcapping is not None
        if config.attn_logit_softcapping is not None:
            self.cap = SoftCap(config.attn_logit_softcapping, 4)

    def norms(self, config: LlamaConfig, name: str) -> None:
        """Create the norms of q and k, if the architecture has them."""
        norm, eps = config.family.qk_norm, config.rms_norm_eps
        self.norm_tokens = norm is not None and norm.whole  # of all heads of a token
        self.norm_before = norm is not None and not norm.whole and not norm.after_rope
        self.norm_after = norm is not None and norm.after_rope
        if norm is not None:
            sizes = layer_norms(config)
            self.q_norm = RMSNorm(f"{name}.{norm.q}", sizes[f"self_attn.{norm.q}"], eps)
            self.k_norm = RMSNorm(f"{name}.{norm.k}", sizes[f"self_attn.{norm.k}"], eps)

    def heads(self, x: Any, shape: Any) -> Any:
        return self.transpose(self.reshape(x, shape), (0, 2, 1, 3))  # [B, heads, S, D]

    def rope(self, x: Any, cos: Any, sin: Any) -> Any:
        lo, hi = self.halves(x)
        return self.join(
            (self.sub(self.mul(lo, cos), self.mul(hi, sin)), self.add(self.mul(hi, cos), self.mul(lo, sin)))
        )

    def construct(self, qkv: Any, step: Any, caches: Any) -> Any:
        q, k, v = qkv
        cos, sin = step[self.tables], step[self.tables + 1]
        cache_mask, self_mask = step[self.masks], step[self.masks + 1]
        k_cache, v_cache = caches
        if self.norm_tokens:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = self.heads(q, self.q_shape), self.heads(k, self.kv_shape), self.heads(v, self.kv_shape)
        if self.norm_before:
            q, k = self.q_norm(q), self.k_norm(k)
        q = self.rope(q, step[self.q_tables], step[self.q_tables + 1])
        k = self.rope(k, cos, sin)  # [B, H, S, D], [B, G, S, D]
        if self.norm_after:
            q, k = self.q_norm(q), self.k_norm(k)
        q = self.reshape(self.mul(q, self.scale), self.grouped)  # [B, G, R * S, D]
        past, own = self.scores(q, k_cache), self.scores(q, k)
        if self.capped:
            past, own = self.cap(past), self.cap(own)
        past = self.add(past, cache_mask)  # [B, G, R * S, C]
        own = self.add(own, self_mask)  # [B, G, R * S, S]
        p = self.softmax(self.join((past, own)))  # [B, G, R * S, C + S]
        p_past, p_own = self.slice(p, self.first, self.past_size), self.slice(p, self.own, self.own_size)
        out = self.add(self.values(p_past, v_cache), self.values(p_own, v))
        out = self.transpose(self.reshape(out, self.by_head), (0, 3, 1, 2, 4))  # [B, S, G, R, D]
        return self.reshape(out, self.flat), (k, v)


class LinearAdd(nn.Cell):
    """A linear layer whose result, or the norm of it, is added to the residual stream."""

    def __init__(self, config: LlamaConfig, shape: Shape, name: str, norm: str | None):
        super().__init__(auto_prefix=False)
        self.linear, self.add = Linear(config, name), ops.Add()
        self.has_norm = norm is not None
        if norm is not None:
            self.norm = RMSNorm(norm, config.hidden_size, config.rms_norm_eps)

    def construct(self, x: Any, h: Any, step: Any) -> Any:
        y = self.linear(x)
        return self.add(h, self.norm(y) if self.has_norm else y)


class NormGLU(nn.Cell):
    """The MLP's norm, if there is one before it, then activation(gate) * up, arXiv:2002.05202."""

    def __init__(self, config: LlamaConfig, shape: Shape, norm: str | None, mlp: str):
        super().__init__(auto_prefix=False)
        self.has_norm = norm is not None
        if norm is not None:
            self.norm = stream_norm(config, norm)
        self.gate, self.up = Linear(config, f"{mlp}.gate_proj"), Linear(config, f"{mlp}.up_proj")
        self.sigmoid, self.mul, self.silu = ops.Sigmoid(), ops.Mul(), config.hidden_act == "silu"
        if config.hidden_act != "silu":
            self.gelu = GELU()

    def construct(self, h: Any, step: Any) -> Any:
        x = self.norm(h) if self.has_norm else h
        gate = self.gate(x)
        activated = self.mul(gate, self.sigmoid(gate)) if self.silu else self.gelu(gate)
        return self.mul(activated, self.up(x))


class Head(nn.Cell):
    """The final norm and the logits [B, V] of each row's last valid token."""

    def __init__(self, config: LlamaConfig, shape: Shape, embedding: Parameter):
        super().__init__(auto_prefix=False)
        self.norm = stream_norm(config, "model.norm")
        tied = config.tie_word_embeddings
        self.weight = embedding if tied else weight("lm_head.weight", config.vocab_size, config.hidden_size)
        self.gather, self.matmul = ops.Gather(), ops.MatMul(transpose_b=True)
        self.capped = config.final_logit_softcapping is not None
        if config.final_logit_softcapping is not None:
            self.cap = SoftCap(config.final_logit_softcapping, 2)

    def construct(self, h: Any, step: Any) -> Any:
        logits = self.matmul(self.norm(self.gather(h, step[2], 0)), self.weight)
        return self.cap(logits) if self.capped else logits
