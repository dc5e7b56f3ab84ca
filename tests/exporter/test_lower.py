"""Lowering of small hand-made traces, value by value, and reading them back. test_mindir.py has MindSpore's traces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama.artifact.manifest import TensorSpec
from edgellama.errors import UserError
from edgellama.exporter.mindir.graph import Parameter, Value, attribute_value, parse, read, view
from edgellama.exporter.mindir.lower import (
    DTYPE_NAMES,
    DTYPES,
    OPERATORS,
    TRANSPOSES,
    lower,
    operators,
    parameters,
    parameters_to_inputs,
)
from edgellama.exporter.mindir.schema import pb

KIND = pb.AttributeProto
FLOAT32, INT32 = 1, 6  # TensorProto.DataType
X = TensorSpec("x", "float32", (2, 4))


class Trace:
    """A trace like MindSpore's: options are constants behind the inputs, and memory order is a chain of its own."""

    def __init__(self) -> None:
        self.model = pb.ModelProto(mind_ir_version=3)
        self.model.graph.name = "traced"
        self.count = 0

    def input(self, dims: tuple[int, ...] = (2, 4), data_type: int = FLOAT32) -> str:
        name = f"input_{len(self.model.graph.input)}"
        self.model.graph.input.add(name=name).tensor.add(dims=dims, data_type=data_type)
        return name

    def parameter(self, name: str, dims: tuple[int, ...] = (4, 3), data_type: int = FLOAT32) -> str:
        tensor = self.model.graph.parameter.add(name=f"Default:{name}", dims=dims, data_type=data_type)
        tensor.external_data.location, tensor.external_data.offset, tensor.external_data.length = "data_0", 64, 48
        return tensor.name

    def constant(self, **attribute: Any) -> str:
        self.count += 1
        node = self.model.graph.node.add(op_type="Constant", output=[f"constant_{self.count}"])
        node.attribute.add(name="value", **attribute)
        return node.output[0]

    def node(self, operator: str, *inputs: str, scope: str = "block-Block/0-Layer", **attributes: Any) -> str:
        self.count += 1
        primitive = self.model.primitives.add(name=f"{operator}_{self.count}", op_type=operator)
        for name, value in {"input_names": b"x", "output_names": b"y", **attributes}.items():
            kind = KIND.INT64 if isinstance(value, int) else KIND.STRING
            primitive.attribute.add(name=name, type=kind, **{"i" if isinstance(value, int) else "s": value})
        node = self.model.graph.node.add(op_type=f"REF::{primitive.name}", input=inputs)
        node.output.append(f"node_{self.count}")
        node.domain = f"Default/{scope}/{operator}-op0"
        shape = node.attribute.add(name="shape", type=KIND.TENSORS)
        shape.tensors.add(dims=(2, 3), data_type=FLOAT32)
        node.attribute.add(name="other", type=KIND.INT64, i=1)
        return node.output[0]

    def result(self, value: str, *dims: tuple[int, ...]) -> Any:
        """Ends the graph with `value`, a tuple of tensors of these sizes; returns the trace."""
        output = self.model.graph.output.add(name=value)
        output.denotation = "result"
        output.attr_info.name = "info"
        output.attr_info.type = KIND.TUPLE
        for size in dims:
            part = output.attr_info.values.add(type=KIND.TENSORS)
            part.tensors.add(dims=size, data_type=FLOAT32)
        return self.model


def layer(trace: Trace, x: str, weight: str, transpose: int) -> str:
    false, transposed = trace.constant(type=KIND.BOOL, i=0), trace.constant(type=KIND.BOOL, i=transpose)
    order = trace.constant(type=KIND.INT64, i=0)
    loaded = trace.node("Load", weight, order)
    updated = trace.node("UpdateState", order, loaded)
    product = trace.node("MatMul", x, loaded, false, transposed)
    return trace.node("Depend", product, updated)


def by_name(model: Any) -> dict[str, Any]:
    return {node.name: node for node in model.graph.node}


def test_options_become_attributes_and_memory_order_disappears() -> None:
    trace = Trace()
    x, weight = trace.input(), trace.parameter("layer.weight")
    product = layer(trace, x, weight, transpose=1)
    trace.node("Sqrt", product)  # nothing uses it
    axis = trace.constant(type=KIND.INT64, i=-1)
    last = trace.node("MakeTuple", trace.node("Softmax", product, axis))
    low = lower(trace.result(last, (2, 3)), [X])

    assert (low.ir_version, low.producer_name, low.model_version) == ("1", "MindSpore", "1.0")
    assert low.mind_ir_version == 1 and low.little_endian is True and low.graph.name == "llama"
    assert [(v.name, v.tensor[0].name, v.tensor[0].data_type, list(v.tensor[0].dims)) for v in low.graph.input] == [
        ("x", "x", FLOAT32, [2, 4])
    ]
    (stored,) = low.graph.parameter
    assert (stored.name, stored.ref_key, list(stored.dims)) == ("layer.weight", "layer.weight", [4, 3])
    assert (stored.external_data.location, stored.external_data.offset) == ("data_0", 64)
    nodes = by_name(low)
    assert {name: list(node.input) for name, node in nodes.items()} == {
        "block/0/MatMul": ["x", "layer.weight"],
        "block/0/Softmax": ["block/0/MatMul"],
    }
    assert {name: (list(node.output), node.domain) for name, node in nodes.items()} == {
        name: ([name], f"{name}/") for name in nodes
    }
    assert all([a.name for a in node.attribute] == ["shape"] for node in nodes.values())
    primitives = {p.name: p for p in low.primitives}
    found = {name: primitives[node.op_type.removeprefix("REF::")] for name, node in nodes.items()}
    assert {name: p.op_type for name, p in found.items()} == {"block/0/MatMul": "MatMul", "block/0/Softmax": "Softmax"}
    assert all(p.prim_type == pb.PrimitiveProto.PRIMITIVE for p in primitives.values())
    aliases = {alias: index for index, names in enumerate(TRANSPOSES) for alias in names}
    assert {a.name: a.i for a in found["block/0/MatMul"].attribute} == aliases
    assert [(a.name, a.type, a.i) for a in found["block/0/Softmax"].attribute] == [("axis", KIND.INT64, -1)]
    assert not low.graph.attribute  # only a graph of custom kernels skips the passes


def test_equal_names_are_counted_and_equal_primitives_are_shared() -> None:
    trace = Trace()
    value = trace.input()
    for transpose in (0, 1, 0, 0):
        value = layer(trace, value, trace.parameter(f"w{transpose}"), transpose)
    model = trace.result(trace.node("Add", value, value, scope="end-End", name=b"total"), (2, 3))
    low = lower(model, [X])
    names = ["block/0/MatMul", "block/0/MatMul.1", "block/0/MatMul.2", "block/0/MatMul.3", "total"]
    assert [node.name for node in low.graph.node] == names
    assert list(low.graph.node[4].input) == [names[3]] * 2
    uses = [node.op_type for node in low.graph.node]
    assert uses == ["REF::MatMul:0", "REF::MatMul:1", "REF::MatMul:0", "REF::MatMul:0", "REF::Add:2"]
    assert [p.name for p in low.primitives] == ["MatMul:0", "MatMul:1", "Add:2"]
    assert [(a.name, a.s) for a in low.primitives[2].attribute] == [("name", b"total")]


def test_constants_that_are_inputs_stay_and_are_added_once() -> None:
    trace = Trace()
    x = trace.input()
    number = trace.constant(type=KIND.FLOAT, f=0.5)
    tensor = trace.constant(type=KIND.TENSORS)
    array = np.array([[1, 2, 3, 4]], np.float32)
    trace.model.graph.node[-1].attribute[0].tensors.add(dims=(1, 4), data_type=FLOAT32, raw_data=array.tobytes())
    first = trace.node("Mul", x, number)
    second = trace.node("Add", trace.node("Mul", first, number), tensor)
    low = lower(trace.result(second, (2, 4)), [X])
    constants = [node for node in low.graph.node if node.op_type == "Constant"]
    assert [node.name for node in constants] == ["constant", "constant.1"]
    assert [list(node.output) for node in constants] == [["constant"], ["constant.1"]]
    graph = view(low)
    assert graph.constants["constant"] == 0.5
    np.testing.assert_array_equal(graph.constants["constant.1"], array)
    assert [op.inputs for op in graph.operations] == [
        ("x", "constant"),
        ("block/0/Mul", "constant"),
        ("block/0/Mul.1", "constant.1"),
    ]
    assert graph.output == "block/0/Add"


def test_an_option_must_be_a_constant() -> None:
    trace = Trace()
    x = trace.input()
    with pytest.raises(UserError, match=r"option axis of Softmax \(block/0\) is not a constant"):
        lower(trace.result(trace.node("Softmax", x, x), (2, 4)), [X])
    trace = Trace()
    with pytest.raises(ValueError, match="zip"):  # an option that the table does not have
        axis = trace.constant(type=KIND.INT64, i=1)
        lower(trace.result(trace.node("Softmax", trace.input(), axis, axis), (2, 4)), [X])


def test_an_unknown_operator_is_named_with_its_place() -> None:
    trace = Trace()
    model = trace.result(trace.node("Erf", trace.input(), scope="a-A/b-B"), (2, 4))
    with pytest.raises(UserError) as error:
        lower(model, [X])
    place = "node a/b/Erf, created in Default/a-A/b-B/Erf-op0: operator Erf cannot be lowered to MindIR version 1; "
    assert str(error.value) == f"{place}compose it from: {', '.join(sorted(OPERATORS))}"


@pytest.mark.parametrize("results", [1, 2])
def test_the_result_is_a_tensor_or_a_tuple(results: int) -> None:
    trace = Trace()
    parts = [trace.node("Square", trace.input()) for _ in range(results)]
    model = trace.result(trace.node("MakeTuple", *parts), *[(2, i) for i in range(results)])
    low = lower(model, [TensorSpec(f"x{i}", "float32", (2, 4)) for i in range(results)])
    (output,) = low.graph.output
    names = ["block/0/Square", "block/0/Square.1"][:results]
    if results == 1:
        assert output.name == names[0] and [list(t.dims) for t in output.tensor] == [[2, 0]]
        assert not output.HasField("attr_info") and not output.HasField("denotation")
        assert [node.name for node in low.graph.node] == names
    else:
        assert output.name == "block/0/MakeTuple" and not output.tensor
        assert [list(part.tensors[0].dims) for part in output.attr_info.values] == [[2, 0], [2, 1]]
        assert output.denotation == "result"
        assert list(low.graph.node[-1].input) == names


def test_a_custom_kernel_has_the_attributes_that_the_reader_needs() -> None:
    trace = Trace()
    head = trace.node("LmHead", trace.input(), trace.parameter("w"), inner=b"64", eps=b"1e-5", count=7, name=b"head")
    low = lower(trace.result(head, (2, 3)), [X])
    (primitive,) = low.primitives
    assert (primitive.op_type, primitive.name) == ("Custom", "Custom:0")
    found = {a.name: attribute_value(a) for a in primitive.attribute}
    fixed = dict.fromkeys(("type", "func_name", "reg_op_name"), "LmHead")
    own = (b"1e-5", b"64", b"head")
    names = ("eps", "inner", "name")
    pairs = tuple(part for name, text in zip(names, own, strict=True) for part in (name, text))
    assert found == {**fixed, "uniq_name": "CustomAscend", "func_type": "aot", "attr": pairs}
    assert all(a.type == KIND.STRING for a in primitive.attribute if a.name != "attr")
    attr = next(a for a in primitive.attribute if a.name == "attr")
    assert [v.type for v in attr.values] == [KIND.STRING, KIND.LIST] * 3
    assert low.graph.node[0].name == "head"
    assert [(a.name, a.type) for a in low.graph.attribute] == [
        ("isOptimized", KIND.BOOL),
        ("fmk", KIND.INT32),
        ("graph_name", KIND.STRING),
    ]
    optimized, framework, name = low.graph.attribute
    assert (optimized.i, framework.i, name.s) == (1, 3, b"llama")


def test_an_ascend_operator_keeps_its_attributes() -> None:
    trace = Trace()
    one = trace.node("FusedAttention", trace.input(), reg_op_name=b"Edge", window=4, alpha=b"a", name=b"attention")
    low = lower(trace.result(trace.node("Square", one), (2, 3)), [X])
    custom = low.primitives[0]
    names = ["alpha", "input_names", "output_names", "reg_op_name", "window"]
    assert (custom.op_type, [a.name for a in custom.attribute]) == ("Custom", names)
    assert low.graph.node[0].name == "attention"
    assert not low.graph.attribute  # Square is no custom kernel


def test_inputs_must_match_the_trace() -> None:
    trace = Trace()
    model = trace.result(trace.node("Square", trace.input()), (2, 4))
    with pytest.raises(ValueError, match="zip"):
        lower(model, [X, X])
    (node, primitive), *_ = operators(model)
    assert node.output[0] == model.graph.output[0].name and primitive.op_type == "Square"
    trace.constant(type=KIND.INT64, i=0)
    assert operators(model)[-1][1] is None


def test_parameters_become_inputs_behind_the_others() -> None:
    trace = Trace()
    value = trace.input()
    for number, name in enumerate(DTYPES, 1):
        trace.parameter(name, (number, 2), DTYPES[name])
        value = trace.node("Add", value, f"Default:{name}")
    low = lower(trace.result(value, (2, 3)), [X])
    specs = [TensorSpec(name, name, (number, 2)) for number, name in enumerate(DTYPES, 1)]
    assert parameters(low) == specs
    assert parameters_to_inputs(low) == specs
    assert not low.graph.parameter
    assert view(low).inputs == (Value("x", "float32", (2, 4)), *(Value(s.name, s.dtype, s.shape) for s in specs))
    numbers = {name: getattr(pb.TensorProto, {"float32": "FLOAT"}.get(name, name.upper())) for name in DTYPES}
    assert numbers == DTYPES and {number: name for name, number in DTYPES.items()} == DTYPE_NAMES


def test_a_graph_is_read_as_plain_values(tmp_path: Path) -> None:
    trace = Trace()
    x, weight = trace.input(), trace.parameter("w", (4, 3), INT32)
    low = lower(trace.result(layer(trace, x, weight, 1), (2, 3)), [X])
    path = tmp_path / "graph.mindir"
    path.write_bytes(low.SerializeToString())
    graph = read(path)
    assert graph.inputs == (Value("x", "float32", (2, 4)),) and graph.inputs[0].nbytes == 32
    assert graph.parameters == (Parameter("w", "int32", (4, 3), "data_0", 64, 48),)
    assert Value("y", "float16", ()).nbytes == 2
    assert graph.constants == {} and graph.output == "block/0/MatMul"
    (product,) = graph.operations
    assert (product.name, product.operator, product.inputs) == ("block/0/MatMul", "MatMul", ("x", "w"))
    assert product.attributes == {alias: bool(i) for i, names in enumerate(TRANSPOSES) for alias in names}
    assert product.results == (Value("block/0/MatMul", "float32", (2, 3)),)
    assert parse(path) == low
    path.write_bytes(low.SerializeToString()[:-1])
    with pytest.raises(UserError, match="is not a MindIR file, or it is truncated"):
        read(path)


def test_several_results_are_numbered(tmp_path: Path) -> None:
    trace = Trace()
    options = [trace.constant(type=KIND.INT64, i=i) for i in (1, 2)]
    split = trace.node("Split", trace.input(), *options)
    node = trace.model.graph.node[-1]
    del node.attribute[:]
    shape = node.attribute.add(name="shape", type=KIND.TUPLE)
    for size in (3, 5):
        shape.values.add(type=KIND.TENSORS).tensors.add(dims=(2, size), data_type=FLOAT32)
    inner = shape.values.add(type=KIND.TUPLE).values.add(type=KIND.TENSORS)
    inner.tensors.add(dims=(7,), data_type=INT32)
    (operation,) = view(lower(trace.result(split, (2, 3)), [X])).operations
    assert operation.attributes == {"axis": 1, "output_num": 2}
    assert operation.results == (
        Value("block/0/Split:0", "float32", (2, 3)),
        Value("block/0/Split:1", "float32", (2, 5)),
        Value("block/0/Split:2:0", "int32", (7,)),
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": KIND.BOOL, "i": 1}, True),
        ({"type": KIND.BOOL, "i": 0}, False),
        ({"type": KIND.INT64, "i": -3}, -3),
        ({"type": KIND.INT64, "ints": [5], "i": 2}, 5),
        ({"type": KIND.FLOAT, "f": 0.25}, 0.25),
        ({"type": KIND.FLOAT, "floats": [0.5], "f": 0.25}, 0.5),
        ({"type": KIND.DOUBLE, "d": 1e-5}, 1e-5),
        ({"type": KIND.STRING, "s": b"text"}, "text"),
        ({"type": KIND.STRING, "strings": [b"element"], "s": b"text"}, "element"),
        ({"type": KIND.TUPLE}, ()),
        ({"type": KIND.LIST, "values": [KIND(type=KIND.UINT8, ints=[65]), KIND(type=KIND.UINT8, ints=[0])]}, b"A\0"),
        ({"type": KIND.TUPLE, "values": [KIND(type=KIND.INT64, ints=[1]), KIND(type=KIND.UINT8, ints=[2])]}, (1, 2)),
        ({"type": KIND.LIST, "values": [KIND(type=KIND.TUPLE, values=[KIND(type=KIND.INT64, ints=[1])])]}, ((1,),)),
    ],
)
def test_attribute_values(fields: dict[str, Any], expected: Any) -> None:
    found = attribute_value(KIND(name="a", **fields))
    assert found == expected and type(found) is type(expected)


def test_an_unknown_element_type_is_named() -> None:
    trace = Trace()
    value = trace.node("Square", trace.input())
    low = lower(trace.result(value, (2, 4)), [X])
    low.graph.input[0].tensor[0].data_type = 9
    with pytest.raises(UserError, match="x has MindIR type 9; known types: float32, uint8, int8"):
        view(low)
