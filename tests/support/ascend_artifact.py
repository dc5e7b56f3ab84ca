"""The toy of tiny.py as an artifact for Ascend: converted, or as `export` writes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgellama.artifact.manifest import Conversion, FileEntry, Graph, Manifest, TensorSpec, file_entry, write_manifest
from edgellama.mindir import ascend
from edgellama.mindir import encoding as proto
from edgellama.mindir.builder import HEADER, Builder, data_bytes
from edgellama.mindir.check import graph_bytes
from edgellama.mindir.network import Network
from support.tiny import DIM, GROUPS, HEADS, LAYERS, VOCAB, WIDTH, manifest

BATCH, CONTEXT, GEARS = 2, 64, (1, 4, 16)
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 8,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": DIM,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
}


def ascend_manifest(folder: Path, **changes: Any) -> Manifest:
    """Writes the toy as an artifact of the ascend op set that was converted for an Ascend310B4.

    With converted=None it is the artifact of an export, whose weights are zeros.
    """
    made = manifest(folder, BATCH, CONTEXT, GEARS)
    inputs = (
        TensorSpec("tokens_by_step", "int32", (GEARS[-1], BATCH)),
        TensorSpec("start", "int32", (BATCH,)),
        TensorSpec("length", "int32", (BATCH,)),
        *(spec for spec in made.graphs[0].inputs if "_cache." in spec.name),
    )
    graph = dataclasses.replace(made.graphs[0], inputs=inputs, outputs=made.graphs[0].outputs[:1])
    (folder / graph.file).write_bytes(compiled(graph.inputs))
    fields: dict[str, Any] = {
        "target": "ascend310b",
        "opset": "ascend",
        "graphs": (_hashed(folder, graph),),
        "cache": dataclasses.replace(made.cache, policy="in_place"),
        "converted": Conversion("Ascend310B4", GEARS, "8.2", "2.7.0"),
    }
    made = dataclasses.replace(made, **{**fields, **changes})
    if made.converted is None and made.target == "ascend310b":
        made = _exported(folder, made)
    write_manifest(folder, made)
    return made


def compiled(
    inputs: Sequence[TensorSpec], program: bytes = b"om", external: tuple[str, int, int] | None = None
) -> bytes:
    """Returns a MindIR file with the structure of a converted one: a node CustomAscend, and its program as a constant.

    - program: bytes that stand for what CANN compiled.
    - external: file, offset and length of the program, if it lies outside the graph file.
    """
    weight = proto.tensor((len(program),), "uint8", name="program", raw=b"" if external else program, external=external)
    names = [spec.name for spec in inputs]
    node = b"".join(proto.block(1, name) for name in [*names, "program"])
    node += proto.block(2, "out") + proto.block(3, "out") + proto.block(4, "REF::CustomAscend:0")
    values = [
        proto.block(5, proto.block(1, spec.name) + proto.block(2, proto.tensor(spec.shape, "int32"))) for spec in inputs
    ]
    graph = proto.block(1, node) + proto.block(3, weight) + b"".join(values) + proto.block(6, proto.block(1, "out"))
    primitive = proto.block(1, "CustomAscend:0") + proto.block(2, "CustomAscend")
    return proto.block(7, graph) + proto.whole(10, 1) + proto.block(12, primitive)


def _exported(folder: Path, made: Manifest) -> Manifest:
    """Writes the graph and data file that an export with the config of the toy writes."""
    cache = dataclasses.replace(made.cache, dtype="float16")
    made = dataclasses.replace(made, config=CONFIG, weights_format="fp16", cache=cache)
    network = Network.of(made)
    builder = Builder()
    ascend.build(builder, network)
    inputs = tuple(
        dataclasses.replace(spec, shape=tuple(GEARS[-1] if n == -1 else n for n in spec.shape))
        for spec in builder.inputs
    )
    (folder / "step.data").write_bytes(HEADER.ljust(data_bytes(builder.weights), b"\0"))
    data: tuple[FileEntry, ...] = (file_entry(folder, "step.data"),)
    graph = dataclasses.replace(made.graphs[0], inputs=inputs, data=data)
    (folder / graph.file).write_bytes(graph_bytes(made, network, graph, graph.file))
    return dataclasses.replace(made, graphs=(_hashed(folder, graph),))


def _hashed(folder: Path, graph: Graph) -> Graph:
    return dataclasses.replace(graph, **dataclasses.asdict(file_entry(folder, graph.file)))
