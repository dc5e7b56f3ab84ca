"""Evaluate the twin's operators in numpy.

Custom operators use kernels/reference.py. Some of ONNX's own operators are replaced too, because onnx.reference rounds
them differently from devices, or computes them slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from edgellama.artifact.safetensors import ALIGNMENT
from edgellama.kernels import reference, weight_format

from .operators import DOMAIN

BLOCK = 1 << 25  # matrix elements that are widened to float32 at a time


def _caches(given: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Copy the caches, to write into the copies. Returns the copies, and views of them in the reference's dtypes."""
    copies = [np.array(cache) for cache in given]
    return copies, [copy.view(np.float16) if copy.dtype == np.int16 else copy for copy in copies]


class FusedAttention(OpRun):
    """(qkv, cos, sin, start, length, caches ...) -> (attended, the caches after the call).

    An int16 cache holds the bits of float16 values (exporter/opsets/specs.py explains why).
    """

    op_domain = DOMAIN
    compute = staticmethod(reference.fused_attention)

    def _run(self, *inputs: Any, heads: int, scale: float, window: int) -> tuple[np.ndarray, ...]:
        copies, caches = _caches(inputs[5:])
        scales: dict[str, Any] = dict(zip(("k_scale", "v_scale"), caches[2:], strict=False))
        attended = self.compute(*inputs[:5], *caches[:2], heads=heads, scale=scale, window=window, **scales)
        return (attended, *copies)


class SplitAttention(OpRun):
    """(qkv, cos, sin, start, length, caches) -> (out, partial, the caches after the call)."""

    op_domain = DOMAIN
    compute = staticmethod(reference.split_attention)

    def _run(self, *inputs: Any, heads: int, scale: float, window: int, parts: int) -> tuple[np.ndarray, ...]:
        copies, caches = _caches(inputs[5:])
        results = self.compute(*inputs[:5], *caches, heads=heads, scale=scale, window=window, parts=parts)
        return (*results, *copies)


class JoinAttention(OpRun):
    """(out, partial) -> joined."""

    op_domain = DOMAIN
    compute = staticmethod(reference.join_attention)

    def _run(self, out: Any, partial: Any) -> tuple[np.ndarray]:
        return (self.compute(out, partial),)


class LmHead(OpRun):
    """(x [B, E] float16, weight [V, E] float16) -> logits [B, V] float32."""

    op_domain = DOMAIN
    compute = staticmethod(reference.lm_head)

    def _run(self, x: Any, weight: Any) -> tuple[np.ndarray]:
        step = max(1, BLOCK // weight.shape[1] // 16 * 16)  # limits the memory of the float32 copy of a large head
        parts = [self.compute(x, weight[first : first + step]) for first in range(0, len(weight), step)]
        return (np.concatenate(parts, axis=1),)


class QuantLinear(OpRun):
    """(x [T, K] float16, weight [N / 16, bytes] uint8) -> y [T, N]."""

    op_domain = DOMAIN
    compute = staticmethod(reference.quant_linear)

    def _run(self, x: Any, weight: Any, bits: int, group: int, wide: int) -> tuple[np.ndarray]:
        step = max(1, BLOCK // (16 * x.shape[-1]))  # limits the memory of the unpacked weights
        parts = [weight[first : first + step] for first in range(0, len(weight), step)]
        found = [self.compute(x, np.asarray(part), bits=bits, group=group, wide=wide) for part in parts]
        return (np.concatenate(found, axis=1),)


class EdgeEmbedding(OpRun):
    """(ids [B, S] int32, the packed matrix uint8, length [B] int32) -> h [B, S, width] float32."""

    op_domain = DOMAIN

    def _run(self, ids: Any, packed: Any, length: Any, format: str, vocabulary: int, width: int) -> tuple[np.ndarray]:
        return (reference.embedding(ids, weight_format.unpack(packed, format, vocabulary, width), length),)


class EdgeHead(OpRun):
    """(h [B, S, E] float32, the packed matrix uint8, length [B] int32, gamma [E] float32) -> logits [B, V] float32."""

    op_domain = DOMAIN

    def _run(
        self, h: Any, packed: Any, length: Any, gamma: Any, format: str, vocabulary: int, eps: float, softcap: float
    ) -> tuple[np.ndarray]:
        weight = weight_format.unpack(packed, format, vocabulary, h.shape[-1])
        return (reference.linear(h, weight, length, gamma=gamma, eps=eps, softcap=softcap, last_only=True),)


class EdgeDecoderLayer(OpRun):
    """(h, start, length, cos, sin, weights, caches ...) -> (h, the caches after the call).

    weights: uint8, the layer's tensors in the order of exporter.opsets.cpu_weights.layer_tensors, each padded to
        ALIGNMENT.
    """

    op_domain = DOMAIN

    def _run(
        self, h: Any, start: Any, length: Any, cos: Any, sin: Any, weights: Any, *rest: Any, format: str, **given: Any
    ) -> tuple[np.ndarray, ...]:
        copies, caches = _caches(rest)
        heads, hidden, inner = given["heads"], h.shape[-1], given["inner"]
        _, groups, _, dim = caches[0].shape
        read = 0

        def take(count: int, dtype: Any) -> np.ndarray:
            nonlocal read
            found = weights[read : read + count * np.dtype(dtype).itemsize].view(dtype)
            read += weight_format.round_up(found.nbytes, ALIGNMENT)
            return found

        def part(outer: int, width: int, *, norm: bool, bias: int) -> reference.LinearWeights:
            panels = weight_format.panel_count(outer)
            packed = take(panels * weight_format.panel_bytes(format, width), np.uint8).reshape(panels, -1)
            weight = weight_format.unpack(packed, format, outer, width)
            gamma = take(width, np.float32) if norm else None
            return reference.LinearWeights(
                weight, gamma, take(panels * weight_format.PANEL, np.float32)[:outer] if bias else None
            )

        gated = weight_format.panel_count(inner) * weight_format.PANEL * 2
        before, after, norm = given["norms"] != "post", given["norms"] != "pre", given["qk_norm"]
        qkv = part((heads + 2 * groups) * dim, hidden, norm=before, bias=given["q_bias"])
        counts = (heads, groups) if norm == "whole" else (1, 1)
        q_gamma, k_gamma = (None if norm == "none" else take(n * dim, np.float32) for n in counts)
        o = part(hidden, heads * dim, norm=False, bias=given["o_bias"])
        attention_norm = take(hidden, np.float32) if after else None
        gate_up = part(gated, hidden, norm=before, bias=given["gate_bias"])
        down = part(hidden, inner, norm=False, bias=given["down_bias"])
        mlp_norm = take(hidden, np.float32) if after else None
        h = reference.decoder_layer(
            h, start, length, cos, sin, caches[0], caches[1], qkv, o, gate_up, down,
            k_scale=caches[2] if len(caches) > 2 else None, v_scale=caches[3] if len(caches) > 2 else None,
            heads=heads, scale=given["scale"], eps=given["eps"], window=given["window"], softcap=given["softcap"],
            act=given["activation"], norm_eps=given["norm_eps"], attention_norm=attention_norm, mlp_norm=mlp_norm,
            q_gamma=q_gamma, k_gamma=k_gamma, norm_after_rope=norm == "after_rope",
            query_beta=given["query_beta"], query_period=given["query_period"], coarse=format not in ("f32", "bf16"),
        )  # fmt: skip
        return (h, *copies)


class RmsNorm(OpRun):
    """(x, gamma) -> (x / rms(x) * gamma in x's dtype, 1 / rms(x) in float32), computed in float32."""

    op_domain = DOMAIN

    def _run(self, x: Any, gamma: Any, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
        y = x.astype(np.float32)
        scale = 1 / np.sqrt(np.mean(y * y, axis=-1, keepdims=True) + np.float32(epsilon))
        return (y * scale * gamma.astype(np.float32)).astype(x.dtype), scale


class WeightQuantBatchMatmul(OpRun):
    """(x [M, K] float16, weight [N, K] int8, antiquant_scale [N] float16) -> x (weight * scale)^T [M, N] float16.

    The scaled weights are rounded to float16, because the cube unit multiplies float16.
    """

    op_domain = DOMAIN

    def _run(self, x: Any, weight: Any, scale: Any) -> tuple[np.ndarray]:
        return (_product(x, (weight.astype(np.float16) * scale[:, None]).T),)


class Sigmoid(OpRun):
    """ONNX's Sigmoid on whole arrays; float16 is computed in float32 and then rounded."""

    def _run(self, x: Any) -> tuple[np.ndarray]:
        with np.errstate(over="ignore"):  # exp(-x) = inf gives the correct result 0
            return ((1 / (1 + np.exp(-x.astype(np.float32)))).astype(x.dtype),)


class Gemm(OpRun):
    """ONNX's Gemm without its third term C; float16 products are summed in float32, as on devices."""

    def _run(self, a: Any, b: Any, transA: int, transB: int, **_: Any) -> tuple[np.ndarray]:  # noqa: N803
        return (_product(a.T if transA else a, b.T if transB else b),)


class MatMul(OpRun):
    """ONNX's MatMul; float16 products are summed in float32, as on devices."""

    def _run(self, a: Any, b: Any) -> tuple[np.ndarray]:
        return (_product(a, b),)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype != np.float16:
        return np.matmul(a, b)
    x = a.astype(np.float32)
    if b.ndim != 2 or b.dtype == np.float32:  # float32: float16 values that exporter.onnx_twin.run widened once
        return np.matmul(x, b.astype(np.float32, copy=False)).astype(np.float16)
    out = np.empty((*a.shape[:-1], b.shape[1]), np.float16)
    step = max(1, BLOCK // len(b))
    for first in range(0, b.shape[1], step):  # limits the memory of the float32 copy of a large head
        out[..., first : first + step] = x @ b[:, first : first + step].astype(np.float32)
    return out


OPERATORS: list[type[OpRun]] = [
    EdgeDecoderLayer,
    EdgeEmbedding,
    EdgeHead,
    FusedAttention,
    Gemm,
    JoinAttention,
    LmHead,
    MatMul,
    QuantLinear,
    RmsNorm,
    Sigmoid,
    SplitAttention,
    WeightQuantBatchMatmul,
]


def operators(kernels: Any) -> list[type[OpRun]]:
    """Return OPERATORS, with the operators of kernels/ascend computed by the functions of `kernels`.

    kernels: has the functions fused_attention, split_attention, join_attention, lm_head and quant_linear of
        kernels.reference.
    """
    functions: dict[type[OpRun], Any] = {
        FusedAttention: kernels.fused_attention,
        SplitAttention: kernels.split_attention,
        JoinAttention: kernels.join_attention,
        LmHead: kernels.lm_head,
        QuantLinear: kernels.quant_linear,
    }

    def computed_by(op: type[OpRun], function: Any) -> type[OpRun]:
        return type(op.__name__, (op,), {"compute": staticmethod(function)})

    return [computed_by(op, functions[op]) if op in functions else op for op in OPERATORS]
