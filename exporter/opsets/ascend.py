"""The ascend op set: float16 products, the operators of kernels/ascend, caches written in place.

Weights are float16 or packed constants in an external data file. The residual stream and the norms are float32. This
costs one more node where the result of a linear layer with float16 weights is added, and avoids overflow and loss in
the sum over the layers. Products have float16 inputs; the chip accumulates them in float32. LmHead gives the logits in
float32, because the difference between the two best logits is often smaller than a step of float16. Shape.chip
determines which built-in operators exist (kernels/ascend/chips.py). Without RmsNorm, the norm is composed of other
operators. SwiGLU is always composed.

One graph serves all buckets, decode too: its token axis is dynamic, and each bucket becomes a gear. So all attention is
FusedAttention; its tiling selects the decode kernel at the gear of one token. A separate decode graph would be a second
file. MindSpore Lite shares no constants between files on this path, so the weights would be in memory twice.

Letters: B rows, S tokens per row, T = B * S, H query heads, G key/value heads, D head size, C cache capacity, E hidden
size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mindspore
from mindspore import Parameter, ParameterTuple, nn, ops
from mindspore.common.initializer import initializer

from edgellama.kernels.ascend.chips import CHIPS

from ..checkpoint.base import Checkpoint
from ..checkpoint.row_blocks import Piece
from ..graph_spec import Shape
from ..network.config import LlamaConfig
from ..network.family import QKNorm
from ..network.layer_sizes import layer_norms, linear_sizes, windows
from ..network.rope import rope_index, rope_names
from . import portable
from .ascend_model_checks import attention_parts, logits_in_float32
from .ascend_operators import FLOAT16, FLOAT32, FusedAttention, JoinAttention, LmHead, QuantLinear, SplitAttention
from .ascend_weights import matrix_spec, quantization, weight_pieces
from .specs import ASCEND

SPEC = ASCEND


def pieces(name: str, checkpoint: Checkpoint, shape: Shape) -> Iterator[Piece]:
    """Yield the pieces of the graph's weight `name`."""
    return weight_pieces(name, checkpoint, shape)


def weight(name: str, *shape: int, dtype: Any = FLOAT16) -> Parameter:
    """Return a weight without data: tracing needs the shape only, so no memory is allocated."""
    return Parameter(initializer("zeros", shape, dtype), name=name, requires_grad=False)


class RMSNorm(nn.Cell):
    """float32 [..., size] -> float32 [..., size], or float16 with `half`; arXiv:1910.07467."""

    def __init__(self, shape: Shape, name: str, size: int, eps: float, half: bool = False):
        super().__init__(auto_prefix=False)
        self.cast, self.half = ops.Cast(), half
        self.fused = CHIPS[str(shape.chip)].has("RmsNorm")
        if self.fused:
            self.weight = weight(f"{name}.weight", size, dtype=FLOAT32)
            self.norm = ops.RmsNorm(eps)
        else:
            self.norm = portable.RMSNorm(name, size, eps)

    def construct(self, h: Any) -> Any:
        y = self.norm(h, self.weight)[0] if self.fused else self.norm(h)
        return self.cast(y, FLOAT16) if self.half else y


class ToHalf(nn.Cell):
    """float32 -> float16: what takes the place of a norm of the residual stream that an architecture lacks."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.cast = ops.Cast()

    def construct(self, h: Any) -> Any:
        return self.cast(h, FLOAT16)


def stream_norm(config: LlamaConfig, shape: Shape, name: str | None) -> nn.Cell:
    """Return the norm `name` of the residual stream: float32 [T, E] -> float16 [T, E]."""
    if name is None:
        return ToHalf()
    return RMSNorm(shape, name, config.hidden_size, config.stream_norm_eps, half=True)


class MatMul(nn.Cell):
    """x [T, K] float16 -> x W^T [T, N], float16. W is float16 or packed; `wide` gives float32, with packed W only."""

    def __init__(self, shape: Shape, name: str, n: int, k: int, wide: bool):
        super().__init__(auto_prefix=False)
        packed = quantization(name, shape)
        if packed is not None:
            self.weight = weight(f"{name}.weight", *matrix_spec(name, n, k, shape).shape, dtype=mindspore.uint8)
            self.matmul = QuantLinear(name, *packed, wide)
        else:
            self.weight = weight(f"{name}.weight", n, k)
            self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x: Any) -> Any:
        return self.matmul(x, self.weight)


class Linear(nn.Cell):
    """x [T, K] -> x W^T + b [T, N], float16. `name` may join projections of one input: qkv_proj.

    wide: the result is float32; only for packed weights without a bias.
    """

    def __init__(self, shape: Shape, name: str, sizes: tuple[int, int, bool], wide: bool = False):
        super().__init__(auto_prefix=False)
        n, k, self.has_bias = sizes
        self.matmul, self.add = MatMul(shape, name, n, k, wide), ops.Add()
        if self.has_bias:
            self.bias = weight(f"{name}.bias", n)

    def construct(self, x: Any) -> Any:
        y = self.matmul(x)
        return self.add(y, self.bias) if self.has_bias else y


class Prepare(nn.Cell):
    """Returns the step's inputs and the rotary tables: tokens_by_step, start, length, last; cos, sin of each kind."""

    def __init__(self, config: LlamaConfig, shape: Shape):
        super().__init__(auto_prefix=False)
        half = config.head_dim // 2
        self.tables = ParameterTuple([weight(name, shape.context, half, dtype=FLOAT32) for name in rope_names(config)])

    def construct(self, step: Any) -> Any:
        for table in self.tables:
            step = (*step, table)
        return step


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


class HeadNorms(nn.Cell):
    """The norms of the queries and keys in qkv [T, (H + 2G) * D], float16, computed in float32."""

    def __init__(self, config: LlamaConfig, shape: Shape, attention: str, norm: QKNorm):
        super().__init__(auto_prefix=False)
        heads, groups, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        sizes, eps = layer_norms(config), config.rms_norm_eps
        self.q_norm = RMSNorm(shape, f"{attention}.{norm.q}", sizes[f"self_attn.{norm.q}"], eps)
        self.k_norm = RMSNorm(shape, f"{attention}.{norm.k}", sizes[f"self_attn.{norm.k}"], eps)
        self.slice, self.join, self.reshape, self.cast = ops.Slice(), ops.Concat(1), ops.Reshape(), ops.Cast()
        self.widths = heads * dim, groups * dim
        self.each = not norm.whole
        self.by_head = (-1, dim)

    def part(self, qkv: Any, first: int, width: int) -> Any:
        return self.slice(qkv, (0, first), (-1, width))

    def normed(self, x: Any, norm: Any, width: int) -> Any:
        x = self.cast(x, FLOAT32)
        if self.each:
            x = self.reshape(x, self.by_head)
        x = norm(x)
        if self.each:
            x = self.reshape(x, (-1, width))
        return self.cast(x, FLOAT16)

    def construct(self, qkv: Any) -> Any:
        heads, groups = self.widths
        q = self.normed(self.part(qkv, 0, heads), self.q_norm, heads)
        k = self.normed(self.part(qkv, heads, groups), self.k_norm, groups)
        return self.join((q, k, self.part(qkv, heads + groups, groups)))


class NormQKV(nn.Cell):
    """The attention's norm, its q, k and v projections as one product, then the norms of q and k."""

    def __init__(self, config: LlamaConfig, shape: Shape, norm: str | None, attention: str):
        super().__init__(auto_prefix=False)
        self.norm = stream_norm(config, shape, norm)
        qk_norm = config.family.qk_norm
        self.has_head_norms = qk_norm is not None
        if qk_norm is not None:
            self.head_norms = HeadNorms(config, shape, attention, qk_norm)
        rows = sum(linear_sizes(config, f"{attention}.{x}_proj")[0] for x in "qkv")
        _, k, bias = linear_sizes(config, f"{attention}.q_proj")
        self.linear = Linear(shape, f"{attention}.qkv_proj", (rows, k, bias))
        self.reshape, self.by_row = ops.Reshape(), (shape.rows, -1, rows)

    def construct(self, h: Any, step: Any) -> Any:
        qkv = self.linear(self.norm(h))
        if self.has_head_norms:
            qkv = self.head_norms(qkv)
        return self.reshape(qkv, self.by_row)  # [B, S, (H + 2G) * D]


class Attention(nn.Cell):
    """kernels.reference.fused_attention. With too few heads for the cores it is SplitAttention and JoinAttention."""

    def __init__(self, config: LlamaConfig, shape: Shape, name: str, layer: int):
        super().__init__(auto_prefix=False)
        heads, dim, window = config.num_attention_heads, config.head_dim, windows(config, shape.context)[layer]
        parts = attention_parts(config, shape, layer)
        self.split = parts > 1
        if self.split:
            self.attention = SplitAttention(f"{name}.attention", heads, float(config.scale), window, parts)
            self.join = JoinAttention(f"{name}.join")
        else:
            self.attention = FusedAttention(f"{name}.attention", heads, float(config.scale), window)
        self.rope = 4 + rope_index(config, layer)
        self.reshape, self.flat = ops.Reshape(), (-1, heads * dim)

    def construct(self, qkv: Any, step: Any, caches: Any) -> Any:
        start, length = step[1], step[2]
        results = self.attention(qkv, step[self.rope], step[self.rope + 1], start, length, *caches)
        out = self.join(results[0], results[1]) if self.split else results[0]
        return self.reshape(out, self.flat), ()  # [T, H * D]


class LinearAdd(nn.Cell):
    """A linear layer whose result, or the norm of it, is added to the residual stream in float32."""

    def __init__(self, config: LlamaConfig, shape: Shape, name: str, norm: str | None):
        super().__init__(auto_prefix=False)
        sizes = linear_sizes(config, name)
        self.wide = quantization(name, shape) is not None and not sizes[2]  # without it, Cast widens
        self.linear, self.add, self.cast = Linear(shape, name, sizes, self.wide), ops.Add(), ops.Cast()
        self.has_norm = norm is not None
        if norm is not None:
            self.norm = RMSNorm(shape, norm, config.hidden_size, config.rms_norm_eps)

    def construct(self, x: Any, h: Any, step: Any) -> Any:
        y = self.linear(x) if self.wide else self.cast(self.linear(x), FLOAT32)
        return self.add(h, self.norm(y) if self.has_norm else y)


class GELU(nn.Cell):
    """portable.GELU of a float16 gate, computed in float32."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.gelu, self.cast = portable.GELU(), ops.Cast()

    def construct(self, x: Any) -> Any:
        return self.cast(self.gelu(self.cast(x, FLOAT32)), FLOAT16)


class NormGLU(nn.Cell):
    """The MLP's norm, if there is one before it, then activation(gate) * up, arXiv:2002.05202."""

    def __init__(self, config: LlamaConfig, shape: Shape, norm: str | None, mlp: str):
        super().__init__(auto_prefix=False)
        self.norm = stream_norm(config, shape, norm)
        self.gate, self.up = (
            Linear(shape, f"{mlp}.{x}_proj", linear_sizes(config, f"{mlp}.{x}_proj")) for x in ("gate", "up")
        )
        self.sigmoid, self.mul, self.silu = ops.Sigmoid(), ops.Mul(), config.hidden_act == "silu"
        if config.hidden_act != "silu":
            self.gelu = GELU()

    def construct(self, h: Any, step: Any) -> Any:
        x = self.norm(h)
        gate = self.gate(x)
        activated = self.mul(gate, self.sigmoid(gate)) if self.silu else self.gelu(gate)
        return self.mul(activated, self.up(x))


class Head(nn.Cell):
    """The final norm and the logits [B, V], float32, of each row's last valid token.

    If LmHead does not support the vocabulary or the hidden size, MatMul computes the logits in float16.
    """

    def __init__(self, config: LlamaConfig, shape: Shape, embedding: Parameter):
        super().__init__(auto_prefix=False)
        self.norm = stream_norm(config, shape, "model.norm")
        vocabulary, hidden = config.vocab_size, config.hidden_size
        self.weight = embedding if config.tie_word_embeddings else weight("lm_head.weight", vocabulary, hidden)
        self.fused = logits_in_float32(config)
        self.matmul = LmHead("lm_head") if self.fused else ops.MatMul(transpose_b=True)
        self.gather, self.cast = ops.Gather(), ops.Cast()
        self.capped = config.final_logit_softcapping is not None
        if config.final_logit_softcapping is not None:
            self.cap = portable.SoftCap(config.final_logit_softcapping, 2)

    def construct(self, h: Any, step: Any) -> Any:
        x = self.norm(self.gather(h, step[3], 0))  # [B, E]
        logits = self.matmul(x, self.weight) if self.fused else self.cast(self.matmul(x, self.weight), FLOAT32)
        return self.cap(logits) if self.capped else logits
