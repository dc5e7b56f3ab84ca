"""Translate each MindIR operator to ONNX: one function per operator, in the table TRANSLATIONS.

Custom operators, and Ascend operators that ONNX lacks, become nodes of the domain DOMAIN. kernels/reference.py
evaluates them (exporter.onnx_twin.evaluators). ONNX has no in-place writes: a custom node returns the tensors that it
mutates as further outputs, and later readers in the MindIR read those outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgellama.errors import UserError

from ..mindir.graph import MindIRGraph, Operation, Value

DOMAIN = "edgellama"
FLOATS = {42: onnx.TensorProto.FLOAT16, 43: onnx.TensorProto.FLOAT}  # MindSpore's TypeId -> ONNX's
END = np.iinfo(np.int64).max  # "to the end" for ONNX's Slice


@dataclass(frozen=True)
class CustomOperator:
    """The interface of a custom operator, which kernels/reference.py defines.

    Attributes:
        inputs: the names of the inputs, including optional ones at the end.
        attributes: the attributes that change the result, with their types.
        mutates: the inputs that it writes in place.
        defaults: values of attributes that a node may omit.
        results: the number of its results besides `mutates`.
    """

    inputs: tuple[str, ...]
    attributes: Mapping[str, type]
    mutates: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    results: int = 1


CACHES = ("k_cache", "v_cache", "k_scale", "v_scale")  # the scales belong to int8 caches only
ATTENTION = CustomOperator(
    ("qkv", "cos", "sin", "start", "length", *CACHES),
    {"heads": int, "scale": float, "window": int},
    CACHES,
    {"window": 0},
)


CUSTOM: dict[str, CustomOperator] = {
    "EdgeDecoderLayer": CustomOperator(
        ("h", "start", "length", "cos", "sin", "weights", *CACHES),
        {"format": str, "heads": int, "scale": float, "window": int, "inner": int, "eps": float}
        | {f"{part}_bias": int for part in ("q", "o", "gate", "down")}
        | {"softcap": float, "activation": str, "norms": str, "qk_norm": str, "norm_eps": float}
        | {"query_beta": float, "query_period": int},
        CACHES,
        {"softcap": 0.0, "activation": "silu", "norms": "pre", "qk_norm": "none", "norm_eps": 0.0}
        | {"query_beta": 0.0, "query_period": 0},
    ),
    "EdgeEmbedding": CustomOperator(("ids", "weight", "length"), {"format": str, "vocabulary": int, "width": int}),
    "EdgeHead": CustomOperator(
        ("h", "weight", "length", "gamma"),
        {"format": str, "vocabulary": int, "eps": float, "softcap": float},
        defaults={"softcap": 0.0},
    ),
    "FusedAttention": ATTENTION,
    "JoinAttention": CustomOperator(("out", "partial"), {}),
    "LmHead": CustomOperator(("x", "weight"), {}),
    "QuantLinear": CustomOperator(("x", "weight"), {"bits": int, "group": int, "wide": int}),
    "SplitAttention": CustomOperator(
        ATTENTION.inputs[:7], {**ATTENTION.attributes, "parts": int}, ATTENTION.mutates, results=2
    ),
}


@dataclass
class Translation:
    """The ONNX nodes created so far.

    Attributes:
        values: MindIR value -> its ONNX name, or a tuple of names.
        shapes: MindIR value -> its type and shape.
        mutated: in-place writes of custom operators: ONNX name of the new value -> name of the graph input.
    """

    graph: MindIRGraph
    values: dict[str, str | tuple[str, ...]]
    shapes: dict[str, Value]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    mutated: dict[str, str] = field(default_factory=dict)

    def operand(self, name: str) -> str:
        """Return the ONNX name of one tensor. A constant becomes an initializer when it is first used as a tensor."""
        value = self.values.get(name, name)
        if isinstance(value, tuple):
            raise UserError(f"{name} is a tuple, but its reader takes one tensor; this graph has no ONNX twin")
        if name in self.graph.constants and name not in self.initializers:
            self.add_constant(name, np.asarray(self.graph.constants[name]))
        return value

    def add_constant(self, name: str, array: np.ndarray) -> str:
        """Add an initializer. Returns its name."""
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def emit(self, op: Operation, operator: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> None:
        """Append the ONNX node of `op`, with its name, and record its results in `values`."""
        names = [op.name] if outputs == 1 else [f"{op.name}:{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=op.name, **attributes))
        self.values[op.name] = names[0] if outputs == 1 else tuple(names)

    def option(self, op: Operation, index: int) -> Any:
        """Return the value of an input that must be a constant."""
        name = op.inputs[index]
        if name not in self.graph.constants:
            raise UserError(f"{op.operator} ({op.name}): input {index} is not a constant; it has no ONNX twin")
        return self.graph.constants[name]


Translator = Callable[[Translation, Operation], None]


def _same(operator: str) -> Translator:
    """Return a translator to an ONNX operator with the same operands and no options."""

    def translate(t: Translation, op: Operation) -> None:
        t.emit(op, operator, [t.operand(name) for name in op.inputs])

    return translate


def _square(t: Translation, op: Operation) -> None:
    x = t.operand(op.inputs[0])
    t.emit(op, "Mul", [x, x])


def _gather(t: Translation, op: Operation) -> None:
    if op.attributes.get("batch_dims"):
        raise UserError(f"Gather ({op.name}): batch_dims = {op.attributes['batch_dims']} has no ONNX twin; needed: 0")
    t.emit(op, "Gather", [t.operand(name) for name in op.inputs[:2]], axis=int(t.option(op, 2)))


def _reshape(t: Translation, op: Operation) -> None:
    t.option(op, 1)
    t.emit(op, "Reshape", [t.operand(name) for name in op.inputs])


def _transpose(t: Translation, op: Operation) -> None:
    t.emit(op, "Transpose", [t.operand(op.inputs[0])], perm=list(t.option(op, 1)))


def _reduce_mean(t: Translation, op: Operation) -> None:
    inputs = [t.operand(name) for name in op.inputs]
    t.emit(op, "ReduceMean", inputs, keepdims=int(op.attributes["keep_dims"]))


def _softmax(t: Translation, op: Operation) -> None:
    axes = op.attributes["axis"]
    axis = axes if isinstance(axes, int) else axes[0] if len(axes) == 1 else None
    if axis is None:
        raise UserError(f"Softmax ({op.name}): over axes {axes}; ONNX's Softmax takes one axis")
    t.emit(op, "Softmax", [t.operand(op.inputs[0])], axis=axis)


def _concat(t: Translation, op: Operation) -> None:
    parts = t.values.get(op.inputs[0], op.inputs[0])
    names = list(parts) if isinstance(parts, tuple) else [t.operand(name) for name in op.inputs]
    t.emit(op, "Concat", names, axis=int(op.attributes["axis"]))


def _split(t: Translation, op: Operation) -> None:
    count = int(op.attributes["output_num"])
    t.emit(op, "Split", [t.operand(op.inputs[0])], count, axis=int(op.attributes["axis"]), num_outputs=count)


def _slice(t: Translation, op: Operation) -> None:
    """Translate begin and size (-1: to the end) to ONNX's starts and ends."""
    begin, size = (np.asarray(t.option(op, i), np.int64) for i in (1, 2))
    ends = np.where(size < 0, END, begin + size)
    inputs = [t.add_constant(f"{op.name}:{which}", a) for which, a in (("starts", begin), ("ends", ends))]
    t.emit(op, "Slice", [t.operand(op.inputs[0]), *inputs])


def _matmul(t: Translation, op: Operation) -> None:
    """Translate a product of matrices to Gemm, which has the transpositions as attributes."""
    transposed = {f"trans{which.upper()}": int(op.attributes[f"transpose_{which}"]) for which in "ab"}
    t.emit(op, "Gemm", [t.operand(name) for name in op.inputs], **transposed)


def _batch_matmul(t: Translation, op: Operation) -> None:
    """Translate a product of stacks of matrices. ONNX's MatMul does not transpose, so Transpose nodes do it."""
    operands = []
    for name, which in zip(op.inputs, "ab", strict=True):
        operand = t.operand(name)
        if op.attributes[f"transpose_{which}"]:
            rank = len(t.shapes[name].shape)
            perm = [*range(rank - 2), rank - 1, rank - 2]
            turned = f"{op.name}:{which}"
            t.nodes.append(helper.make_node("Transpose", [operand], [turned], name=turned, perm=perm))
            operand = turned
        operands.append(operand)
    t.emit(op, "MatMul", operands)


def _cast(t: Translation, op: Operation) -> None:
    number = int(t.option(op, 1))
    if number not in FLOATS:
        raise UserError(
            f"Cast ({op.name}): to MindSpore's type {number}; the twin supports {', '.join(map(str, FLOATS))}"
        )
    t.emit(op, "Cast", [t.operand(op.inputs[0])], to=FLOATS[number])


def _rms_norm(t: Translation, op: Operation) -> None:
    """Results: the normalized x, and 1 / sqrt(mean(x^2) + epsilon). ONNX's own, since opset 23, lacks the second."""
    epsilon = float(t.option(op, 2))
    t.emit(op, "RmsNorm", [t.operand(name) for name in op.inputs[:2]], 2, domain=DOMAIN, epsilon=epsilon)


def _weight_quant_batch_matmul(t: Translation, op: Operation) -> None:
    found = {name: int(op.attributes[name]) for name in ("transpose_x", "transpose_weight", "antiquant_group_size")}
    if found != {"transpose_x": 0, "transpose_weight": 1, "antiquant_group_size": 0}:
        raise UserError(f"WeightQuantBatchMatmul ({op.name}): the twin supports x [M, K], weight [N, K]; found {found}")
    t.emit(op, "WeightQuantBatchMatmul", [t.operand(name) for name in op.inputs], domain=DOMAIN)


def _make_tuple(t: Translation, op: Operation) -> None:
    t.values[op.name] = tuple(t.operand(name) for name in op.inputs)


def _tuple_get_item(t: Translation, op: Operation) -> None:
    parts, index = t.values[op.inputs[0]], int(t.option(op, 1))
    if not isinstance(parts, tuple):
        raise UserError(f"TupleGetItem ({op.name}): {op.inputs[0]} is not a tuple; this graph has no ONNX twin")
    t.values[op.name] = parts[index]
    t.shapes[op.name] = op.results[0]


def _depend(t: Translation, op: Operation) -> None:
    t.values[op.name] = t.values.get(op.inputs[0], op.inputs[0])


def _custom(t: Translation, op: Operation) -> None:
    given = custom_attributes(op)
    kind = str(given.get("reg_op_name"))
    if kind not in CUSTOM:
        raise UserError(f"custom operator {kind} ({op.name}) has no ONNX twin; supported: {', '.join(CUSTOM)}")
    custom = CUSTOM[kind]
    given = {**custom.defaults, **given}
    if missing := [name for name in custom.attributes if name not in given]:
        raise UserError(f"custom operator {kind} ({op.name}) lacks its attribute {missing[0]}")
    attributes = {name: cast(given[name]) for name, cast in custom.attributes.items()}
    mutated = [old for name, old in zip(custom.inputs, op.inputs, strict=False) if name in custom.mutates]
    inputs = [t.operand(name) for name in op.inputs]
    own = [op.name, *(f"{op.name}:{i}" for i in range(1, custom.results))]
    names = own + [f"{op.name}:{old}" for old in mutated]
    t.nodes.append(helper.make_node(kind, inputs, names, name=op.name, domain=DOMAIN, **attributes))
    # For a device whose graph compiler requires in-place writes as results, the MindIR node has these results too.
    t.values[op.name] = tuple(names) if len(op.results) > 1 else op.name
    for old, new in zip(mutated, names[len(own) :], strict=True):
        before = t.operand(old)
        t.values[old] = new
        t.mutated[new] = t.mutated.pop(before, before)


def custom_attributes(op: Operation) -> dict[str, Any]:
    """Return a Custom node's attributes. In the cpu op set, `attr` lists them as name, text, name, text ..."""
    listed = op.attributes.get("attr", ())
    pairs = zip(listed[::2], listed[1::2], strict=True)
    return {**op.attributes, **{name: text.decode() for name, text in pairs}}


TRANSLATIONS: dict[str, Translator] = {
    "Add": _same("Add"),
    "BatchMatMul": _batch_matmul,
    "Cast": _cast,
    "Concat": _concat,
    "Custom": _custom,
    "Depend": _depend,
    "Div": _same("Div"),
    "Gather": _gather,
    "MakeTuple": _make_tuple,
    "MatMul": _matmul,
    "Mul": _same("Mul"),
    "ReduceMean": _reduce_mean,
    "Reshape": _reshape,
    "RmsNorm": _rms_norm,
    "Sigmoid": _same("Sigmoid"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _same("Sqrt"),
    "Square": _square,
    "Sub": _same("Sub"),
    "Transpose": _transpose,
    "TupleGetItem": _tuple_get_item,
    "WeightQuantBatchMatmul": _weight_quant_batch_matmul,
}


def translate_operation(t: Translation, op: Operation) -> None:
    """Add the ONNX nodes of one operation. Raises UserError with node and operator if ONNX has no equivalent."""
    translator = TRANSLATIONS.get(op.operator)
    if translator is None:
        raise UserError(
            f"operator {op.operator} ({op.name}) has no ONNX twin; supported: {', '.join(sorted(TRANSLATIONS))}"
        )
    for result in op.results[:1]:
        t.shapes[op.name] = result
    translator(t, op)
