"""The runtime on an NPU: engine, graph and cache with a SIMULATED MindSpore Lite (device_lite.py), and its errors.

LiteGraph.resize switches gears; exporter/test_graphs_agree.py and end_to_end/ run it on the real MindSpore Lite.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgellama.artifact.manifest import Artifact, TensorSpec
from edgellama.backend.ascend import graph as ascend_graph
from edgellama.backend.ascend.cache import DeviceCache, DeviceTensor
from edgellama.backend.ascend.device import Device
from edgellama.backend.ascend.graph import AscendGraph
from edgellama.backend.lite_graph import LiteGraph, import_lite
from edgellama.bench import fresh
from edgellama.bench.command import bench
from edgellama.bench.workload import Settings
from edgellama.engine.engine import Engine
from edgellama.errors import UserError
from support.ascend_artifact import BATCH, CONTEXT, GEARS, ascend_manifest
from support.device_lite import DataType, make_lite
from support.tiny import VOCAB, Weights, manifest, whole_text_logits

DEVICE = Device(1, "Ascend310B4", 7 << 30, 8 << 30, "npu-smi")


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """open(**changes) -> (engine, lite) on the simulated device 1."""

    def open_engine(room: int = 1 << 30, **changes: Any) -> tuple[Engine, SimpleNamespace]:
        made = ascend_manifest(tmp_path, **changes)
        lite = make_lite(made.graphs[0], CONTEXT, room)
        monkeypatch.setattr(ascend_graph, "import_lite", lambda: lite)
        monkeypatch.setattr("edgellama.backend.lite_graph.import_lite", lambda: lite)
        monkeypatch.setattr(ascend_graph, "find", lambda device_id: dataclasses.replace(DEVICE, id=device_id))
        monkeypatch.setattr(ascend_graph, "try_in_child", lambda *_: None)  # a child has no simulation
        return Engine(Artifact.open(tmp_path), device_id=1), lite

    return open_engine


def test_prefill_in_chunks_and_decode_equal_one_pass_per_row(simulated: Any) -> None:
    """Rows of different lengths use every gear; the caches stay on the device between the calls."""
    engine, lite = simulated()
    weights, rng = Weights(CONTEXT), np.random.default_rng(0)
    texts = [rng.integers(0, VOCAB, 37), rng.integers(0, VOCAB, 21)]
    padded = np.zeros((BATCH, 37), np.int32)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = text
    got = engine.forward(padded, np.zeros(BATCH), np.array([37, 21]))
    for _ in range(5):
        for row in range(BATCH):
            expected = whole_text_logits(weights, texts[row])[-1]
            np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=2e-3)
        new = rng.integers(0, VOCAB, (BATCH, 1))
        start = np.array([len(text) for text in texts])
        got = engine.forward(new, start, np.ones(BATCH))
        texts = [np.append(text, new[row]) for row, text in enumerate(texts)]
    assert lite.state.contexts[0].target == ["ascend"] and lite.state.contexts[0].ascend.device_id == 1


def test_bench_measures_the_named_device(simulated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation checks that every tensor is on device 1. A child process has no simulation."""
    _, lite = simulated()
    asked = []

    def measure(
        artifact: Path, threads: int, memory: str, tokens: int, device_id: int | None, isa: str | None
    ) -> dict[str, float]:
        asked.append(device_id)
        return {"process_seconds": 2.0, "engine_seconds": 1.0, "after_load_bytes": 10**8, "peak_bytes": 10**8}

    def measure_first_token(*arguments: Any) -> float:
        asked.append(arguments[4])
        return 1.0

    monkeypatch.setattr(fresh, "measure", measure)
    monkeypatch.setattr(fresh, "measure_first_token", measure_first_token)
    found = bench(tmp_path, Settings(1, (4,), (8,), (1,), 1, 2), device_id=1)
    assert set(asked) == {1} and found["prefill"][0]["tokens_per_second"] > 0
    assert [context.ascend.device_id for context in lite.state.contexts] == [1] * len(lite.state.contexts)


def test_only_the_step_s_inputs_are_copied_to_the_device(simulated: Any) -> None:
    engine, lite = simulated()
    before = lite.state.uploads
    engine.forward(np.ones((BATCH, 1), np.int32), np.zeros(BATCH), np.ones(BATCH))
    assert lite.state.uploads - before == 3  # tokens, start, length: no cache


def test_caches_are_made_once_and_begin_as_zeros(simulated: Any) -> None:
    engine, _ = simulated()
    bound = [ready.bound for ready in engine._ready.values()]
    for at, name in enumerate(engine._ready[1].built.inputs):
        tensors = {id(tensors[at][0]) for tensors in bound}
        assert len(tensors) == (1 if "_cache." in name else len(GEARS))
    assert all((tensor.read() == 0).all() for tensor in engine.cache.arrays.values())
    assert engine.cache.nbytes == engine.manifest.cache.nbytes


def test_beam_search_moves_rows_of_the_device_s_cache(simulated: Any) -> None:
    engine, _ = simulated()
    engine.forward(np.array([[1, 2, 3], [4, 5, 6]]), np.zeros(BATCH), np.array([3, 3]))
    before = {name: tensor.read() for name, tensor in engine.cache.arrays.items()}
    engine.reorder(np.array([1, 1]), 3)
    for name, tensor in engine.cache.arrays.items():
        np.testing.assert_array_equal(tensor.read()[0, :, :3], before[name][1, :, :3])
        np.testing.assert_array_equal(tensor.read()[1], before[name][1])


def test_a_row_of_the_device_s_cache_is_kept_and_given_back(simulated: Any) -> None:
    """Sessions on disk need this."""
    engine, _ = simulated()
    engine.forward(np.array([[1, 2, 3], [4, 5, 6]]), np.zeros(BATCH), np.array([3, 3]))
    kept = engine.prefixes.held(0, 3)
    engine.forward(np.array([[7, 8, 9], [7, 8, 9]]), np.zeros(BATCH), np.array([3, 3]))
    engine.cache.fill(1, 3, kept)
    for name, tensor in engine.cache.arrays.items():
        np.testing.assert_array_equal(tensor.read()[1, :, :3], kept[name])


def on_a_new_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_a_thread_that_is_new_to_the_device_copies_to_it(simulated: Any) -> None:
    """Nothing is resized between the calls of a server's threads, so each thread begins with copies to the device."""
    engine, lite = simulated()
    expected, _ = simulated()
    start, length = np.zeros(BATCH), np.ones(BATCH)
    for call in range(3):
        tokens = np.full((BATCH, 1), call + 1, np.int32)
        got = on_a_new_thread(lambda tokens=tokens, call=call: engine.forward(tokens, start + call, length))
        np.testing.assert_array_equal(got, expected.forward(tokens, start + call, length))
    on_a_new_thread(lambda: engine.reorder(np.array([1, 1]), 3))
    kept = on_a_new_thread(lambda: engine.prefixes.held(0, 3))
    engine.forward(np.array([[7, 8, 9], [7, 8, 9]]), start, np.array([3, 3]))
    on_a_new_thread(lambda: engine.cache.fill(1, 3, kept))
    for name, tensor in engine.cache.arrays.items():
        np.testing.assert_array_equal(tensor.read()[1, :, :3], kept[name])
    assert lite.state.lost == 0


def test_a_tensor_reads_before_its_first_write_on_a_thread() -> None:
    lite = make_lite(SimpleNamespace(), 1)  # type: ignore[arg-type]
    first, second = DeviceTensor(lite, (2,), "int32", 1), DeviceTensor(lite, (2,), "int32", 2)
    for tensor in (second, first, second):  # one thread, two devices
        tensor.write(np.array([1, 2], np.int32))
    on_a_new_thread(lambda: first.write(np.array([3, 4], np.int32)))
    assert lite.state.lost == 0
    np.testing.assert_array_equal(first.read(), [3, 4])

    def past_the_tensor() -> None:
        first.tensor.set_data_from_numpy(np.array([5, 6], np.int32))

    on_a_new_thread(past_the_tensor)
    assert lite.state.lost == 1  # the simulation loses the copy


def test_gears_are_switched_by_the_code_that_switches_buckets_on_the_host() -> None:
    """The tests of the portable target run this code on the real MindSpore Lite."""
    assert AscendGraph.resize is LiteGraph.resize


def test_a_device_without_room_for_a_cache_is_reported(simulated: Any) -> None:
    with pytest.raises(UserError, match=r"device 1 has no room for 4,096 bytes \(a tensor of shape \(2, 2, 64, 4\)\)"):
        simulated(room=10_000)


def test_a_gear_that_is_not_in_the_model_is_named(simulated: Any) -> None:
    """The manifest lists gear 16, but the model on the device does not have it."""
    engine, _ = simulated()
    graph = engine._ready[16].built
    engine._ready[16].shapes[0] = (17, BATCH)
    with pytest.raises(UserError, match=r"switch it to tokens_by_step \(17, 2\): the gear of 17 tokens was not conver"):
        engine.forward(np.ones((BATCH, 16), np.int32), np.zeros(BATCH), np.full(BATCH, 16))
    assert graph.inputs[0] == "tokens_by_step"


def test_a_run_that_fails_names_graph_gear_and_device(simulated: Any, capfd: pytest.CaptureFixture[str]) -> None:
    engine, _ = simulated()
    engine._current["step.mindir"] = 4  # as if the gear were switched: the model is in no gear
    with pytest.raises(UserError, match=r"step.mindir: running it on device 1 failed in the gear with tokens_by_step"):
        engine.forward(np.ones((BATCH, 4), np.int32), np.zeros(BATCH), np.full(BATCH, 4))
    assert "Byte size of input 0" in capfd.readouterr().err


def test_device_tensor_keeps_what_was_copied_not_the_array() -> None:
    lite = SimpleNamespace(**vars(make_lite(SimpleNamespace(), 1)))  # type: ignore[arg-type]
    tensor = DeviceTensor(lite, (2, 3), "float32", 1)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor.write(array)
    array[:] = -1
    np.testing.assert_array_equal(tensor.read(), [[0, 1, 2], [3, 4, 5]])
    assert tensor.nbytes == 24 and tensor.tensor.dtype is DataType.FLOAT32


def test_a_failed_copy_from_the_device_is_reported() -> None:
    lite = make_lite(SimpleNamespace(), 1)  # type: ignore[arg-type]
    tensor = DeviceTensor(lite, (2,), "float16", 1)
    tensor.tensor.get_data_to_numpy = lambda: np.zeros(0, np.float16)  # the result of MindSpore Lite in this case
    with pytest.raises(UserError, match=r"copying 4 bytes from the device failed"):
        tensor.read()


def test_cache_of_a_float16_graph_is_float16() -> None:
    lite = make_lite(SimpleNamespace(), 1)  # type: ignore[arg-type]
    cache = DeviceCache(SimpleNamespace(), lite, 1)  # type: ignore[arg-type]
    tensor = cache.bind(TensorSpec("k_cache.0", "float16", (1, 2, 8, 16)))
    assert tensor.tensor.dtype is DataType.FLOAT16 and cache.nbytes == 512


def test_the_installed_mindspore_lite_is_refused_for_what_it_lacks(tmp_path: Path, monkeypatch: Any) -> None:
    """The real release 2.0 has no device tensors."""
    ascend_manifest(tmp_path)
    monkeypatch.setattr(ascend_graph, "find", lambda device_id: DEVICE)
    lite = import_lite()
    expected = (
        f"MindSpore Lite {lite.__version__} lacks Tensor(device=...), Model.predict(inputs, outputs), "
        "Model.build_from_file(config_dict=...). Install MindSpore Lite"
    )
    with pytest.raises(UserError, match=re.escape(expected)):
        Engine(Artifact.open(tmp_path))


def test_the_real_mindspore_lite_without_cann_is_translated(tmp_path: Path) -> None:
    """Without simulation: MindSpore Lite's Ascend plugin is needed here, and cannot be loaded."""
    made = ascend_manifest(tmp_path)
    if "ASCEND_HOME_PATH" in os.environ:
        pytest.skip("this host has CANN")
    message = (
        r"could not load it: CANN's libraries are not found. Run `source /usr/local/Ascend.*set_env.sh` "
        r"\(converted for Ascend310B4 by CANN 8.2 and MindSpore Lite 2.7.0\)(?s:.)*libgraph.so: cannot open shared"
    )
    with pytest.raises(UserError, match=message):
        AscendGraph(Artifact.open(tmp_path), made.graphs[0], 0)


def test_device_id_is_refused_for_a_target_without_devices(tmp_path: Path) -> None:
    manifest(tmp_path)
    with pytest.raises(UserError, match=r"device_id is 0, and .* runs on the host CPU. Leave device_id out"):
        Engine(Artifact.open(tmp_path), device_id=0)
    ascend_manifest(tmp_path)
    with pytest.raises(UserError, match=r"device_id is -1; needed: 0 or more"):
        Engine(Artifact.open(tmp_path), device_id=-1)
