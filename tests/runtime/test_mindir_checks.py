"""Graph files from a stranger: only what an export writes reaches MindSpore Lite's parser, and a crash is an error."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from edgellama.artifact.manifest import Artifact, Conversion, Graph, digest, file_entry, write_manifest
from edgellama.backend.trial import try_in_child
from edgellama.engine.engine import Engine
from edgellama.errors import UserError
from edgellama.mindir.check import check_graphs, difference, graph_bytes
from edgellama.mindir.network import Network
from edgellama.mindir.reader import MalformedError, Reader
from edgellama.mindir.schema import MESSAGES
from support.ascend_artifact import ascend_manifest, compiled
from support.checkpoints import export_all
from support.child import run_support
from support.exported import scratch, tiny_checkpoint
from support.mindir_mutations import Field, encode, tree, walk, with_graph

MUTATIONS = 15  # of each kind, for each artifact; the campaign of `make torture` has more
TARGETS = {"cpu": "int8", "portable": "fp32", "ascend310p": "int8", "ascend310b": "fp16"}
SIZES = {"context": 32, "buckets": (4,), "verify": False}


@pytest.fixture(scope="module")
def exported() -> dict[str, Path]:
    """An artifact of each op set, with windows, biases and a tied head among them."""
    folder = scratch() / "mindir-checks"
    odd = tiny_checkpoint(model_type="qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1)
    jobs = [
        {"model": odd if weights != "int8" else tiny_checkpoint(), "target": target, "weights": weights}
        | {"out": folder / target, **SIZES}
        for target, weights in TARGETS.items()
    ]
    return dict(zip(TARGETS, export_all(jobs), strict=True))


def test_what_an_export_writes_is_accepted(exported: dict[str, Path], tmp_path: Path) -> None:
    for folder in exported.values():
        check_graphs(Artifact.open(folder))
    ascend_manifest(tmp_path)
    check_graphs(Artifact.open(tmp_path))


def test_what_mindspore_drops_is_not_built(tmp_path: Path) -> None:
    """Products with 1, conversions and their return, and Reshape to the same shape. An export compares its graphs."""
    models = {
        "scale": ("portable", {"model_type": "granite", "attention_multiplier": 1.0}),
        "before": ("portable", {"model_type": "gemma2", "attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0}),
        "after": ("portable", {"model_type": "gemma2", "attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.5}),
        "convert": ("ascend310b", {"model_type": "olmo2"}),
        "reshape": ("ascend310p", {"model_type": "qwen3", "head_dim": 32, "num_key_value_heads": 1}),
    }
    jobs = [
        {"model": tiny_checkpoint(**config), "target": target, "out": tmp_path / name, **SIZES}
        for name, (target, config) in models.items()
    ]
    for folder in export_all(jobs):
        assert check_graphs(Artifact.open(folder))


def test_no_mutation_reaches_native_code(exported: dict[str, Path], tmp_path: Path) -> None:
    """The child loads and runs what is accepted; a crash would be its exit status."""
    done = run_support("mindir_campaign", str(tmp_path), str(MUTATIONS), "0", *map(str, exported.values()))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [counts["artifact"] for counts in found] == list(exported)
    for counts in found:
        assert counts.pop("longest") < 10
        assert counts == {"artifact": counts["artifact"], "refused": 2 * MUTATIONS}


def edited(folder: Path, out: Path, name: str, change: Any, place: int = 0) -> Artifact:
    """Returns a copy of an artifact in whose graph `change(holder, at)` edited the field `name` of number `place`."""
    path = folder / Artifact.open(folder).manifest.graphs[0].file
    fields = tree(path.read_bytes())
    holder, at, _ = [found for found in walk(fields) if found[2] == name][place]
    change(holder, at)
    return Artifact.open(with_graph(folder, out, encode(fields)))


def value(new: Any) -> Any:
    def change(holder: list[Field], at: int) -> None:
        holder[at].value = new

    return change


def wire_type_0(holder: list[Field], at: int) -> None:
    holder[at] = Field(holder[at].number, 0, 5)


@pytest.mark.parametrize(
    ("target", "name", "change", "message"),
    [
        (
            "portable",
            "ExternalDataProto.location",
            value(b"/etc/passwd"),
            r"graph.parameter\[0\].external_data.location is '/etc/passwd'; needed: '4.data'",
        ),
        ("portable", "ExternalDataProto.offset", value(1 << 40), r"external_data.offset is 1099511627776; needed: 64"),
        ("ascend310p", "ExternalDataProto.length", value(-1), r"external_data.length is -1; needed"),
        ("portable", "NodeProto.input", value(b"nowhere"), r"graph.node\[1\].input\[0\] is 'nowhere'; needed: 'model"),
        ("cpu", "TensorProto.dims", value(-1), r"graph.node\[0\].attribute\[0\].tensors\[0\].dims\[0\] is -1; needed"),
        ("cpu", "AttributeProto.ints", value(57), r"primitives\[0\].attribute\[5\].values\[1\].values\[0\].ints\[0\]"),
        ("portable", "PrimitiveProto.op_type", value(b"Fill"), r"primitives\[0\].op_type is 'Fill'; needed: 'Gather'"),
        ("portable", "NodeProto.op_type", lambda holder, at: holder.pop(at), r"graph.node\[0\].op_type is missing"),
        ("cpu", "ModelProto.ir_version", value(b"\xff"), r"byte 2: ir_version is not UTF-8"),
        ("cpu", "GraphProto.name", wire_type_0, r"byte [\d,]+: graph.name has wire type 0; needed: 2"),
        (
            "portable",
            "ModelProto.graph",
            lambda holder, at: holder.append(holder[at]),
            r"byte [\d,]+: graph occurs twice",
        ),
        (
            "cpu",
            "ModelProto.graph",
            lambda holder, at: holder.append(holder.pop(at)),
            "in another order than an export",
        ),
    ],
)
def test_the_error_names_the_field(
    exported: dict[str, Path], tmp_path: Path, target: str, name: str, change: Any, message: str
) -> None:
    opened = edited(exported[target], tmp_path / "changed", name, change)
    with pytest.raises(UserError, match=rf"graphs/\d+.mindir: .*({message}).* Export again with this release"):
        check_graphs(opened)


@pytest.mark.parametrize(
    ("target", "key", "new", "message"),
    [
        ("cpu", "hidden_size", 128, r"manifest.json lists the input .*the network takes"),
        ("cpu", "rms_norm_eps", 0.5, r"primitives\[\d+\].attribute"),
        ("cpu", "rms_norm_eps", 1e300, "config.rms_norm_eps is 1e\\+300 in manifest.json; needed: a number above 0"),
        ("portable", "intermediate_size", 95, r"its data file has .* bytes; the weights take"),
        ("portable", "model_type", "gpt2", "config.model_type is 'gpt2' in manifest.json; needed: one of llama"),
        ("portable", "layer_types", ["full_attention"] * 2, r"the network takes"),
        ("ascend310p", "head_dim", None, "config.head_dim is None in manifest.json; needed: a positive whole number"),
    ],
)
def test_a_config_that_the_graph_does_not_have_is_refused(
    exported: dict[str, Path], tmp_path: Path, target: str, key: str, new: Any, message: str
) -> None:
    artifact = Artifact.open(exported[target])
    manifest = dataclasses.replace(artifact.manifest, config={**artifact.manifest.config, key: new})
    with pytest.raises(UserError, match=message):
        check_graphs(Artifact(artifact.path, manifest))


def test_a_tensor_that_mindspore_lite_cannot_count_is_refused(exported: dict[str, Path]) -> None:
    """Its element count has 31 bits. Here the bucket, which replaces the dynamic axis of Ascend, is too large."""
    artifact = Artifact.open(exported["ascend310b"])
    graph = artifact.manifest.graphs[0]
    large = 1 << 26
    inputs = (dataclasses.replace(graph.inputs[0], shape=(large, 1)), *graph.inputs[1:])
    graph = dataclasses.replace(graph, bucket=large, buckets=(large,), inputs=inputs)
    with pytest.raises(UserError, match=r"has [\d,]+ elements; MindSpore Lite takes fewer than 2,147,483,648"):
        graph_bytes(artifact.manifest, Network.of(artifact.manifest), graph, graph.file)


def converted(folder: Path, data: bytes, **files: bytes) -> Artifact:
    """Returns a converted artifact with this graph file and these data files, whose hashes are right."""
    made = ascend_manifest(folder)
    (folder / made.graphs[0].file).write_bytes(data)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    entry = dataclasses.asdict(file_entry(folder, made.graphs[0].file))
    graph: Graph = dataclasses.replace(made.graphs[0], **entry, data=tuple(file_entry(folder, x) for x in files))
    write_manifest(folder, dataclasses.replace(made, graphs=(graph,)))
    return Artifact.open(folder)


def test_a_converted_graph_reads_only_the_data_that_the_manifest_lists(tmp_path: Path) -> None:
    inputs = ascend_manifest(tmp_path).graphs[0].inputs
    check_graphs(converted(tmp_path, compiled(inputs, external=("data_0", 2, 6)), data_0=b"8 bytes."))
    for external, message in (
        (("data_0", 2, 7), r"bytes 2 to 9 of a file of 8 bytes"),
        (("data_0", -1, 2), r"bytes -1 to 1 of a file of 8 bytes"),
        (("/etc/passwd", 0, 1), r"location is '/etc/passwd'; needed: a path inside"),
        (("../data_0", 0, 1), r"location is '../data_0'; needed: a path inside"),
        (("manifest.json", 0, 1), r"location is 'manifest.json', which manifest.json does not list"),
    ):
        opened = converted(tmp_path, compiled(inputs, external=external), data_0=b"8 bytes.")
        with pytest.raises(UserError, match=rf"external_data.*{message}.* Convert the exported artifact again"):
            check_graphs(opened)


def test_a_graph_file_that_is_a_link_is_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    """Otherwise native code might read the data that lies beside the target, which nobody has checked."""
    folder = Path(shutil.copytree(exported["portable"], tmp_path / "linked"))
    graph = folder / "graphs" / "4.mindir"
    (folder / "other").mkdir()
    graph.rename(folder / "other" / "4.mindir")
    graph.symlink_to("../other/4.mindir")
    with pytest.raises(UserError, match=r"4.mindir: a link; needed: the file itself. Copy it into the folder"):
        check_graphs(Artifact.open(folder))


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_a_host_artifact_does_not_pass_as_a_converted_one(exported: dict[str, Path], target: str) -> None:
    """Otherwise the weaker checks of a converted graph, without a child process, would admit it to this process."""
    artifact = Artifact.open(exported[target])
    made = Conversion("Ascend310B4", artifact.manifest.buckets, "8.2", "2.7.0")
    claimed = Artifact(artifact.path, dataclasses.replace(artifact.manifest, converted=made))
    with pytest.raises(UserError, match=r"only artifacts of Ascend targets are converted. .* Export again"):
        Engine(claimed)


@pytest.mark.parametrize(
    ("name", "place", "change", "message"),
    [
        ("NodeProto.input", 0, value(b"nowhere"), r"graph.node\[0\] reads 'nowhere', which no node before it computes"),
        ("NodeProto.input", 0, value(b"out"), r"graph.node\[0\] reads 'out', which no node before it computes"),
        ("NodeProto.op_type", 0, value(b"REF::x"), r"op_type is 'REF::x', which is no primitive of the file"),
        ("NodeProto.output", 0, lambda holder, at: holder.pop(at), r"graph.node\[0\] has no output"),
        ("TensorProto.dims", 0, value(1 << 50), r"dims is \[1125899906842624\]"),
        ("TensorProto.dims", 0, value(-7), r"dims is \[-7\]; needed: at most 8 sizes, -1 or more"),
        ("TensorProto.raw_data", 0, value(b"longer"), r"raw_data has 6 bytes; its dtype and shape need 2"),
        ("ValueInfoProto.name", 0, value(b"other"), r"its inputs are not those of manifest.json: 'other'"),
        ("ModelProto.little_endian", 0, value(0), r"little_endian is 0; needed: 1"),
    ],
)
def test_a_converted_graph_is_bounded(tmp_path: Path, name: str, place: int, change: Any, message: str) -> None:
    ascend_manifest(tmp_path / "made")
    opened = edited(tmp_path / "made", tmp_path / "changed", name, change, place)
    with pytest.raises(UserError, match=rf"{message}.* Convert the exported artifact again"):
        check_graphs(opened)


def test_the_reader_agrees_with_protobuf(exported: dict[str, Path]) -> None:
    """The table of messages is mind_ir.proto's, and reading is what protobuf reads."""
    from edgellama.exporter.mindir.schema import pb

    kinds = {1: "double", 2: "float", 3: "int", 4: "int", 5: "int", 8: "int", 9: "text", 12: "bytes", 14: "int"}

    def descriptors(found: Any) -> Any:
        for message in found:
            yield message
            yield from descriptors(message.nested_types)

    theirs = {
        message.name: {
            field.number: (
                field.name,
                kinds[field.type] if field.message_type is None else field.message_type.name,
                field.is_repeated,
            )
            for field in message.fields
        }
        for message in descriptors(pb.DESCRIPTOR.message_types_by_name.values())
    }
    assert {name: {n: tuple(f) for n, f in fields.items()} for name, fields in MESSAGES.items()} == theirs
    data = next((exported["portable"] / "graphs").glob("*.mindir")).read_bytes()
    read = Reader(memoryview(data)).read()
    model = pb.ModelProto.FromString(data)
    nodes = [node for path, graph in read.messages("graph") for _, node in graph.messages("node")]
    assert [node.texts("input") for node in nodes] == [list(node.input) for node in model.graph.node]
    assert encode(tree(data)) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x0a\x05ab", "byte 0: ir_version has 5 bytes; 2 are left"),
        (
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            "a number has more bytes than it needs, or more than 64 bits",
        ),
        (b"\x50\x81\x00", "a number has more bytes than it needs"),
        (b"\x50" + b"\x80" * 11, "a number is cut off or has more than 64 bits"),
        (b"\x50", "a number is cut off"),
        (b"\x53", "byte 0: little_endian has wire type 3; needed: 0"),
        (b"\x00\x00", "ModelProto has no field of number 0"),
        (b"\x3a\x03\x0a\x01\x42", "byte 5: a number is cut off"),
    ],
)
def test_malformed_bytes_are_named(data: bytes, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        Reader(memoryview(data)).read()


def test_deep_nesting_ends_the_reader_early() -> None:
    data = b""
    for _ in range(3000):
        data = encode([Field(17, 2, data)])
    with pytest.raises(MalformedError, match="nested more than 40 levels deep"):
        Reader(memoryview(encode([Field(12, 2, encode([Field(3, 2, data)]))]))).read()
    assert "nested" in difference(encode([Field(12, 2, encode([Field(3, 2, data)]))]), b"")


LITE = """
import os, signal, time
from types import SimpleNamespace
class Context:
    def __init__(self): self.ascend = SimpleNamespace()
class ModelType: MINDIR = 0
class Model:
    def build_from_file(self, path, *rest, **named):
        {what}
    def get_inputs(self): return []
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """load(what) tries a converted artifact in a real child process, whose mindspore_lite does `what`.

    MindSpore Lite for Ascend is SIMULATED by a module with its functions; the process and its crash are real.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lite"))
    (tmp_path / "lite").mkdir()
    ascend_manifest(tmp_path / "artifact")
    time.sleep(0.2)  # until the clock of the file system has moved on

    def load(what: str, longest: float = 60.0) -> None:
        (tmp_path / "lite" / "mindspore_lite.py").write_text(LITE.format(what=what))
        try_in_child(Artifact.open(tmp_path / "artifact"), 0, "2.7", longest)

    return load


def test_a_crash_of_the_child_is_an_error(child: Any) -> None:
    with pytest.raises(UserError, match=r"MindSpore Lite crashed while a child process loaded it \(signal 11\)"):
        child("os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(UserError, match=r"did not end within 3 seconds. Convert the exported artifact again"):
        child("time.sleep(100)", longest=3)
    child("raise RuntimeError('build failed')")  # loading in this process reports it
    with pytest.raises(UserError, match="crashed"):  # nothing was remembered
        child("os.abort()")


def test_a_load_that_went_well_is_remembered(child: Any, tmp_path: Path) -> None:
    child("pass")
    child("os.abort()")  # no child runs
    values = json.loads((tmp_path / "artifact/manifest.json").read_text())
    values["name"] = "other"
    values["digest"] = digest({key: value for key, value in values.items() if key != "digest"})
    (tmp_path / "artifact/manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="crashed"):  # another artifact
        child("os.abort()")
