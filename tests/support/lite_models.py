"""`python -m support.lite_models FOLDER` writes the small graphs of test_mindspore_lite.py; it needs MindSpore.

It lowers the graphs itself: the tests of the binding do not depend on the exporter.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.train import mind_ir_pb2 as pb

FEATURES, WIDTH = 4, 3
WEIGHT = np.random.default_rng(7).standard_normal((FEATURES, WIDTH), dtype=np.float32)
# Operator -> names of its last constant inputs, which are attributes in version 1.
OPTIONS = {"MatMul": ("transpose_a", "transpose_b")}


class Affine(nn.Cell):
    """x [N, FEATURES], y [N, WIDTH] -> x @ WEIGHT + y."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Tensor(WEIGHT)
        self.matmul, self.add = ops.MatMul(), ops.Add()

    def construct(self, x: Tensor, y: Tensor) -> Tensor:
        return self.add(self.matmul(x, self.weight), y)


class Doubles(nn.Cell):
    """x float32 [4], n int32 [4] -> (x + x, n + n)."""

    def __init__(self) -> None:
        super().__init__()
        self.add = ops.Add()

    def construct(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        return self.add(x, x), self.add(n, n)


def lower(path: Path) -> None:
    """Converts the file from MindIR version 3 to version 1."""
    model = pb.ModelProto()
    model.ParseFromString(path.read_bytes())
    constants = {node.output[0]: node for node in model.graph.node if node.op_type == "Constant"}
    primitives = {f"REF::{p.name}": p for p in model.primitives}
    for primitive in model.primitives:
        primitive.prim_type = pb.PrimitiveProto.PRIMITIVE
    for node in model.graph.node:
        primitive = primitives.get(node.op_type)
        for name in reversed(OPTIONS.get(primitive.op_type, ()) if primitive else ()):
            attribute = primitive.attribute.add()
            attribute.CopyFrom(constants[node.input.pop()].attribute[0])
            attribute.name = name
    used = {name for node in model.graph.node for name in node.input}
    nodes = [node for node in model.graph.node if node.op_type != "Constant" or node.output[0] in used]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.mind_ir_version = 1
    path.write_bytes(model.SerializeToString())


def write(path: Path, network: nn.Cell, inputs: Sequence[tuple[list[int], mindspore.Type]]) -> None:
    """Exports a network with inputs of the given shapes and types, and lowers it."""
    tensors = [Tensor(shape=shape, dtype=dtype, init="zeros") for shape, dtype in inputs]
    mindspore.export(network, *tensors, file_name=str(path), file_format="MINDIR")
    lower(path)


def main(folder: Path) -> None:
    """Writes affine.mindir, weight.npy and doubles.mindir."""
    float32, int32 = mindspore.float32, mindspore.int32
    write(folder / "affine.mindir", Affine(), [([8, FEATURES], float32), ([8, WIDTH], float32)])
    np.save(folder / "weight.npy", WEIGHT)
    write(folder / "doubles.mindir", Doubles(), [([4], float32), ([4], int32)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
