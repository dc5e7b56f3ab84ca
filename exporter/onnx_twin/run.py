"""Run an artifact's graph through its ONNX twin.

onnx.reference evaluates the built-in operators, kernels/reference.py the custom ones (evaluators.py). The
result is independent of MindSpore, of MindSpore Lite and of every kernel. The evaluation is slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from edgellama.artifact.manifest import Artifact, Graph
from edgellama.engine.engine import Engine
from edgellama.kernels import reference
from edgellama.mindir.check import check_graphs

from ..mindir.graph import read
from .evaluators import operators
from .translate import WRITTEN, translate


def twin_engine(artifact: Artifact, kernels: Any = reference) -> Engine:
    """Return the runtime's engine (buckets, chunks, masks, caches) over the twins of an artifact's graphs.

    Args:
        kernels: computes the operators of kernels/ascend; its functions have the names and signatures of
            kernels.reference.

    Raises:
        UserError: a graph file is not what an export writes.
    """
    check_graphs(artifact)
    graphs = {artifact.file(graph.file): graph for graph in artifact.manifest.graphs}
    return Engine(artifact, build=lambda path: TwinGraph(path, graphs[path], kernels))


class TwinGraph:
    """One graph with the interface of the engine's BuiltGraph. It writes the in-place inputs back to their arrays."""

    def __init__(self, path: Path, graph: Graph, kernels: Any = reference) -> None:
        model = translate(read(path), graph)
        self.inputs = [value.name for value in model.graph.input]
        self._weights = _take_external(model, path.parent)
        self._run = ReferenceEvaluator(model, new_ops=operators(kernels)).run
        names = [value.name for value in model.graph.output]
        self._own = [name for name in names if not name.endswith(WRITTEN)]
        self._written = [name for name in names if name.endswith(WRITTEN)]

    def resize(self, shapes: Sequence[Sequence[int]]) -> None:
        """Do nothing: the twin's token axis is symbolic."""

    def bind(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """Return the inputs for `run`, in the order of `inputs`. In-place inputs are written to these arrays."""
        return list(arrays)

    def run(self, bound: list[Any]) -> list[np.ndarray]:
        """Evaluate the twin. Returns the graph's outputs, without the in-place writes."""
        feeds = dict(zip(self.inputs, bound, strict=True))
        results: Any = self._run([*self._own, *self._written], {**self._weights, **feeds})
        for name, array in zip(self._written, results[len(self._own) :], strict=True):
            feeds[name.removesuffix(WRITTEN)][...] = array
        return list(results[: len(self._own)])


# Graphs with up to this many bytes of weights keep their float16 matrices in float32. Otherwise numpy widens each
# matrix in every step, which takes longer than multiplying a few rows with it.
WIDEN_UP_TO = 1 << 30


def _take_external(model: onnx.ModelProto, folder: Path) -> dict[str, np.ndarray]:
    """Remove the weights in data files from the model. Returns their values by name, memory-mapped or widened.

    onnx.reference would hold them twice. The caller passes them to the remaining model as inputs.
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
