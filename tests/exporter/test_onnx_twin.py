"""The ONNX twin: names, shapes, data, the checker, onnxruntime, custom operators, and what it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from edgellama.artifact.manifest import Artifact, Graph, TensorSpec
from edgellama.engine.step_inputs import StepInputs
from edgellama.errors import UserError
from edgellama.exporter.mindir import lower as mindir
from edgellama.exporter.mindir.graph import MindIRGraph, Operation, Value, read
from edgellama.exporter.onnx_twin import translate as onnx_twin
from edgellama.exporter.onnx_twin.evaluators import OPERATORS
from edgellama.exporter.onnx_twin.operators import TRANSLATIONS
from edgellama.exporter.onnx_twin.run import TwinGraph
from edgellama.kernels import reference


@pytest.fixture(scope="module")
def artifact(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A copy of the artifact, so that the twin can be written into its graphs folder."""
    copy = shutil.copytree(tiny_artifact, tmp_path_factory.mktemp("twin") / "tiny")
    return Artifact.open(copy)


@pytest.fixture(scope="module")
def path(artifact: Artifact) -> Path:
    """The twin in the folder of the MindIR."""
    return onnx_twin.write(artifact, artifact.path / "graphs")[0]


def step_inputs(artifact: Artifact, tokens: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random token ids and half-filled caches."""
    rng = np.random.default_rng(seed)
    graph, context = artifact.manifest.graphs[0], artifact.manifest.context
    step = StepInputs(graph, tokens, context)
    rows = artifact.manifest.batch
    start = np.full(rows, context // 2)
    step.fill(rng.integers(0, 264, (rows, tokens), dtype=np.int32), start, np.full(rows, tokens))
    caches = {s.name: rng.normal(size=s.shape).astype(s.dtype) for s in graph.inputs if s.name not in step.arrays}
    return {**step.arrays, **caches}


def test_every_operator_of_the_lowering_has_a_twin() -> None:
    emitted = {rule.op_type or name for name, rule in mindir.OPERATORS.items()}
    assert emitted <= set(TRANSLATIONS)


def test_names_and_operators_are_kept(artifact: Artifact, path: Path) -> None:
    """The twin has one node for each operator, with its name, in order; only transpositions for products are added."""
    mindir_graph = read(artifact.file(artifact.manifest.graphs[0].file))
    model = onnx.load(path, load_external_data=False)
    computing = [op.name for op in mindir_graph.operations if op.operator not in ("MakeTuple", "TupleGetItem")]
    assert [node.name for node in model.graph.node if not node.name.endswith((":a", ":b"))] == computing
    parameters = {t.name for t in model.graph.initializer if t.external_data}
    assert parameters == {p.name for p in mindir_graph.parameters}


def test_inputs_and_outputs_are_the_manifests(artifact: Artifact, path: Path) -> None:
    graph = artifact.manifest.graphs[0]
    model = onnx.load(path, load_external_data=False).graph
    assert [v.name for v in model.input] == [s.name for s in graph.inputs]
    assert [v.name for v in model.output] == [s.name for s in graph.outputs]
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.input, *model.output)
    }
    assert shapes["tokens"] == [2, "tokens"]
    assert shapes["self_mask"] == [2, 1, "tokens_x2", "tokens"]
    assert shapes["k_cache.1"] == [2, 2, 64, 16]
    assert shapes["v_new.0"] == [2, 2, "tokens", 16]
    assert shapes["logits"] == [2, 264]


def test_a_graph_of_one_bucket_is_static(artifact: Artifact) -> None:
    graph = artifact.manifest.graphs[0]
    model = onnx_twin.translate(read(artifact.file(graph.file)), replace(graph, buckets=(16,)))
    dims = [d for v in (*model.graph.input, *model.graph.output) for d in v.type.tensor_type.shape.dim]
    assert not any(d.dim_param for d in dims)


def test_weights_stay_in_the_artifacts_data_file(artifact: Artifact, path: Path) -> None:
    data = artifact.manifest.graphs[0].data[0].file
    assert {p.name for p in path.parent.iterdir()} == {path.name, path.stem + ".mindir", Path(data).name}
    assert path.stat().st_size < 100_000
    above = onnx_twin.write(artifact, artifact.path)[0]
    locations = {
        entry.value
        for tensor in onnx.load(above, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert locations == {data}
    above.unlink()


def test_elsewhere_the_data_are_copied(artifact: Artifact, tmp_path: Path) -> None:
    written = onnx_twin.write(artifact, tmp_path / "onnx")[0]
    data = artifact.file(artifact.manifest.graphs[0].data[0].file)
    assert (written.parent / data.name).read_bytes() == data.read_bytes()
    shutil.copytree(written.parent, tmp_path / "moved")
    onnxruntime.InferenceSession(tmp_path / "moved" / written.name)


def test_no_room_for_a_copy(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(UserError, match=r"0\.0 GB free; a copy of .*\.data needs .* Use --onnx .*graphs"):
        onnx_twin.write(artifact, tmp_path / "onnx")


@pytest.mark.parametrize("tokens", [1, 3, 4, 16, 21])
def test_onnxruntime_and_onnx_reference_agree(artifact: Artifact, path: Path, tokens: int) -> None:
    """The axis is really dynamic: the numbers of tokens are buckets and others."""
    feeds = step_inputs(artifact, tokens)
    wanted = onnxruntime.InferenceSession(path).run(None, feeds)
    graph = artifact.manifest.graphs[0]
    twin = TwinGraph(artifact.file(graph.file), graph)
    found = twin.run(twin.bind([feeds[name] for name in twin.inputs]))
    assert len(found) == len(wanted) == len(graph.outputs)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_an_operator_without_a_twin_is_named(artifact: Artifact) -> None:
    graph = artifact.manifest.graphs[0]
    mindir_graph = read(artifact.file(graph.file))
    changed = [replace(op, operator="Erf") if op.operator == "Sigmoid" else op for op in mindir_graph.operations]
    with pytest.raises(UserError, match=r"operator Erf \(layers/0/norm_swiglu/Sigmoid\) has no ONNX twin"):
        onnx_twin.translate(replace(mindir_graph, operations=tuple(changed)), graph)


@pytest.mark.parametrize(
    ("operator", "change", "words"),
    [
        ("Gather", {"batch_dims": 1}, "batch_dims = 1 has no ONNX twin"),
        ("Softmax", {"axis": (-1, -2)}, "over axes"),
    ],
)
def test_options_without_a_twin_are_named(
    artifact: Artifact, operator: str, change: dict[str, Any], words: str
) -> None:
    graph = artifact.manifest.graphs[0]
    mindir_graph = read(artifact.file(graph.file))
    ops = tuple(
        replace(op, attributes={**op.attributes, **change}) if op.operator == operator else op
        for op in mindir_graph.operations
    )
    with pytest.raises(UserError, match=words):
        onnx_twin.translate(replace(mindir_graph, operations=ops), graph)


# A graph with custom operators in the form of the cpu op set: two attentions after each other, with one cache.
ROWS, TOKENS, HEADS, GROUPS, DIM, CAPACITY = 2, 3, 4, 2, 8, 10
WIDTH = (HEADS + 2 * GROUPS) * DIM
CACHE = (ROWS, GROUPS, CAPACITY, DIM)
INPUTS = {
    "qkv": ("float32", (ROWS, TOKENS, WIDTH)),
    "cos": ("float32", (CAPACITY, DIM // 2)),
    "sin": ("float32", (CAPACITY, DIM // 2)),
    "start": ("int32", (ROWS,)),
    "length": ("int32", (ROWS,)),
    "later": ("int32", (ROWS,)),
    "k_cache.0": ("float16", CACHE),
    "v_cache.0": ("float16", CACHE),
}


def attention(name: str, start: str, results: int = 1, **attributes: Any) -> Operation:
    text = {"heads": "4", "scale": "0.25", "window": "2", "cache": "f16"}
    attr = tuple(part for key, value in text.items() for part in (key, value.encode()))
    shapes = [(ROWS, TOKENS, HEADS * DIM), CACHE, CACHE][:results]
    return Operation(
        name,
        "Custom",
        ("qkv", "cos", "sin", start, "length", "k_cache.0", "v_cache.0"),
        {"type": "FusedAttention", "reg_op_name": "FusedAttention", "attr": attr, **attributes},
        tuple(Value(name, "float32", shape) for shape in shapes),
    )


def custom_graph(*operations: Operation, output: str, shape: tuple[int, ...]) -> tuple[MindIRGraph, Graph]:
    inputs = tuple(Value(name, dtype, shape) for name, (dtype, shape) in INPUTS.items())
    specs = tuple(TensorSpec(v.name, v.dtype, v.shape) for v in inputs)
    outputs = (TensorSpec("out", "float32", shape),)
    graph = Graph("graphs/3.mindir", "", 0, TOKENS, (TOKENS,), specs, outputs)
    return MindIRGraph(inputs, (), {"one": 1}, operations, output), graph


def custom_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=shape).astype(dtype) for name, (dtype, shape) in INPUTS.items()}
    start, length = np.array([0, 2], np.int32), np.array([3, 2], np.int32)
    return {**values, "start": start, "length": length, "later": start + length}


def test_custom_operators_answer_to_their_definition() -> None:
    """The second attention reads the rows that the first one wrote; the caches are additional outputs."""
    shape = (ROWS, TOKENS, HEADS * DIM)
    add = Operation("sum", "Add", ("first", "second"), {}, (Value("sum", "float32", shape),))
    operations = (attention("first", "start"), attention("second", "later"), add)
    model = onnx_twin.translate(*custom_graph(*operations, output="sum", shape=shape))
    onnx.checker.check_model(model, full_check=True)
    assert [v.name for v in model.graph.output] == ["out", "k_cache.0.written", "v_cache.0.written"]

    x = custom_inputs()
    out, k, v = ReferenceEvaluator(model, new_ops=OPERATORS).run(None, x)
    wanted = custom_inputs()
    caches = wanted["k_cache.0"], wanted["v_cache.0"]
    total = np.zeros(shape, np.float32)
    for start in ("start", "later"):
        arguments = [wanted[name] for name in ("qkv", "cos", "sin", start, "length")]
        total += reference.fused_attention(*arguments, *caches, heads=4, scale=0.25, window=2)
    np.testing.assert_array_equal(out, total)
    np.testing.assert_array_equal(k, caches[0])
    np.testing.assert_array_equal(v, caches[1])
    assert np.any(k != x["k_cache.0"])


def test_a_device_may_return_what_it_writes() -> None:
    """If the MindIR node has the caches as results, the next node reads these results."""
    items = [
        Operation(f"item.{i}", "TupleGetItem", ("first", "one"), {}, (Value(f"item.{i}", "float16", CACHE),))
        for i in range(1)
    ]
    second = attention("second", "later", results=3)
    second = replace(second, inputs=(*second.inputs[:5], "item.0", "v_cache.0"))
    zero = Operation("taken", "TupleGetItem", ("second", "zero"), {}, (Value("taken", "float32", ()),))
    shape = (ROWS, TOKENS, HEADS * DIM)
    operations = (attention("first", "start", results=3), *items, second, zero)
    mindir_graph, graph = custom_graph(*operations, output="taken", shape=shape)
    model = onnx_twin.translate(replace(mindir_graph, constants={"zero": 0, "one": 1}), graph)
    plain = (attention("first", "start"), attention("second", "later"))
    other = onnx_twin.translate(*custom_graph(*plain, output="second", shape=shape))
    for ours, theirs in zip(
        ReferenceEvaluator(model, new_ops=OPERATORS).run(None, custom_inputs()),
        ReferenceEvaluator(other, new_ops=OPERATORS).run(None, custom_inputs()),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_plain_attributes_an_optional_one_and_half_precision() -> None:
    """In the form of the Ascend op set: no list of texts, and no window."""
    op = attention("first", "start", attr=(), heads=4, scale=0.25)
    shape = (ROWS, TOKENS, HEADS * DIM)
    model = onnx_twin.translate(*custom_graph(op, output="first", shape=shape))
    x = custom_inputs()
    x["qkv"] = x["qkv"].astype(np.float16)
    out, *_ = ReferenceEvaluator(model, new_ops=OPERATORS).run(None, x)
    arguments = [x[name] for name in ("qkv", "cos", "sin", "start", "length", "k_cache.0", "v_cache.0")]
    np.testing.assert_array_equal(out, reference.fused_attention(*arguments, heads=4, scale=0.25))
    assert out.dtype == np.float16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reg_op_name": "Mystery"}, r"custom operator Mystery \(first\) has no ONNX twin"),
        ({"attr": ("heads", b"4")}, r"FusedAttention \(first\) lacks its attribute scale"),
    ],
)
def test_custom_operators_that_do_not_fit_are_named(changes: dict[str, Any], words: str) -> None:
    shape = (ROWS, TOKENS, HEADS * DIM)
    with pytest.raises(UserError, match=words):
        onnx_twin.translate(*custom_graph(attention("first", "start", **changes), output="first", shape=shape))


def test_half_precision_products_are_summed_in_float32() -> None:
    """The sum of 4,096 products of 1 would stay at 2,048 in float16."""
    node = helper.make_node("Gemm", ["a", "b"], ["y"], transB=1)
    tensors = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, [1, None]) for name in "aby"]
    model = helper.make_model(helper.make_graph([node], "g", tensors[:2], tensors[2:]))
    ones = np.ones((1, 4096), np.float16)
    (y,) = ReferenceEvaluator(model, new_ops=OPERATORS).run(None, {"a": ones, "b": ones})
    assert y.dtype == np.float16
    assert y.tolist() == [[4096.0]]
