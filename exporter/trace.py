"""Trace the network to a MindIR protobuf with MindSpore, without a device and without weights in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import mindspore
from mindspore import Tensor

from edgellama.artifact.manifest import TensorSpec

from .graph_spec import Shape
from .network.config import LlamaConfig
from .network.llama import Llama

Model = Any  # mindspore.train.mind_ir_pb2.ModelProto


def trace(config: LlamaConfig, shape: Shape, ops: ModuleType) -> Model:
    """Return MindSpore's trace of the step graph: parameters without data, inputs and outputs without names.

    No weights or inputs are allocated: lazily initialised tensors have only a shape and a dtype.
    """
    network = Llama(config, shape, ops)
    network.set_train(False)
    arguments = [_argument(x) for x in ops.SPEC.declared_inputs(config, shape)]
    traced: list[Model] = []

    def take(model: Model) -> None:
        copy = type(model)()
        copy.CopyFrom(model)
        traced.append(copy)
        del model.graph.parameter[:]  # otherwise `export` allocates and saves them

    with tempfile.TemporaryDirectory() as folder:
        mindspore.export(
            network, *arguments, file_name=str(Path(folder) / "graph"), file_format="MINDIR", custom_func=take
        )
    return traced[0]


def _argument(spec: TensorSpec) -> Tensor:
    dtype = getattr(mindspore, spec.dtype)
    if -1 in spec.shape:
        return Tensor(shape=[None if n == -1 else n for n in spec.shape], dtype=dtype)
    return Tensor(shape=list(spec.shape), dtype=dtype, init="zeros")
