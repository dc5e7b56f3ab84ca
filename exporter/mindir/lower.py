"""Lower MindSpore's MindIR protobuf to the version that MindSpore Lite reads.

MindSpore 2.10 writes version 3: an operator's options are trailing constant inputs. MindSpore Lite 2.0 reads version 1:
the options are attributes of the primitive. `lower` makes one pass and applies the table OPERATORS. An operator that is
not in the table raises an error that names the node and its place in the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgellama.artifact.manifest import TensorSpec
from edgellama.errors import UserError

from .schema import pb

Model = Any  # pb.ModelProto; protobuf's generated classes carry no types
Node = Any
Attribute = Any

VERSION = 1  # the newest that MindSpore Lite 2.0 reads
# TensorProto.DataType
DTYPES = {"float32": 1, "uint8": 2, "int8": 3, "int16": 5, "int32": 6, "int64": 7, "float16": 10}
DTYPE_NAMES = {number: name for name, number in DTYPES.items()}


@dataclass(frozen=True)
class Lowering:
    """How `lower` rewrites the node of one operator.

    Attributes:
        inputs: the number of leading inputs that stay inputs (None: all).
        options: the attributes that replace the remaining inputs, which must be constants. One entry per input: every
            name that a MindSpore Lite release reads for it.
        op_type: the operator's name in the lowered graph (None: unchanged).
        custom: the operator is one of this project's kernels. MindSpore Lite calls its node Custom.
    """

    inputs: int | None = None
    options: tuple[tuple[str, ...], ...] = ()
    op_type: str | None = None
    custom: bool = False


TRANSPOSES = (("transpose_a", "transpose_x1", "adj_x1"), ("transpose_b", "transpose_x2", "adj_x2"))
UNCHANGED = Lowering()
CUSTOM = Lowering(op_type="Custom", custom=True)
OPERATORS: dict[str, Lowering] = {
    "Add": UNCHANGED,
    "BatchMatMul": Lowering(2, TRANSPOSES),
    "Cast": UNCHANGED,
    "Concat": Lowering(1, (("axis",),)),
    "Div": UNCHANGED,
    "EdgeDecoderLayer": CUSTOM,
    "EdgeEmbedding": CUSTOM,
    "EdgeHead": CUSTOM,
    "FusedAttention": CUSTOM,
    "Gather": Lowering(3, (("batch_dims",),)),
    "JoinAttention": CUSTOM,
    "LmHead": CUSTOM,
    "MakeTuple": UNCHANGED,
    "MatMul": Lowering(2, TRANSPOSES),
    "Mul": UNCHANGED,
    "QuantLinear": CUSTOM,
    "ReduceMean": Lowering(2, (("keep_dims",),)),
    "Reshape": UNCHANGED,
    "RmsNorm": UNCHANGED,
    "Sigmoid": UNCHANGED,
    "Slice": UNCHANGED,
    "Softmax": Lowering(1, (("axis",),)),
    "Split": Lowering(1, (("axis",), ("output_num",))),
    "SplitAttention": CUSTOM,
    "Sqrt": UNCHANGED,
    "Square": UNCHANGED,
    "Sub": UNCHANGED,
    "Transpose": UNCHANGED,
    "TupleGetItem": UNCHANGED,
}
MEMORY_ORDER = {"Load", "UpdateState", "Depend"}  # order parameter reads and writes; these graphs write no parameter


def operators(model: Model) -> list[tuple[Node, Any]]:
    """Return every node with its primitive (None for a constant), in execution order."""
    primitives = {p.name: p for p in model.primitives}
    return [(node, primitives.get(node.op_type.removeprefix("REF::"))) for node in model.graph.node]


def lower(model: Model, inputs: Sequence[TensorSpec]) -> Model:
    """Return a new model of version 1 with the same graph. Its values have the network's names.

    inputs: the graph's inputs in order. The result is deterministic: it contains no names, time stamps or counters of
    the tracing process. Raises UserError for an operator that is not in OPERATORS.
    """
    low = pb.ModelProto(
        ir_version="1", producer_name="MindSpore", model_version="1.0", little_endian=True, mind_ir_version=VERSION
    )
    low.graph.name = "llama"
    names = _Names()
    for value, spec in zip(model.graph.input, inputs, strict=True):
        names.set(value.name, spec.name)
        _add_input(low, spec)
    for value in model.graph.parameter:
        name = value.name.rpartition(":")[2]
        names.set(value.name, name)
        tensor = low.graph.parameter.add()
        tensor.CopyFrom(value)
        tensor.name = tensor.ref_key = name
    constants = {node.output[0]: node for node in model.graph.node if node.op_type == "Constant"}
    primitives: dict[bytes, str] = {}
    live = _live(model)
    for node, primitive in operators(model):
        if primitive is None or node.output[0] not in live:
            continue
        if primitive.op_type in MEMORY_ORDER or (primitive.op_type == "MakeTuple" and len(node.input) == 1):
            names.alias(node.output[0], node.input[0])
            continue
        _lower_node(low, node, primitive, names, constants, primitives)
    _add_output(low, model.graph.output[0], names)
    if all(primitive.op_type == "Custom" for primitive in low.primitives):
        _mark_optimized(low)
    return low


def _mark_optimized(low: Model) -> None:
    """Mark the graph as already optimized, so that MindSpore Lite skips its converter's passes.

    On a graph of custom kernels the passes change nothing and take seven eighths of the build time. Without them,
    MindSpore Lite requires these attributes, and the input names in the tensors.
    """
    kind = pb.AttributeProto
    low.graph.attribute.add(name="isOptimized", type=kind.BOOL, i=1)
    low.graph.attribute.add(name="fmk", type=kind.INT32, i=3)  # source framework: MindSpore
    low.graph.attribute.add(name="graph_name", type=kind.STRING, s=low.graph.name.encode())


def parameters(model: Model) -> list[TensorSpec]:
    """Return the weights of a model, in the graph's order."""
    return [TensorSpec(p.name, DTYPE_NAMES[p.data_type], tuple(p.dims)) for p in model.graph.parameter]


def parameters_to_inputs(model: Model) -> list[TensorSpec]:
    """Turn every parameter of a lowered model into an input, after the existing inputs. Returns the new inputs."""
    moved = parameters(model)
    del model.graph.parameter[:]
    for spec in moved:
        _add_input(model, spec)
    return moved


def _live(model: Model) -> set[str]:
    """Return the values that the output depends on. Inputs that only order memory (Depend's second) do not count."""
    live = {model.graph.output[0].name}
    for node, primitive in reversed(operators(model)):
        if node.output[0] in live:
            order_only = primitive is not None and primitive.op_type in MEMORY_ORDER
            live.update(node.input[:1] if order_only else node.input)
    return live


def _lower_node(
    low: Model, node: Node, primitive: Any, names: _Names, constants: dict[str, Node], primitives: dict[bytes, str]
) -> None:
    where = _scope(node)
    rule = OPERATORS.get(primitive.op_type)
    if rule is None:
        raise UserError(
            f"node {where}/{primitive.op_type}, created in {node.domain}: operator {primitive.op_type} "
            f"cannot be lowered to MindIR version {VERSION}; "
            f"compose it from: {', '.join(sorted(OPERATORS))}"
        )
    kept = len(node.input) if rule.inputs is None else rule.inputs
    attributes = _attributes(primitive, rule)
    for value, aliases in zip(node.input[kept:], rule.options, strict=True):
        if value not in constants:
            raise UserError(f"option {aliases[0]} of {primitive.op_type} ({where}) is not a constant")
        for alias in aliases:
            attributes.append(_renamed(constants[value].attribute[0], alias))
    operands = [
        names.get(value) if names.has(value) else _add_constant(low, constants[value], names)
        for value in node.input[:kept]
    ]
    out = low.graph.node.add()
    out.input.extend(operands)
    out.name = names.new(node.output[0], _own_name(primitive) or f"{where}/{primitive.op_type}")
    out.output.append(out.name)
    # MindSpore Lite names tensors after the domain and appends digits, so the domain ends in a slash: "layers.1" and
    # "layers.11" would give equal tensor names, and MindSpore Lite would find the inputs of neither node.
    out.domain = f"{out.name}/"
    out.attribute.extend(a for a in node.attribute if a.name == "shape")
    out.op_type = "REF::" + _intern(low, rule.op_type or primitive.op_type, attributes, primitives)


def _attributes(primitive: Any, rule: Lowering) -> list[Attribute]:
    if rule.custom:
        return _custom_attributes(primitive)
    return [a for a in primitive.attribute if a.name not in ("input_names", "output_names")]


def _custom_attributes(primitive: Any) -> list[Attribute]:
    """Return the attributes that MindSpore Lite 2.0 requires of a custom kernel.

    The kernel's own attributes are texts, stored as lists of bytes under `attr`. An operator with the attribute
    reg_op_name is an Ascend operator; the graph engine reads its attributes unchanged.
    """
    kind = pb.AttributeProto
    if any(attribute.name == "reg_op_name" for attribute in primitive.attribute):
        return sorted((a for a in primitive.attribute if a.name != "name"), key=lambda a: a.name)
    fixed = {"type": primitive.op_type, "func_name": primitive.op_type, "reg_op_name": primitive.op_type}
    # MindSpore Lite's loader recognises only nodes with these two values, on every device.
    fixed |= {"uniq_name": "CustomAscend", "func_type": "aot"}
    own = kind(name="attr", type=kind.LIST)
    for attribute in sorted(primitive.attribute, key=lambda a: a.name):
        if attribute.type == kind.STRING and attribute.name not in ("input_names", "output_names"):
            own.values.add(type=kind.STRING, strings=[attribute.name.encode()])
            text = own.values.add(type=kind.LIST)
            for byte in attribute.s:
                text.values.add(type=kind.UINT8, ints=[byte])
    return [*(kind(name=name, type=kind.STRING, s=text.encode()) for name, text in fixed.items()), own]


def _own_name(primitive: Any) -> str | None:
    return next((a.s.decode() for a in primitive.attribute if a.name == "name"), None)


def _renamed(attribute: Attribute, name: str) -> Attribute:
    copy = pb.AttributeProto()
    copy.CopyFrom(attribute)
    copy.name = name
    return copy


def _intern(low: Model, op_type: str, attributes: list[Attribute], primitives: dict[bytes, str]) -> str:
    """Return the name of the primitive with these attributes. Adds the primitive on first use."""
    primitive = pb.PrimitiveProto(op_type=op_type, prim_type=pb.PrimitiveProto.PRIMITIVE)
    primitive.attribute.extend(attributes)
    key = primitive.SerializeToString(deterministic=True)
    if key not in primitives:
        primitives[key] = primitive.name = f"{op_type}:{len(primitives)}"
        low.primitives.append(primitive)
    return primitives[key]


def _add_input(low: Model, spec: TensorSpec) -> None:
    value = low.graph.input.add(name=spec.name)
    value.tensor.add(dims=spec.shape, data_type=DTYPES[spec.dtype], name=spec.name)


def _add_output(low: Model, traced: Any, names: _Names) -> None:
    """Add the graph's result: a tuple, or a single tensor if the network returns a tuple of one."""
    output = low.graph.output.add()
    output.CopyFrom(traced)
    output.name = names.get(traced.name)
    if len(traced.attr_info.values) == 1:
        output.ClearField("attr_info")
        output.ClearField("denotation")
        output.tensor.extend(traced.attr_info.values[0].tensors)


def _add_constant(low: Model, node: Node, names: _Names) -> str:
    name = names.new(node.output[0], "constant")
    constant = low.graph.node.add(name=name, op_type="Constant", output=[name])
    constant.attribute.extend(node.attribute)
    return name


def _scope(node: Node) -> str:
    """Default/layers-CellList/0-DecoderLayer/attention-Attention/Split-op0 -> layers/0/attention."""
    return "/".join(part.partition("-")[0] for part in node.domain.split("/")[1:-1])


class _Names:
    """Maps names of the traced graph to names of the lowered graph."""

    def __init__(self) -> None:
        self.by_old: dict[str, str] = {}
        self.taken: dict[str, int] = {}

    def has(self, old: str) -> bool:
        return old in self.by_old

    def get(self, old: str) -> str:
        return self.by_old[old]

    def set(self, old: str, name: str) -> None:
        self.by_old[old] = name

    def alias(self, old: str, other: str) -> None:
        if other in self.by_old:
            self.by_old[old] = self.by_old[other]

    def new(self, old: str, wanted: str) -> str:
        """Name `old`: `wanted` if it is free, else `wanted` with a counter. Returns the new name."""
        count = self.taken[wanted] = self.taken.get(wanted, -1) + 1
        self.by_old[old] = f"{wanted}.{count}" if count else wanted
        return self.by_old[old]
