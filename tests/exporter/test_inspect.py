"""What `edgellama inspect` prints, against figures counted by other means."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import onnx
import pytest

from edgellama.__main__ import main
from edgellama.artifact.manifest import Artifact, Conversion, file_entry, read_manifest, write_manifest
from edgellama.exporter.mindir.graph import MindIRGraph, Operation, Value, read
from edgellama.exporter.plan.memory import peak_activations, run_time_memory
from edgellama.exporter.tables import size


@pytest.fixture
def printed(tiny_artifact: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["inspect", str(tiny_artifact)]) == 0
    return capsys.readouterr().out


def row(printed: str, first: str) -> str:
    (line,) = (line for line in printed.splitlines() if re.match(rf"\s*{re.escape(first)}\s", line))
    return line


def test_tables_say_what_the_manifest_says(printed: str, tiny_artifact: Path) -> None:
    manifest = Artifact.open(tiny_artifact).manifest
    assert "2 layers, hidden 64, 4 heads, 2 key/value heads, head size 16, MLP 96, vocabulary 264" in printed
    assert "portable (op set portable, weights fp32)" in printed
    graph = row(printed, manifest.graphs[0].file)
    assert "1, 4, 16" in graph
    assert re.search(r"23 tensors, \d+ kB", graph)  # 21 of the checkpoint, 2 rotary tables
    assert manifest.parity is not None
    assert f"{manifest.parity.max_abs_logit_error:.2e}" in printed
    assert f"{manifest.parity.top1_agreement:.1%} of {manifest.parity.steps} positions" in printed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain", "llama, every token sees all earlier tokens"),
        ("mistral", "mistral, every token sees all earlier tokens"),
        ("mistral-window-17", "mistral, sliding window of 17 tokens in 2 of 2 layers"),
        ("qwen2-windows-16", "qwen2, sliding window of 16 tokens in 1 of 3 layers"),
    ],
)
def test_the_kind_of_attention(
    name: str, message: str, config_artifacts: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    assert main(["inspect", str(config_artifacts[name])]) == 0
    assert message in capsys.readouterr().out


def test_operators_are_counted(printed: str, tiny_artifact: Path) -> None:
    """Each of the 2 layers has 7 linear layers, plus the head. A layer has 4 products of activations, not 3."""
    assert row(printed, "MatMul").split()[-1] == str(7 * 2 + 1)
    assert row(printed, "BatchMatMul").split()[-1] == str(4 * 2)
    assert row(printed, "Softmax").split()[-1] == "2"
    operations = read(tiny_artifact / Artifact.open(tiny_artifact).manifest.graphs[0].file).operations
    counts = re.findall(r"^ [A-Z]\w+ +(\d+) *$", printed, re.MULTILINE)
    assert sum(map(int, counts)) == len(operations)


def test_inputs_and_outputs_with_the_caches_in_one_line(printed: str) -> None:
    assert "caches: 4, k_cache.0 ... v_cache.1" in printed
    assert "[2, 2, 64, 16]" in printed
    assert "new cache rows: 4" in printed
    assert re.search(r"in +self_mask +float32 +\[2, 1, 32, 16\] +4\.1 kB", printed)
    assert re.search(r"out +logits +float32 +\[2, 264\] +2\.11 kB", printed)
    assert len(re.findall(r"k_cache|v_cache", printed)) == 2


def test_memory_adds_up(printed: str, tiny_artifact: Path) -> None:
    manifest = Artifact.open(tiny_artifact).manifest
    memory = run_time_memory(manifest, {g.file: read(tiny_artifact / g.file) for g in manifest.graphs})
    assert memory.weights == sum(p.stat().st_size for p in (tiny_artifact / "graphs").glob("*.data"))
    assert memory.cache == 2 * 2 * (2 * 2 * 64 * 16) * 4
    parts = (memory.weights, memory.copies, memory.cache, memory.activations, memory.libraries)
    assert memory.total == sum(parts)
    assert row(printed, "total").split()[-2:] == size(memory.total).split()


def operation(name: str, operator: str, inputs: tuple[str, ...], elements: int) -> Operation:
    return Operation(name, operator, inputs, {}, (Value(name, "float32", (elements,)),))


def test_peak_of_activations_follows_lifetimes() -> None:
    """a (100) and b (50) are alive together; then b's view and c (10), without a; the output d stays until the end."""
    operations = (
        operation("a", "Square", ("x",), 100),
        operation("b", "ReduceMean", ("a",), 50),
        operation("view", "Reshape", ("b",), 50),
        operation("c", "Square", ("view",), 10),
        operation("d", "Add", ("c", "view"), 80),
        operation("e", "Add", ("d", "c"), 1),
        operation("pair", "MakeTuple", ("d", "e"), 81),
    )
    graph = MindIRGraph((Value("x", "float32", (100,)),), (), {}, operations, "pair")
    assert peak_activations(graph) == 4 * (100 + 50)
    assert peak_activations(MindIRGraph(graph.inputs, (), {}, operations[1:], "pair")) == 4 * (50 + 10 + 80)


def test_sizes_are_formatted_for_readers() -> None:
    assert [size(n) for n in (0, 999, 1000, 23_456, 538_584_384, 3.2e9)] == [
        "0 B",
        "999 B",
        "1 kB",
        "23.5 kB",
        "539 MB",
        "3.20 GB",
    ]


def test_onnx_is_written_on_demand(tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "onnx"
    assert main(["inspect", str(tiny_artifact), "--onnx", str(out)]) == 0
    (written,) = out.glob("*.onnx")
    assert str(written) in capsys.readouterr().err.replace("\n", "")
    onnx.checker.check_model(written, full_check=True)


def test_a_converted_graph_is_not_read(tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A file that is not a MindIR replaces the graph that CANN compiles."""
    copy = tmp_path / "converted"
    shutil.copytree(tiny_artifact, copy)
    manifest = read_manifest(copy)
    graph = manifest.graphs[0]
    (copy / graph.file).write_bytes(b"compiled")
    entry = file_entry(copy, graph.file)
    compiled = dataclasses.replace(graph, sha256=entry.sha256, bytes=entry.bytes)
    made = Conversion("Ascend310B4", graph.buckets, "8.2", "2.7.0")
    write_manifest(copy, dataclasses.replace(manifest, opset="ascend", graphs=(compiled,), converted=made))
    assert main(["inspect", str(copy)]) == 0
    assert "for Ascend310B4, by CANN 8.2 and MindSpore Lite 2.7.0" in capsys.readouterr().out
    assert main(["inspect", str(copy), "--onnx", str(tmp_path / "onnx")]) == 2
    assert "was compiled by CANN and has no ONNX form" in capsys.readouterr().err


def test_an_invalid_artifact_is_a_one_line_error(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "not an exported artifact" in capsys.readouterr().err
    copy = Path(shutil.copytree(tiny_artifact, tmp_path / "cut"))
    (graph,) = (copy / "graphs").glob("*.mindir")
    graph.write_bytes(graph.read_bytes()[:-1])
    assert main(["inspect", str(copy)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert str(graph) in message
