"""Run an artifact's graph through its ONNX twin: onnx.reference for the built-in operators, kernels/reference.py for
the custom ones. Slow, and independent of MindSpore, of MindSpore Lite and of every kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from exporter.mindir_graph import read
from exporter.onnx_operators import DOMAIN
from exporter.onnx_twin import WRITTEN, translate
from kernels import reference, weight_format
from runtime.artifact import Artifact, Graph
from runtime.engine import Engine


def twin_engine(artifact: Artifact) -> Engine:
    """The runtime's engine (buckets, chunks, masks, caches) over the twins of an artifact's graphs."""
    graphs = {artifact.file(graph.file): graph for graph in artifact.manifest.graphs}
    return Engine(artifact, build=lambda path: TwinGraph(path, graphs[path]))


class TwinGraph:
    """One graph, as runtime.engine.BuiltGraph asks for it. Inputs that the graph writes in place are written."""

    def __init__(self, path: Path, graph: Graph) -> None:
        model = translate(read(path), graph)
        self.inputs = [value.name for value in model.graph.input]
        self._weights = _take_external(model, path.parent)
        self._run = ReferenceEvaluator(model, new_ops=OPERATORS).run
        names = [value.name for value in model.graph.output]
        self._own = [name for name in names if not name.endswith(WRITTEN)]
        self._written = [name for name in names if name.endswith(WRITTEN)]

    def resize(self, shapes: Sequence[Sequence[int]]) -> None:
        """The twin's token axis is symbolic: nothing to do."""

    def bind(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        return list(arrays)

    def run(self, bound: list[Any]) -> list[np.ndarray]:
        feeds = dict(zip(self.inputs, bound, strict=True))
        results: Any = self._run([*self._own, *self._written], {**self._weights, **feeds})
        for name, array in zip(self._written, results[len(self._own) :], strict=True):
            feeds[name.removesuffix(WRITTEN)][...] = array
        return list(results[: len(self._own)])


def _take_external(model: onnx.ModelProto, folder: Path) -> dict[str, np.ndarray]:
    """Remove the weights that lie in data files from the model; their names and memory-mapped values.

    onnx.reference would hold them twice. What is left evaluates them as inputs.
    """
    weights: dict[str, np.ndarray] = {}
    kept = []
    for tensor in model.graph.initializer:
        if not tensor.external_data:
            kept.append(tensor)
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        weights[tensor.name] = np.memmap(
            folder / where["location"], dtype, mode="r", offset=int(where["offset"]), shape=tuple(tensor.dims)
        )
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return weights


class FusedAttention(OpRun):
    """(qkv, cos, sin, start, length, caches ...) -> (attended, the caches after the call).

    Where a cache is int16, its bits are float16 (exporter.opsets.cpu says why).
    """

    op_domain = DOMAIN

    def _run(self, *inputs: Any, heads: int, scale: float, window: int) -> tuple[np.ndarray, ...]:
        copies = [np.array(cache) for cache in inputs[5:]]
        caches = [copy.view(np.float16) if copy.dtype == np.int16 else copy for copy in copies]
        scales = dict(zip(("k_scale", "v_scale"), caches[2:], strict=False))
        attended = reference.fused_attention(
            *inputs[:5], *caches[:2], heads=heads, scale=scale, window=window, **scales
        )
        return (attended, *copies)


class FusedAttentionDecode(FusedAttention):
    """The same, where every row has at most one token."""


class EdgeEmbedding(OpRun):
    op_domain = DOMAIN

    def _run(self, ids: Any, packed: Any, length: Any, format: str, vocabulary: int, width: int) -> tuple[np.ndarray]:
        return (reference.embedding(ids, weight_format.unpack(packed, format, vocabulary, width), length),)


class EdgeLinear(OpRun):
    """Operands past the third are gamma, bias and residual, those that there are."""

    op_domain = DOMAIN

    def _run(self, x: Any, packed: Any, length: Any, *rest: Any, **given: Any) -> tuple[np.ndarray]:
        operands = iter(rest)
        gamma = next(operands) if given["norm"] else None
        bias = next(operands) if given["bias"] else None
        residual = next(operands) if given["epilogue"] == "residual_add" else None
        # Columns past `out` only fill the last panel; with swiglu they lie between gate and up.
        swiglu = given["epilogue"] == "swiglu"
        columns = len(packed) * weight_format.PANEL if swiglu else given["out"]
        y = reference.linear(
            x,
            weight_format.unpack(packed, given["format"], columns, given["in"]),
            length,
            gamma=gamma,
            eps=given["eps"],
            bias=None if bias is None else bias[:columns],
            residual=residual,
            swiglu=swiglu,
            last_only=bool(given["last_only"]),
        )
        return (y[..., : given["out"]],)


class Gemm(OpRun):
    """ONNX's, for matrices without a third term; half precision is summed in float32, as devices do."""

    def _run(self, a: Any, b: Any, transA: int, transB: int, **_: Any) -> tuple[np.ndarray]:  # noqa: N803
        return (_product(a.T if transA else a, b.T if transB else b),)


class MatMul(OpRun):
    def _run(self, a: Any, b: Any) -> tuple[np.ndarray]:
        return (_product(a, b),)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype != np.float16:
        return np.matmul(a, b)
    return np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(np.float16)


OPERATORS: list[type[OpRun]] = [
    EdgeEmbedding,
    EdgeLinear,
    FusedAttention,
    FusedAttentionDecode,
    Gemm,
    MatMul,
]
