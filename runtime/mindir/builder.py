"""Builds the MindIR file of a step graph as the exporter writes it: names, order of nodes, primitives, bytes.

A network (portable.py, cpu.py, ascend.py) calls `Builder` in the order of its computation. The nodes of the file are in
the order of a walk from the output that visits the inputs of a node from left to right: so MindSpore traces a graph.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..artifact.manifest import TensorSpec
from . import encoding as proto

ALIGNMENT = 64  # bytes; each weight in a data file begins at a multiple
HEADER = b"\x01" + bytes(ALIGNMENT - 1)  # before the first weight; the first byte says little-endian
INPUTS_OF_TRANSPOSE = (("transpose_a", "transpose_x1", "adj_x1"), ("transpose_b", "transpose_x2", "adj_x2"))


@dataclass(eq=False)
class Operand:
    """A value of the graph.

    Attributes:
        results: dtype and shape; several for a node that returns a tuple. -1 is an axis that changes with the bucket.
        name: of an input or a weight; empty for the result of a node until it has its place.
        operator: MindIR's name; "" for an input or a weight, "Constant" for a constant.
        scope: the place in the network, from which the node gets its name.
        inputs: of the node.
        attributes: encoded; of the operator, or the value of a constant.
        own_name: the node's name, where the operator has one.
        ready: whether all inputs are in the file already.
    """

    results: tuple[tuple[str, tuple[int, ...]], ...]
    name: str = ""
    operator: str = ""
    scope: str = ""
    inputs: tuple[Operand, ...] = ()
    attributes: tuple[bytes, ...] = ()
    own_name: str = ""
    ready: bool = False

    @property
    def dtype(self) -> str:
        return self.results[0][0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.results[0][1]


@dataclass
class Builder:
    """One graph file.

    Attributes:
        inputs: of the graph, in order.
        weights: in the order in which the network first uses them.
    """

    inputs: list[TensorSpec] = field(default_factory=list)
    weights: list[TensorSpec] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._nodes: list[bytes] = []
        self._results: list[tuple[str, tuple[int, ...]]] = []
        self._primitives: dict[tuple[str, tuple[bytes, ...]], str] = {}
        self._taken: dict[str, int] = {}
        self._constants: dict[bytes, Operand] = {}
        self._weights: dict[str, Operand] = {}

    def input(self, spec: TensorSpec) -> Operand:
        """Add an input of the graph."""
        self.inputs.append(spec)
        return Operand(((spec.dtype, spec.shape),), spec.name)

    def weight(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> Operand:
        """Return a weight; the first call with a name adds it."""
        if name not in self._weights:
            self.weights.append(TensorSpec(name, dtype, shape))
            self._weights[name] = Operand(((dtype, shape),), name)
        return self._weights[name]

    def constant(self, encoded: bytes) -> Operand:
        """Return the constant with this AttributeProto, whose name is "value". Equal constants are one node."""
        return self._constants.setdefault(encoded, Operand((("", ()),), operator="Constant", attributes=(encoded,)))

    def number(self, number: int) -> Operand:
        """Return a whole number as a constant."""
        return self.constant(proto.integer("value", number))

    def numbers(self, *numbers: int) -> Operand:
        """Return a tuple of whole numbers as a constant."""
        return self.constant(proto.integers("value", numbers))

    def array(self, number: float, rank: int) -> Operand:
        """Return a float32 tensor with one element as a constant."""
        raw = struct.pack("<f", number)
        return self.constant(proto.array("value", proto.tensor((1,) * rank, "float32", name="value0", raw=raw)))

    def node(
        self,
        scope: str,
        operator: str,
        inputs: Sequence[Operand],
        shape: Sequence[int],
        dtype: str | None = None,
        attributes: Sequence[bytes] = (),
        own_name: str = "",
    ) -> Operand:
        """Return the result of an operator. dtype: None takes that of the first input."""
        result = (dtype or inputs[0].dtype, tuple(shape))
        return Operand((result,), "", operator, scope, tuple(inputs), tuple(attributes), own_name)

    def matmul(self, scope: str, x: Operand, y: Operand, shape: Sequence[int], operator: str = "MatMul") -> Operand:
        """Return x @ y^T."""
        return self.node(scope, operator, (x, y), shape, attributes=transposes(False, True))

    def reshape(self, scope: str, x: Operand, new: Sequence[int], shape: Sequence[int]) -> Operand:
        """Return x with the shape `new`, which is `shape` at the traced bucket."""
        return self.node(scope, "Reshape", (x, self.numbers(*new)), shape)

    def transpose(self, scope: str, x: Operand, axes: Sequence[int]) -> Operand:
        return self.node(scope, "Transpose", (x, self.numbers(*axes)), [x.shape[axis] for axis in axes])

    def gather(self, scope: str, table: Operand, rows: Operand) -> Operand:
        """Return rows of a table."""
        shape = (*rows.shape, *table.shape[1:])
        return self.node(scope, "Gather", (table, rows, self.number(0)), shape, None, [proto.integer("batch_dims", 0)])

    def elementwise(self, scope: str, operator: str, x: Operand, y: Operand | None = None) -> Operand:
        """Return an operator's result, which has the shape of x. y: broadcast to x."""
        return self.node(scope, operator, (x,) if y is None else (x, y), x.shape)

    def join(self, scope: str, values: Sequence[Operand]) -> Operand:
        """Return a tuple of values."""
        made = self.node(scope, "MakeTuple", values, ())
        made.results = tuple(value.results[0] for value in values)
        return made

    def item(self, scope: str, values: Operand, index: int) -> Operand:
        """Return one value of a tuple."""
        dtype, shape = values.results[index]
        return self.node(scope, "TupleGetItem", (values, self.number(index)), shape, dtype)

    def concat(self, scope: str, values: Sequence[Operand], axis: int = -1) -> Operand:
        """Join values along their last axis, which the attribute calls `axis`."""
        shape = (*values[0].shape[:-1], sum(value.shape[-1] for value in values))
        return self.node(
            scope, "Concat", [self.join(scope, values)], shape, values[0].dtype, [proto.integer("axis", axis)]
        )

    def encode(self, output: Operand, location: str | None, *, optimized: bool) -> bytes:
        """Return the file.

        Args:
            output: what the graph returns.
            location: the name of the file with the weights; None if the weights are inputs.
            optimized: the graph needs none of the passes of MindSpore Lite's converter.
        """
        self._place(output)
        parts = [*(proto.block(1, node) for node in self._nodes), proto.block(2, "llama")]
        inputs, place = list(self.inputs), len(HEADER)
        if location is None:
            inputs += self.weights
        else:
            for spec in self.weights:
                external = (location, place, spec.nbytes)
                parts.append(proto.block(3, proto.tensor(spec.shape, spec.dtype, name=spec.name, external=external)))
                place += -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
        for spec in inputs:
            declared = proto.tensor(spec.shape, spec.dtype, name=spec.name)
            parts.append(proto.block(5, proto.block(1, spec.name) + proto.block(2, declared)))
        parts.append(proto.block(6, proto.block(1, output.name) + _result(output)))
        if optimized:
            marks = (
                proto.integer("isOptimized", 1, proto.BOOL),
                proto.integer("fmk", 3, proto.INT32),
                proto.text("graph_name", "llama"),
            )
            parts += [proto.block(8, mark) for mark in marks]
        primitives = [
            proto.block(12, b"".join([
                proto.block(1, name), proto.block(2, operator), *(proto.block(3, a) for a in attributes),
                proto.whole(5, 1),
            ]))
            for (operator, attributes), name in self._primitives.items()
        ]  # fmt: skip
        head = proto.block(1, "1") + proto.block(2, "MindSpore") + proto.block(5, "1.0")
        return b"".join([head, proto.block(7, b"".join(parts)), proto.whole(10, 1), *primitives, proto.whole(13, 1)])

    def largest(self, bucket: int) -> tuple[str, int]:
        """Return the name of the largest tensor of the encoded graph, and its elements at this bucket."""
        named = [(spec.name, spec.shape) for spec in (*self.inputs, *self.weights)] + self._results
        sizes = ((name, math.prod(bucket if size == -1 else size for size in shape)) for name, shape in named)
        return max(sizes, key=lambda found: found[1])

    def _place(self, output: Operand) -> None:
        """Write the nodes that `output` depends on, each after its inputs."""
        stack = [output]
        while stack:
            value = stack[-1]
            if value.name or value.operator == "Constant":
                stack.pop()
            elif value.ready:
                self._write(value)
                stack.pop()
            else:
                value.ready = True
                stack += reversed(value.inputs)

    def _write(self, value: Operand) -> None:
        operands = []
        for operand in value.inputs:
            if not operand.name:
                operand.name = self._new_name("constant")
                self._nodes.append(_node(operand.name, "Constant", operand.attributes[0]))
            operands.append(proto.block(1, operand.name))
        value.name = self._new_name(value.own_name or f"{value.scope}/{value.operator}")
        self._results += [(value.name, shape) for _, shape in value.results]
        key = (value.operator, value.attributes)
        primitive = self._primitives.setdefault(key, f"{value.operator}:{len(self._primitives)}")
        if len(value.results) > 1 or value.operator == "MakeTuple":
            shape = proto.block(1, "shape") + proto.tuple_of([proto.tensor(s, d) for d, s in value.results])
        else:
            shape = proto.array("shape", proto.tensor(value.shape, value.dtype))
        node = _node(value.name, f"REF::{primitive}", shape) + proto.block(7, f"{value.name}/")
        self._nodes.append(b"".join(operands) + node)

    def _new_name(self, wanted: str) -> str:
        count = self._taken[wanted] = self._taken.get(wanted, -1) + 1
        return f"{wanted}.{count}" if count else wanted


def _node(name: str, operator: str, attribute: bytes) -> bytes:
    """Encode the output, name, operator and attribute of a NodeProto."""
    return proto.block(2, name) + proto.block(3, name) + proto.block(4, operator) + proto.block(5, attribute)


def data_bytes(weights: Sequence[TensorSpec]) -> int:
    """Return the size of the data file with these weights."""
    return len(HEADER) + sum(-(-spec.nbytes // ALIGNMENT) * ALIGNMENT for spec in weights)


def transposes(first: bool, second: bool) -> list[bytes]:
    """Return the attributes of a matrix product, under every name that a release of MindSpore Lite reads."""
    return [
        proto.integer(name, int(value), proto.BOOL)
        for names, value in zip(INPUTS_OF_TRANSPOSE, (first, second), strict=True)
        for name in names
    ]


def _result(output: Operand) -> bytes:
    """Encode what a ValueInfoProto says about the graph's result: a tensor, or a tuple of tensors."""
    tensors = [proto.tensor(shape, dtype) for dtype, shape in output.results]
    if output.operator != "MakeTuple":
        return proto.block(2, tensors[0])
    return proto.block(4, "Tuple") + proto.block(5, proto.tuple_of(tensors))
