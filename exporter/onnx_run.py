"""Run an artifact's graph through its ONNX twin: onnx.reference for the built-in operators, kernels/reference.py for
the custom ones (exporter.onnx_evaluators). Slow, and independent of MindSpore, of MindSpore Lite and of every kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from exporter.mindir_graph import read
from exporter.onnx_evaluators import operators
from exporter.onnx_twin import WRITTEN, translate
from kernels import reference
from runtime.artifact.manifest import Artifact, Graph
from runtime.engine import Engine


def twin_engine(artifact: Artifact, kernels: Any = reference) -> Engine:
    """The runtime's engine (buckets, chunks, masks, caches) over the twins of an artifact's graphs.

    kernels: what computes the operators of kernels/ascend, functions named and called as those of kernels.reference.
    """
    graphs = {artifact.file(graph.file): graph for graph in artifact.manifest.graphs}
    return Engine(artifact, build=lambda path: TwinGraph(path, graphs[path], kernels))


class TwinGraph:
    """One graph, as runtime.engine.BuiltGraph asks for it. Inputs that the graph writes in place are written."""

    def __init__(self, path: Path, graph: Graph, kernels: Any = reference) -> None:
        model = translate(read(path), graph)
        self.inputs = [value.name for value in model.graph.input]
        self._weights = _take_external(model, path.parent)
        self._run = ReferenceEvaluator(model, new_ops=operators(kernels)).run
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


# Float16 matrices of graphs up to this many bytes are held in float32 too: numpy takes longer to widen a matrix than
# to multiply a few rows with it, and would do it again each step.
WIDEN_UP_TO = 1 << 30


def _take_external(model: onnx.ModelProto, folder: Path) -> dict[str, np.ndarray]:
    """Remove the weights that lie in data files from the model; their names and values, memory-mapped or widened.

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
    if sum(weight.nbytes for weight in weights.values()) > WIDEN_UP_TO:
        return weights
    return {
        name: weight.astype(np.float32) if weight.dtype == np.float16 and weight.ndim == 2 else weight
        for name, weight in weights.items()
    }
