"""Translate a graph to ONNX: for Netron, and for evaluation without MindSpore (exporter.onnx_twin.run).

Each MindIR operator becomes one ONNX node with the same name. A transposed batched product becomes two nodes, because
ONNX's MatMul does not transpose; tuples need no node. Weights stay in their files: ONNX and MindIR both describe
external data by location, offset and length of raw little-endian bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import TensorProto, checker, helper

from edgellama import output_file
from edgellama.artifact.manifest import Artifact, Graph, TensorSpec, sha256_file
from edgellama.artifact.step_graph import shape_at
from edgellama.errors import UserError

from ..mindir.graph import MindIRGraph, Parameter, read
from .operators import DOMAIN, Translation, translate_operation

OPSET = 18  # the oldest with Split's num_outputs
TOKENS = "tokens"  # the symbolic size of the token axis
PRODUCER = "edgellama"  # in each file that `write` writes
KIND = "an ONNX graph of this command"
WRITTEN = ".written"  # suffix of an output: the content of that graph input after the in-place writes


def write(artifact: Artifact, folder: Path) -> list[Path]:
    """Write folder/<graph>.onnx for each graph of an artifact, and check it with ONNX's checker.

    The data files are copied into `folder`, because ONNX reads no data outside the model's folder. No copy is needed if
    `folder` already contains them, as the artifact's graphs folder does. Raises UserError if the disk has too little
    space, if an operator has no ONNX equivalent, or if a file in `folder` that this function did not write would be
    overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, and --onnx takes a folder. Give another one")
    graphs = artifact.manifest.graphs
    for graph in graphs:
        _check_files(artifact, graph, folder)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return [_write_graph(artifact, graph, folder) for graph in graphs]
    except BaseException:
        if new:  # all that it contains was written here
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_graph(artifact: Artifact, graph: Graph, folder: Path) -> Path:
    mindir = artifact.file(graph.file)
    model = translate(read(mindir), graph, _placer(mindir.parent, folder))
    path = folder / f"{mindir.stem}.onnx"
    with output_file.replaced(path, is_twin, KIND) as file:
        file.write(model.SerializeToString(deterministic=True))
    checker.check_model(path, full_check=True)
    return path


def is_twin(file: BinaryIO) -> bool:
    """Return whether a file is an ONNX model that `write` wrote: the producer is at its beginning."""
    return PRODUCER.encode() in file.read(64)


def _check_files(artifact: Artifact, graph: Graph, folder: Path) -> None:
    """Raise UserError if a file that `write` would overwrite is not one of its own."""
    twin = folder / f"{Path(graph.file).stem}.onnx"
    if folder.is_dir():
        output_file.check(twin, is_twin, KIND)
    for entry in graph.data:
        copy, data = folder / Path(entry.file).name, artifact.file(entry.file)
        if not copy.exists() or twin.exists() or data.resolve().is_relative_to(folder.resolve()):
            continue
        if not copy.is_file() or copy.stat().st_size != entry.bytes or sha256_file(copy) != entry.sha256:
            raise UserError(f"{copy}: exists and is not the data of {twin.name}. Give another folder, or delete it")


def translate(mindir: MindIRGraph, graph: Graph, place: Callable[[str], str] = str) -> onnx.ModelProto:
    """Return the ONNX model of one graph.

    Inputs and outputs are those of the manifest (`graph`), followed by one output <input>.written for each input that
    custom operators write in place. The token axis is symbolic if the graph serves several buckets. place(location)
    returns the path of a data file relative to the ONNX file.
    """
    values = {v.name: v for v in (*mindir.inputs, *mindir.parameters)}
    t = Translation(mindir, {}, dict(values))
    for op in mindir.operations:
        translate_operation(t, op)
    outputs = {}
    for spec, name in zip(graph.outputs, _output_names(t), strict=True):
        outputs[name] = helper.make_tensor_value_info(spec.name, _kind(spec.dtype), _output_shape(spec, graph))
    for new, old in t.mutated.items():
        outputs[new] = helper.make_tensor_value_info(old + WRITTEN, _kind(values[old].dtype), values[old].shape)
    _rename(t, {old: info.name for old, info in outputs.items()})
    model = helper.make_model(
        helper.make_graph(
            t.nodes,
            Path(graph.file).stem,
            [helper.make_tensor_value_info(s.name, _kind(s.dtype), _input_shape(s, graph)) for s in graph.inputs],
            list(outputs.values()),
            [*(_external(p, place) for p in mindir.parameters), *t.initializers.values()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        producer_name=PRODUCER,
    )
    model.ir_version = helper.find_min_ir_version_for(model.opset_import[:1])
    return model


def _output_names(t: Translation) -> list[str]:
    value = t.values[t.graph.output]
    return list(value) if isinstance(value, tuple) else [value]


def _rename(t: Translation, names: dict[str, str]) -> None:
    """Give each output its name in the manifest. An output that no node produces goes through an Identity."""
    made = {name for node in t.nodes for name in node.output}
    for node in t.nodes:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) if name in made else name for name in values]
    for old, new in names.items():
        if old not in made:
            t.nodes.append(helper.make_node("Identity", [old], [new], name=new))


def _input_shape(spec: TensorSpec, graph: Graph) -> list[int | str]:
    """Return a shape in which the dimensions that differ between the graph's buckets are symbolic."""
    if len(graph.buckets) == 1:
        return list(spec.shape)
    other = shape_at(spec, graph.bucket, graph.bucket + 1)
    return [n if n == m else _symbol(n // graph.bucket) for n, m in zip(spec.shape, other, strict=True)]


def _output_shape(spec: TensorSpec, graph: Graph) -> list[int | str]:
    """Return an output's shape. New cache rows [B, G, S, D] have a token axis; logits [B, V] have none."""
    shape: list[int | str] = list(spec.shape)
    if len(graph.buckets) > 1 and spec.name.startswith(("k_new.", "v_new.")):
        shape[2] = TOKENS
    return shape


def _symbol(times: int) -> str:
    return TOKENS if times == 1 else f"{TOKENS}_x{times}"


def _kind(dtype: str) -> int:
    return int(TensorProto.DataType.Value("FLOAT" if dtype == "float32" else dtype.upper()))


def _external(parameter: Parameter, place: Callable[[str], str]) -> TensorProto:
    tensor = TensorProto(
        name=parameter.name,
        data_type=_kind(parameter.dtype),
        dims=parameter.shape,
        data_location=TensorProto.EXTERNAL,
    )
    where = {"location": place(parameter.location), "offset": parameter.offset, "length": parameter.length}
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _placer(source: Path, folder: Path) -> Callable[[str], str]:
    """Return place() for data files in `source`, relative to an ONNX file in `folder`."""
    placed: dict[str, str] = {}

    def place(location: str) -> str:
        if location not in placed:
            data, home = (source / location).resolve(), folder.resolve()
            if data.is_relative_to(home):
                placed[location] = data.relative_to(home).as_posix()
            else:
                placed[location] = _copy(data, folder)
        return placed[location]

    return place


def _copy(data: Path, folder: Path) -> str:
    size, free = data.stat().st_size, shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free; a copy of {data.name} needs {size / 1e9:.1f} GB. "
            f"Use --onnx {os.path.relpath(data.parent)}: the twin needs no copy there"
        )
    copy = folder / data.name
    with data.open("rb") as source, output_file.replaced(copy, lambda file: True, "the weights of a graph") as file:
        shutil.copyfileobj(source, file, 1 << 24)
    return data.name
