"""The benchmark on tiny artifacts: its report matches its schema, and its figures follow from its samples."""

from __future__ import annotations

import hashlib
import importlib
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama import output_file
from edgellama.__main__ import main
from edgellama.artifact import sizes
from edgellama.artifact.manifest import Artifact, CacheSpec, FileEntry, Graph, Manifest, TensorSpec
from edgellama.backend.cpu_kernels import limit_isa
from edgellama.bench import command, fresh, machine, overhead, report
from edgellama.bench.workload import Settings, Workload
from edgellama.engine.engine import Engine
from edgellama.errors import UserError
from edgellama.kernels.cpu.library import available_isas, best_isa
from support import tiny
from support.exported import export_tiny

KEYS = {
    "artifact": {
        "name", "digest", "target", "opset", "weights_format", "cache_dtype", "batch", "context", "buckets",
        "weights_bytes", "step_weights_bytes", "cache_bytes", "kernel_abi",
    },
    "machine": {"cpu", "architecture", "processors", "memory_bytes", "system"},
    "versions": {"python", "numpy", "mindspore_lite", "tokenizers", "edgellama"},
    "settings": {"threads", "weights_memory", "isa", "repeats", "steps", "prompt_lengths", "depths", "batches"},
    "bandwidth": {"method", "buffer_bytes", "rate"},
    "loop": {"encode", "detokenize", "greedy"},
    "first_token": {"fresh", "cached"},
    "load": {"process", "engine"},
    "memory": {"peak_bytes", "after_load_bytes", "filled_cache_bytes", "overhead_bytes"},
    "output": {"prompt_tokens", "new_tokens", "sha256"},
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tiny_artifact: Path) -> dict[str, Any]:
    """A report on the tiny artifact (2 rows, context 64), with 2 repeats instead of 5."""
    return command.bench(tiny_artifact, Settings(threads=1, prompt_lengths=(5, 500), depths=(8, 4096), repeats=2))


def toy_engine(folder: Path, **changes: Any) -> tuple[Engine, tiny.Weights]:
    artifact = tiny.artifact(folder, **changes)
    weights = tiny.Weights(artifact.manifest.context)
    return Engine(artifact, 1, build=lambda path: tiny.NumpyGraph(weights, artifact.manifest.graphs[0])), weights


def test_the_report_has_the_documented_keys(found: dict[str, Any]) -> None:
    assert found["schema_version"] == 1
    assert set(found) == {"schema_version", "prefill", "decode", "step_overhead", "prompt_lookup", *KEYS}
    for name, keys in KEYS.items():
        assert set(found[name]) == keys, name
    for key in [*found, *(key for keys in KEYS.values() for key in keys)]:
        assert key in (importlib.import_module("edgellama.bench").__doc__ or ""), key
    assert json.loads(json.dumps(found)) == found


def test_lengths_are_clipped_and_every_batch_is_measured(found: dict[str, Any]) -> None:
    # context 64, 16 steps: no depth beyond 48; rows 1 and 2, the second at the shortest length
    assert [(e["prompt_tokens"], e["rows"]) for e in found["prefill"]] == [(5, 1), (64, 1), (5, 2)]
    assert [(e["depth"], e["rows"]) for e in found["decode"]] == [(8, 1), (48, 1), (8, 2)]
    assert found["settings"]["batches"] == [1, 2]


def test_what_is_clipped_is_said(tiny_artifact: Path) -> None:
    manifest = Artifact.open(tiny_artifact).manifest
    notes = Settings(threads=1, prompt_lengths=(5, 65, 500), depths=(8, 48, 49), steps=64).clipped(manifest)
    assert notes == [
        "steps 64: more than the artifact holds, measured at 63 (the context of 64 tokens less one)",
        "prompt lengths 65, 500: more than the artifact holds, measured at 64 (the context of 64 tokens)",
        "depths 8, 48, 49: more than the artifact holds, measured at 1 (the context of 64 tokens less 63 steps)",
    ]
    assert Settings(threads=1, prompt_lengths=(64,), depths=(48,)).clipped(manifest) == []


def test_figures_follow_from_the_samples(found: dict[str, Any]) -> None:
    for entry in found["prefill"] + found["decode"]:
        times = entry["seconds"]
        assert len(times["samples"]) == 2 and times["median"] == statistics.median(times["samples"])
        assert 0 < times["min"] == min(times["samples"]) <= times["max"] == max(times["samples"])
    for entry in found["prefill"]:
        done = entry["prompt_tokens"] * entry["rows"]
        assert entry["tokens_per_second"] == pytest.approx(done / entry["seconds"]["median"])
    for entry in found["decode"]:
        median = entry["seconds"]["median"]
        assert 0 < entry["model_seconds"]["median"] < median
        assert entry["tokens_per_second"] == pytest.approx(entry["rows"] / median)
        assert entry["rate"] == pytest.approx(entry["bytes_per_step"] / median)
        assert entry["bandwidth_share"] == pytest.approx(entry["rate"] / found["bandwidth"]["rate"]["max"])


def test_overhead_is_what_a_step_takes_beside_the_graph(found: dict[str, Any]) -> None:
    entries = {entry["name"]: entry for entry in found["step_overhead"]}
    assert list(entries) == list(overhead.SETTINGS)
    documented = importlib.import_module("edgellama.bench").__doc__ or ""
    for name, entry in entries.items():
        assert entry["settings"] == overhead.SETTINGS[name] and all(key in documented for key in entry)
        assert len(entry["seconds"]["samples"]) == 2 and len(entry["large_vocabulary_seconds"]["samples"]) == 2
        for added, step in zip(entry["seconds"]["samples"], entry["step_seconds"]["samples"], strict=True):
            assert 0 < added < step
        assert entry["share"] == entry["seconds"]["median"] / entry["step_seconds"]["median"]
        assert entry["large_vocabulary_seconds"]["min"] > 0


def test_overhead_counts_what_the_loop_adds_and_not_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the parts move: the graph takes 100 ms, choosing a token 10."""
    engine, _ = toy_engine(tmp_path)
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    graph = engine._ready[1].built
    run, choose = graph.run, overhead.TokenSelector.__call__

    def passing(inner: Any, seconds: float) -> Any:
        def call(*arguments: Any) -> Any:
            now[0] += seconds
            return inner(*arguments)

        return call

    monkeypatch.setattr(graph, "run", passing(run, 0.1))
    monkeypatch.setattr(overhead.TokenSelector, "__call__", passing(choose, 0.01))
    added, step = overhead.Overhead(Workload(engine), np.arange(8), steps=6).step("top_p")
    assert (added, step) == pytest.approx((0.01, 0.11))


def test_load_and_memory_are_those_of_a_fresh_process(found: dict[str, Any]) -> None:
    load, memory, artifact = found["load"], found["memory"], found["artifact"]
    assert len(load["process"]["samples"]) == 2
    assert 0 < load["engine"]["median"] < load["process"]["median"] < 60
    assert artifact["weights_bytes"] + artifact["cache_bytes"] < memory["after_load_bytes"] <= memory["peak_bytes"]
    assert memory["filled_cache_bytes"] == artifact["cache_bytes"] * 49 // 64  # one step after the deepest depth, 48
    held = artifact["weights_bytes"] + memory["filled_cache_bytes"]
    assert memory["overhead_bytes"] == memory["peak_bytes"] - held
    assert artifact["cache_bytes"] == 2 * 2 * (2 * 2 * 64 * 16) * 4  # layers, k and v, [B, G, C, D], float32


def test_the_table_says_what_the_report_holds(found: dict[str, Any]) -> None:
    text = report.table(found)
    step = found["decode"][1]["seconds"]["median"] * 1e3
    assert f"{step:.2f}" in text and found["output"]["sha256"][:16] in text and found["machine"]["cpu"] in text
    lines = [line for line in text.splitlines() if line.startswith(("decode at", "8 tokens", "48 tokens"))]
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1  # the columns are aligned


def test_the_command_prints_json_alone(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["--prompt-lengths", "3", "--depths", "3", "--batches", "2", "--repeats", "1", "--steps", "2"]
    assert main(["bench", str(tiny_artifact), "--threads", "1", *lengths, "--json", "-"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(e["depth"], e["rows"]) for e in printed["decode"]] == [(3, 2)]
    assert printed["settings"]["threads"] == 1


def test_output_hash_is_that_of_the_greedy_continuation(tmp_path: Path) -> None:
    engine, weights = toy_engine(tmp_path, batch=2)
    load = Workload(engine)
    ids = [int(token) for token in load.tokens[0, :32]]
    for _ in range(32):  # context 64
        ids.append(int(tiny.whole_text_logits(weights, ids)[-1].argmax()))
    expected = hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in ids[32:])).hexdigest()
    assert load.output() == {"prompt_tokens": 32, "new_tokens": 32, "sha256": expected}


def test_decode_steps_run_at_the_requested_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = toy_engine(tmp_path, batch=3)
    calls: list[tuple[list[int], list[int], int]] = []
    forward = engine.forward

    def noted(tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        calls.append((list(start), list(length), tokens.shape[1]))
        return forward(tokens, start, length)

    monkeypatch.setattr(engine, "forward", noted)
    load = Workload(engine)
    load.prefill(20, 2)
    seconds, in_graph = load.decode(20, 2, 3)
    assert calls == [
        ([0, 0, 0], [20, 20, 0], 20),
        ([20, 20, 0], [1, 1, 0], 1),
        ([21, 21, 0], [1, 1, 0], 1),
        ([22, 22, 0], [1, 1, 0], 1),
    ]
    assert 0 < in_graph < seconds


def cpu_manifest(tied: bool) -> Manifest:
    """A manifest as the cpu target writes it, with round sizes: batch 2, context 10, 1 layer, int8 cache."""
    step = (
        TensorSpec("tokens", "int32", (2, 1)),
        TensorSpec("start", "int32", (2,)),
        TensorSpec("length", "int32", (2,)),
    )
    caches = tuple(TensorSpec(f"{x}_cache.0", "int8", (2, 1, 10, 8)) for x in "kv")
    scales = tuple(TensorSpec(f"{x}_scale.0", "float16", (2, 1, 10)) for x in "kv")
    weights = (
        TensorSpec("rope.cos", "float32", (10, 4)),
        TensorSpec("rope.sin", "float32", (10, 4)),
        TensorSpec("model.embed_tokens.weight", "uint8", (4, 1000)),
        TensorSpec("model.layers.0.mlp.down_proj.weight", "uint8", (2, 300)),
        TensorSpec("model.norm.weight", "float32", (8,)),
        *(() if tied else (TensorSpec("lm_head.weight", "uint8", (4, 1000)),)),
    )
    graph = Graph("1.mindir", "", 1, 1, (1,), (*step, *caches, *scales, *weights), ())
    return Manifest(
        name="m", source=tiny.Source("m", "tests", None, None), config={"tie_word_embeddings": tied}, target="cpu",
        opset="cpu", weights_format="int8", batch=2, context=10, buckets=(1,), graphs=(graph,),
        weights=FileEntry("weights.safetensors", "", 9999), cache=CacheSpec("int8", "in_place", 1, (2, 1, 10, 8)),
        eos_token_id=(), bos_token_id=None, pad_token_id=None, tools={}, kernel_abi=1, parity=None,
    )  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_reads_its_weights_and_the_filled_cache(tied: bool) -> None:
    manifest = cpu_manifest(tied)
    # a tied embedding is the head, which is read whole; of an untied one only single rows are read
    assert sizes.step_weight_bytes(manifest) == 4000 + 600 + 32
    # k and v: 8 values of one byte and a scale of two bytes
    assert sizes.cache_bytes_per_token(manifest) == 2 * (8 + 2)
    assert sizes.cache_bytes(manifest) == 2 * 10 * 20
    # in the middle of 4 steps after 5 tokens, a step reads 7
    assert sizes.bytes_per_step(manifest, depth=5, rows=2, steps=4) == 4632 + 2 * 7 * 20
    assert sizes.weights_bytes(manifest) == 9999


def test_bandwidth_reads_the_whole_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SMALLEST_BUFFER", 1 << 16)
    small = machine.ReadBandwidth(1000, threads=3)
    assert small.buffer_bytes == 1 << 16  # a smaller buffer would measure the first-level cache
    large = machine.ReadBandwidth(1 << 20, threads=3)
    assert large.buffer_bytes == 1 << 20 == sum(part.nbytes for part in large._parts)
    assert len(large._parts) == 3 and large.measure() > 0
    assert large.method.startswith("fastest of 6 readers: ") and large.method.split(": ")[1] in large._readers
    large._buffer.view(np.uint32)[:] = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, np.uint32)
    expected = int(np.bitwise_xor.reduce(large._buffer.view(np.uint32)))
    try:
        for isa in available_isas():
            limit_isa(isa)
            assert [large.read(ahead) for ahead in (0, 2048, 16384)] == [expected] * 3
    finally:
        limit_isa(None)
    with pytest.raises(ValueError, match="edgellama_read returned -2"):
        large.read(-1)


def test_machine_names_itself() -> None:
    about = machine.describe()
    assert about["cpu"].strip() and about["processors"] >= 1 and about["memory_bytes"] > 1 << 28
    versions = machine.versions()
    assert versions["numpy"] == np.__version__
    peak = machine.peak_memory()
    ballast = np.ones(64 << 20, np.uint8)
    grown = machine.peak_memory()
    assert peak is None or (grown is not None and grown >= peak > ballast.nbytes // 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "1,3"], "batches contains 3; this artifact has 2 rows"),
        (["--repeats", "0"], "repeats is 0"),
        (["--prompt-lengths", "0,4"], "prompt_lengths is"),
        (["--steps", "-1"], "steps is -1"),
        (["--threads", "0"], "threads is 0"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(
    tiny_artifact: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tiny_artifact), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        output_file.write_report(tmp_path / "missing" / "report.json", {})


def test_a_fresh_process_reports_why_it_fails(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        fresh.measure(tmp_path / "nowhere", 1, "copy", 0)


def test_the_first_token_is_measured_fresh_and_after_a_cached_beginning(found: dict[str, Any]) -> None:
    entry, cached = found["first_token"]["fresh"], found["first_token"]["cached"]
    documented = importlib.import_module("edgellama.bench").__doc__ or ""
    assert all(key in documented for key in {**entry, **cached})
    assert entry["prompt_tokens"] == 32 and len(entry["seconds"]["samples"]) == 2
    # a fresh process that also generates takes longer than one that only loads
    assert entry["seconds"]["min"] > found["load"]["engine"]["min"]
    assert (cached["prompt_tokens"], cached["cached_tokens"]) == (63, 56) and len(cached["seconds"]["samples"]) == 2


def test_a_cached_beginning_is_not_computed_again(tmp_path: Path) -> None:
    engine, weights = toy_engine(tmp_path)
    workload = Workload(engine)
    workload.prefill(20, 1)
    expected = tiny.whole_text_logits(weights, workload.tokens[0, :25])[-1]
    computed: list[tuple[int, int]] = []
    forward = engine.forward

    def noted(tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        logits = forward(tokens, start, length)
        computed.append((int(start[0]), int(length[0])))
        np.testing.assert_allclose(logits[0], expected, atol=1e-5)
        return logits

    engine.forward = noted  # type: ignore[method-assign]
    assert workload.extend(20, 25) > 0
    assert computed == [(20, 5)]


def test_a_lower_instruction_set_is_used_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    isas = available_isas()
    artifact = Artifact.open(export_tiny("cpu"))
    quick = Settings(threads=1, prompt_lengths=(5,), depths=(8,), repeats=1, steps=2)
    logits = {}
    try:
        for isa in (None, isas[0]):
            assert limit_isa(isa) == best_isa() == (isa or isas[-1])
            engine = Engine(artifact, 1)
            logits[isa] = engine.forward(np.array([[1], [2]]), np.zeros(2, int), np.ones(2, int)).copy()
        np.testing.assert_allclose(logits[isas[0]], logits[None], atol=1e-3 * np.ptp(logits[None]))
        if len(isas) > 1:
            assert (logits[isas[0]] != logits[None]).any()  # other kernels round otherwise
        assert command.bench(artifact.path, replace(quick, isa=isas[0]))["settings"]["isa"] == isas[0]
        assert main(["bench", str(artifact.path), "--isa", "avx1024"]) == 2
        assert f"instruction set 'avx1024'; this CPU has {', '.join(isas)}" in capsys.readouterr().err
    finally:
        limit_isa(None)


def test_a_device_is_refused_for_an_artifact_without_devices(
    tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number reaches the engine of the fresh process."""
    assert main(["bench", str(tiny_artifact), "--device-id", "1"]) == 2
    assert "device_id is 1, and" in capsys.readouterr().err


def test_a_missing_plotting_library_is_reported_before_measuring(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(report.importlib, "import_module", missing)
    monkeypatch.setattr(command, "bench", lambda *_: pytest.fail("measured before the missing library was reported"))
    assert main(["bench", str(tiny_artifact), "--plot", "bench.png"]) == 2
    assert "pip install edgellama[plot]" in capsys.readouterr().err


def test_plot_shows_every_case(found: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "bench.png"
    report.plot(found, path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    with pytest.raises(UserError, match="cannot be written"):
        report.plot(found, tmp_path / "bench.unknown")
