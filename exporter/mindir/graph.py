"""Read a MindIR file as plain Python values: operators in execution order, with inputs, attributes and shapes.

Reads the lowered files that exporter.mindir.lower writes (version 1: options are attributes of the primitive).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from edgellama.errors import UserError

from .lower import DTYPE_NAMES, DTYPES, Model
from .schema import pb


@dataclass(frozen=True)
class Value:
    """A tensor's name, numpy dtype name, and shape at the traced bucket; a dynamic token axis is -1."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Parameter(Value):
    """A weight of the graph, stored as little-endian bytes in a data file.

    `location`: the file, relative to the graph's folder. `offset`, `length`: in bytes.
    """

    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class Operation:
    """One node. Its result has the node's name; several results form a tuple of values name:0, name:1, ..."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    results: tuple[Value, ...]


@dataclass(frozen=True)
class MindIRGraph:
    """A graph. `constants`: numbers, tuples of numbers or arrays, by name. `output`: the value that it returns."""

    inputs: tuple[Value, ...]
    parameters: tuple[Parameter, ...]
    constants: Mapping[str, Any]
    operations: tuple[Operation, ...]
    output: str


def read(path: Path) -> MindIRGraph:
    """Read a lowered MindIR file. Raises UserError if it is not MindIR or contains an unknown element type."""
    return view(parse(path))


def parse(path: Path) -> Model:
    """Parse a file's protobuf. Raises UserError if it is not a MindIR file."""
    model = pb.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is not a MindIR file, or it is truncated ({error}). Export again") from error
    return model


def view(model: Model) -> MindIRGraph:
    """Convert a model in memory to a MindIRGraph."""
    graph = model.graph
    primitives = {p.name: p for p in model.primitives}
    constants, operations = {}, []
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = attribute_value(node.attribute[0])
            continue
        primitive = primitives[node.op_type.removeprefix("REF::")]
        operations.append(
            Operation(
                name=node.output[0],
                operator=primitive.op_type,
                inputs=tuple(node.input),
                attributes={a.name: attribute_value(a) for a in primitive.attribute},
                results=tuple(v for a in node.attribute if a.name == "shape" for v in _results(a, node.output[0])),
            )
        )
    return MindIRGraph(
        inputs=tuple(Value(v.name, _dtype(v.tensor[0], v.name), tuple(v.tensor[0].dims)) for v in graph.input),
        parameters=tuple(_parameter(p) for p in graph.parameter),
        constants=constants,
        operations=tuple(operations),
        output=graph.output[0].name,
    )


def attribute_value(attribute: Any) -> Any:
    """Convert an attribute to a Python value. A tuple or list becomes a tuple, a list of bytes becomes `bytes`."""
    kinds = pb.AttributeProto
    if attribute.type in (kinds.TUPLE, kinds.LIST):
        if attribute.values and all(v.type == kinds.UINT8 for v in attribute.values):
            return bytes(attribute_value(v) for v in attribute.values)
        return tuple(attribute_value(v) for v in attribute.values)
    if attribute.type == kinds.TENSORS:
        return _array(attribute.tensors[0], attribute.name)
    if attribute.type == kinds.BOOL:
        return bool(attribute.i)
    # An element of a tuple is an attribute that stores its value in the repeated field of its type.
    if attribute.type == kinds.STRING:
        return (attribute.strings[0] if attribute.strings else attribute.s).decode()
    if attribute.type == kinds.FLOAT:
        return attribute.floats[0] if attribute.floats else attribute.f
    if attribute.type == kinds.DOUBLE:
        return attribute.d
    return attribute.ints[0] if attribute.ints else attribute.i


def _results(attribute: Any, name: str) -> list[Value]:
    if attribute.type == pb.AttributeProto.TENSORS:
        return [Value(name, _dtype(t, name), tuple(t.dims)) for t in attribute.tensors]
    return [value for i, part in enumerate(attribute.values) for value in _results(part, f"{name}:{i}")]


def _parameter(tensor: Any) -> Parameter:
    data = tensor.external_data
    shape = tuple(tensor.dims)
    return Parameter(tensor.name, _dtype(tensor, tensor.name), shape, data.location, data.offset, data.length)


def _array(tensor: Any, name: str) -> np.ndarray:
    return np.frombuffer(tensor.raw_data, np.dtype(_dtype(tensor, name))).reshape(tuple(tensor.dims))


def _dtype(tensor: Any, name: str) -> str:
    if tensor.data_type not in DTYPE_NAMES:
        raise UserError(f"{name} has MindIR type {tensor.data_type}; known types: {', '.join(DTYPES)}")
    return DTYPE_NAMES[tensor.data_type]
