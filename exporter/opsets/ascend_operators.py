"""The operators of kernels/ascend as MindSpore's primitives, with the names, order and attributes of op_host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore
from mindspore.ops import PrimitiveWithInfer

from edgellama.kernels.weight_format import PANEL

FLOAT16, FLOAT32 = mindspore.float16, mindspore.float32


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


class SplitAttention(KernelOperator):
    """kernels.reference.split_attention; the caches as in FusedAttention."""

    INPUTS = FusedAttention.INPUTS
    OUTPUTS = ("out", "partial", "k_cache", "v_cache")

    def __init__(self, node: str, heads: int, scale: float, window: int, parts: int):
        super().__init__(node, heads=heads, scale=scale, window=window, parts=parts)
        self.heads, self.parts = heads, parts

    def infer_shape(self, qkv: Any, cos: Any, sin: Any, start: Any, length: Any, k_cache: Any, v_cache: Any) -> Any:
        rows, groups, _, dim = k_cache
        partial = [rows, groups, self.parts, self.heads // groups * (dim + 16)]
        return [qkv[0], qkv[1], self.heads * dim], partial, k_cache, v_cache

    def infer_dtype(self, qkv: Any, cos: Any, sin: Any, start: Any, length: Any, k_cache: Any, v_cache: Any) -> Any:
        return qkv, FLOAT32, k_cache, v_cache


class JoinAttention(KernelOperator):
    """kernels.reference.join_attention"""

    INPUTS, OUTPUTS = ("out", "partial"), ("joined",)

    def infer_shape(self, out: Any, partial: Any) -> Any:
        return out

    def infer_dtype(self, out: Any, partial: Any) -> Any:
        return out


class LmHead(KernelOperator):
    """kernels.reference.lm_head"""

    INPUTS, OUTPUTS = ("x", "weight"), ("logits",)

    def infer_shape(self, x: Any, weight: Any) -> Any:
        return [x[0], weight[0]]

    def infer_dtype(self, x: Any, weight: Any) -> Any:
        return FLOAT32


class QuantLinear(KernelOperator):
    """kernels.reference.quant_linear"""

    INPUTS, OUTPUTS = ("x", "weight"), ("y",)

    def __init__(self, node: str, bits: int, group: int, wide: bool):
        super().__init__(node, bits=bits, group=group, wide=int(wide))
        self.wide = wide

    def infer_shape(self, x: Any, weight: Any) -> Any:
        return [x[0], PANEL * weight[0]]

    def infer_dtype(self, x: Any, weight: Any) -> Any:
        return FLOAT32 if self.wide else FLOAT16
