"""Lowering: MindSpore Lite reads the graph that MindSpore traced, and nothing is lost in between."""

from __future__ import annotations

import copy
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama.artifact.manifest import TensorSpec
from edgellama.errors import UserError
from edgellama.exporter.checkpoint.base import expected_tensors
from edgellama.exporter.mindir import lower as mindir
from edgellama.exporter.mindir.graph import MindIRGraph, attribute_value, read, view
from edgellama.exporter.network.config import LlamaConfig
from support.checkpoints import DEFAULTS
from support.traced import trace_in_child

BIASED = {"model_type": "llama", "attention_bias": True, "mlp_bias": True, **DEFAULTS}
TIED = {**BIASED, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True, "head_dim": 20}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trace_in_child(BIASED, tmp_path_factory.mktemp("traced"))


def inputs_of(model: Any) -> list[TensorSpec]:
    """Returns names for the inputs of the traced model, which MindSpore only numbers."""
    dtypes = {number: name for name, number in mindir.DTYPES.items()}
    tensors = [(value.tensor[0], i) for i, value in enumerate(model.graph.input)]
    return [TensorSpec(f"input.{i}", dtypes[t.data_type], tuple(t.dims)) for t, i in tensors]


@pytest.fixture(scope="module")
def lowered(traced: Any) -> Any:
    return mindir.lower(traced, inputs_of(traced))


@pytest.fixture(scope="module")
def graph(lowered: Any) -> MindIRGraph:
    return view(lowered)


def test_an_operator_outside_the_table_is_named_with_its_place(traced: Any) -> None:
    changed = copy.deepcopy(traced)
    primitive = next(p for p in changed.primitives if p.op_type == "Sigmoid")
    primitive.op_type = "Erf"
    with pytest.raises(UserError) as error:
        mindir.lower(changed, inputs_of(changed))
    message = str(error.value)
    assert "operator Erf cannot be lowered to MindIR version 1" in message
    assert "node layers/0/norm_swiglu/Erf" in message
    assert "created in Default/layers-CellList/0-DecoderLayer/norm_swiglu-NormGLU/" in message


def test_an_option_that_is_computed_is_refused(traced: Any) -> None:
    changed = copy.deepcopy(traced)
    node = next(n for n in changed.graph.node if n.op_type.startswith("REF::Softmax"))
    node.input[1] = node.input[0]
    with pytest.raises(UserError, match=r"option axis of Softmax .* is not a constant"):
        mindir.lower(changed, inputs_of(changed))


def test_version_and_primitives_are_those_of_the_older_reader(lowered: Any) -> None:
    assert lowered.mind_ir_version == 1
    assert lowered.little_endian
    assert {p.prim_type for p in lowered.primitives} == {type(lowered.primitives[0]).PRIMITIVE}
    assert len({p.name for p in lowered.primitives}) == len(lowered.primitives)


def test_domains_are_unique(lowered: Any) -> None:
    domains = [node.domain for node in lowered.graph.node if node.op_type != "Constant"]
    assert len(set(domains)) == len(domains)
    assert all(domains)


def test_every_value_is_defined_before_its_use(lowered: Any) -> None:
    known = {v.name for v in lowered.graph.input} | {p.name for p in lowered.graph.parameter}
    for node in lowered.graph.node:
        assert set(node.input) <= known, node.name
        assert not known & set(node.output), node.name
        known |= set(node.output)
    assert lowered.graph.output[0].name in known


def options(model: Any, operator: str, index: int) -> list[Any]:
    """Returns the constant input `index` of the traced nodes, in execution order."""
    constants = {n.output[0]: n.attribute[0] for n in model.graph.node if n.op_type == "Constant"}
    nodes = [n for n, p in mindir.operators(model) if p is not None and p.op_type == operator]
    return [attribute_value(constants[n.input[index]]) for n in nodes]


@pytest.mark.parametrize(
    ("operator", "index", "names"),
    [
        ("MatMul", 2, ["transpose_a", "transpose_x1", "adj_x1"]),
        ("MatMul", 3, ["transpose_b", "transpose_x2", "adj_x2"]),
        ("BatchMatMul", 3, ["transpose_b", "transpose_x2", "adj_x2"]),
        ("Softmax", 1, ["axis"]),
        ("Concat", 1, ["axis"]),
        ("Split", 1, ["axis"]),
        ("Split", 2, ["output_num"]),
        ("Gather", 3, ["batch_dims"]),
        ("ReduceMean", 2, ["keep_dims"]),
    ],
)
def test_options_became_attributes(
    traced: Any, graph: MindIRGraph, operator: str, index: int, names: list[str]
) -> None:
    """The values and their order are the same, under every name that a release reads, and they are no inputs."""
    wanted = options(traced, operator, index)
    found = [op for op in graph.operations if op.operator == operator]
    assert wanted
    for name in names:
        assert [op.attributes[name] for op in found] == wanted
    kept = mindir.OPERATORS[operator].inputs
    assert {len(op.inputs) for op in found} == {kept}


def test_no_operator_is_lost(traced: Any, graph: MindIRGraph) -> None:
    """Every operator that computes something stays; tuples and operators that order memory may disappear."""
    computed = [p.op_type for _, p in mindir.operators(traced) if p is not None and p.op_type in mindir.OPERATORS]
    kept = [op.operator for op in graph.operations]
    for tuples in ("MakeTuple", "TupleGetItem"):
        computed, kept = ([x for x in names if x != tuples] for names in (computed, kept))
    assert sorted(kept) == sorted(computed)


@pytest.mark.parametrize("config", [BIASED, TIED], ids=["biased", "tied"])
def test_parameters_are_the_checkpoint_and_the_rotary_tables(config: dict[str, Any], tmp_path: Path) -> None:
    model = trace_in_child(config, tmp_path, tokens=4)
    low = view(mindir.lower(model, inputs_of(model)))
    network = LlamaConfig.from_dict(config)
    half = network.head_dim // 2
    wanted = {**expected_tensors(network), "rope.cos": (32, half), "rope.sin": (32, half)}
    assert {p.name: p.shape for p in low.parameters} == wanted
    assert {p.dtype for p in low.parameters} == {"float32"}
    used = {name for op in low.operations for name in op.inputs}
    assert {p.name for p in low.parameters} <= used


def test_two_traces_lower_to_the_same_bytes(traced: Any, lowered: Any, tmp_path: Path) -> None:
    """The traces themselves differ from process to process."""
    again = trace_in_child(BIASED, tmp_path)
    data = mindir.lower(again, inputs_of(again)).SerializeToString(deterministic=True)
    assert data == lowered.SerializeToString(deterministic=True)
    for foreign in (str(Path.cwd()), socket.gethostname(), os.environ.get("USER") or "no user", "CNode"):
        assert foreign.encode() not in data


def test_traced_constants_keep_their_values(graph: MindIRGraph) -> None:
    arrays = [c for c in graph.constants.values() if isinstance(c, np.ndarray)]
    assert sorted(float(a.ravel()[0]) for a in arrays) == sorted([np.float32(1e-5), np.float32(16**-0.5)])


def test_a_cut_file_is_refused(lowered: Any, tmp_path: Path) -> None:
    path = tmp_path / "cut.mindir"
    path.write_bytes(lowered.SerializeToString()[:-1000])
    with pytest.raises(UserError, match="not a MindIR file, or it is truncated"):
        read(path)


def test_parameters_can_become_inputs(traced: Any) -> None:
    model = mindir.lower(traced, inputs_of(traced))
    before = view(model)
    moved = mindir.parameters_to_inputs(model)
    after = view(model)
    assert after.parameters == ()
    assert [v.name for v in after.inputs] == [v.name for v in before.inputs] + [p.name for p in before.parameters]
    assert [(m.name, m.shape, m.dtype) for m in moved] == [(p.name, p.shape, p.dtype) for p in before.parameters]
