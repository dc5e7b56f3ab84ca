"""Single calls of the engine: rows of any lengths, limits, cancelling, bucket switches, times, and what is loaded."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama.artifact import files, hash_cache
from edgellama.artifact.manifest import Artifact, Graph, TensorSpec, file_entry, write_manifest
from edgellama.artifact.safetensors import ALIGNMENT
from edgellama.backend.layer_tensors import layer_tensors
from edgellama.engine.chunks import CPU_PADDING
from edgellama.engine.engine import Engine
from edgellama.engine.engine_lock import Cancelled
from edgellama.engine.step_inputs import causal_mask
from edgellama.errors import UserError
from edgellama.exporter.writing.weights_file import write_weights
from edgellama.kernels.cpu.library import ABI
from support.tiny import VOCAB, InPlaceGraph, NumpyGraph, Weights, artifact, in_place_manifest, whole_text_logits

CONTEXT = 64


def portable(folder: Path, **changes: Any) -> Engine:
    opened = artifact(folder, **changes)
    weights = Weights(opened.manifest.context)
    return Engine(opened, build=lambda _: NumpyGraph(weights, opened.manifest.graphs[0]))


def in_place(folder: Path, batch: int = 3) -> Engine:
    made = in_place_manifest(folder, batch)
    graphs = {graph.file: graph for graph in made.graphs}
    return Engine(Artifact.open(folder), build=lambda path: InPlaceGraph(graphs[path.name]))


@pytest.fixture(scope="module", params=[portable, in_place])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return request.param(tmp_path_factory.mktemp("toy"), batch=3)


@pytest.mark.parametrize("lengths", [(1, 1, 0), (3, 0, 4), (4, 2, 1), (17, 0, 3), (20, 16, 21), (5, 36, 32), (0, 0, 5)])
def test_rows_of_any_lengths_equal_passes_over_each_text(engine: Engine, lengths: tuple[int, ...]) -> None:
    """In one or several chunks, at different starts, some idle; the call may be wider than the longest row."""
    rng = np.random.default_rng(sum(lengths))
    texts = rng.integers(0, VOCAB, (3, CONTEXT))
    weights, start = Weights(CONTEXT), np.array([0, 5, 1])
    engine.prefixes.forget()
    engine.forward(texts[:, :5], np.zeros(3), start)
    tokens = np.full((3, max(lengths) + 2), -7)
    for row, length in enumerate(lengths):
        tokens[row, :length] = texts[row, start[row] : start[row] + length]
    found = engine.forward(tokens, start, np.array(lengths))
    assert found.shape == (3, VOCAB)
    for row, length in enumerate(lengths):
        end = start[row] + length
        wanted = whole_text_logits(weights, texts[row, :end])[-1] if length else np.zeros(VOCAB)
        np.testing.assert_allclose(found[row], wanted, rtol=1e-5, atol=1e-4)
        assert engine.prefixes.row(row).tolist() == texts[row, :end].tolist()


def test_a_call_may_fill_the_context_and_use_every_id(engine: Engine) -> None:
    def call(tokens: Any, start: Any, length: Any) -> str:
        try:
            engine.forward(np.array(tokens), np.array(start), np.array(length))
        except UserError as error:
            return str(error)
        return ""

    ids = [[VOCAB - 1] * 4, [0] * 4, [1] * 4]
    assert call(ids, [60, 60, 0], [4, 3, 0]) == call(ids, [0, 0, 64], [1, 1, 0]) == ""
    assert call(ids, [61, 60, 0], [4, 3, 0]) == "65 tokens; this artifact holds 64 (context)"
    assert call(ids, [0, 65, 0], [1, 0, 1]) == "65 tokens; this artifact holds 64 (context)"
    assert call(ids, [0] * 3, [5, 0, 0]) == "start [0 0 0], length [5 0 0]: needed start >= 0 and length in 0..4"
    assert "start >= 0" in call(ids, [0, -1, 0], [1, 1, 1]) and "start >= 0" in call(ids, [0] * 3, [1, -1, 1])
    ids[2][1] = VOCAB
    assert call(ids, [0] * 3, [4, 4, 1]) == ""
    assert call(ids, [0] * 3, [4, 4, 2]) == "token id 50; this artifact's ids are 0..49 (vocab_size)"
    for tokens in (np.ones(3), np.ones((3, 0)), np.ones((4, 2)), np.ones((3, 2, 1))):
        assert "this artifact takes (3, n >= 1)" in call(tokens, [0] * 3, [0] * 3)
    for start, length in (([0] * 4, [1] * 3), ([0] * 3, [1] * 2), ([[0]] * 3, [1] * 3)):
        assert "needed: (3,)" in call(np.ones((3, 1)), start, length)


def test_cancelling_keeps_the_chunks_before(engine: Engine) -> None:
    asked = itertools.count(1)
    text = np.random.default_rng(1).integers(0, VOCAB, (3, 40))
    engine.prefixes.forget()
    with pytest.raises(Cancelled):
        engine.forward(text, np.zeros(3), np.array([40, 10, 20]), lambda: next(asked) == 3)
    assert [len(engine.prefixes.row(row)) for row in range(3)] == [32, 10, 20]
    with pytest.raises(Cancelled):
        engine.forward(text[:, :1], np.array([32, 10, 20]), np.ones(3), lambda: True)
    assert [engine.prefixes.row(row).tolist() for row in range(3)] == [
        text[0, :32].tolist(),
        text[1, :10].tolist(),
        text[2, :20].tolist(),
    ]
    found = engine.forward(text[:, 32:33], np.array([32, 10, 20]), np.array([1, 0, 0]))
    wanted = whole_text_logits(Weights(CONTEXT), text[0, :33])[-1]
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5, atol=1e-4)


def test_rows_are_reordered_with_their_tokens(engine: Engine) -> None:
    texts = np.random.default_rng(2).integers(0, VOCAB, (3, 9))
    engine.forward(texts, np.zeros(3), np.full(3, 9))
    before = engine.timings.cache
    engine.reorder(np.array([0, 0, 2]), 6)
    assert engine.timings.cache > before
    assert engine.prefixes.row(1).tolist() == texts[0, :6].tolist()
    found = engine.forward(np.full((3, 1), 8), np.array([9, 6, 9]), np.array([0, 1, 0]))
    wanted = whole_text_logits(Weights(CONTEXT), [*texts[0, :6], 8])[-1]
    np.testing.assert_allclose(found[1], wanted, rtol=1e-5, atol=1e-4)


def test_an_interrupted_switch_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = portable(tmp_path)
    built: Any = engine._ready[1].built
    resize = built.resize
    shapes: list[tuple[int, ...]] = []

    def interrupted(to: Any) -> None:
        resize(to)
        raise KeyboardInterrupt

    def recording(to: Any) -> None:
        shapes.append(to[0])
        resize(to)

    one = (np.ones((1, 1), int), np.zeros(1), np.ones(1))
    monkeypatch.setattr(built, "resize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.forward(*one)
    monkeypatch.setattr(built, "resize", recording)
    for _ in range(2):
        engine.forward(*one)
    engine.forward(np.ones((1, 16), int), np.zeros(1), np.array([16]))
    assert shapes == [(1, 1), (1, 16)]


def test_times_are_divided_among_switches_runs_and_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = portable(tmp_path)
    assert 0 < engine.timings.load < 60
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: 2.0 ** next(clock))  # each difference tells its readings
    for _ in range(2):
        engine.forward(np.ones((1, 1), int), np.zeros(1), np.ones(1))
    engine.reorder(np.array([0]), 1)
    timings = engine.timings
    assert dataclasses.asdict(timings) == {"load": timings.load, "switch": 17, "run": 2 + 32, "cache": 4 + 64 + 256}


def test_the_sliding_window_of_the_config_is_the_masks(tmp_path: Path) -> None:
    opened = artifact(tmp_path, batch=2)
    graph = opened.manifest.graphs[0]
    masks = (
        TensorSpec("window_self_mask", "float32", (2, 1, 32, 16)),
        TensorSpec("window_cache_mask", "float32", (2, 1, 32, CONTEXT)),
    )
    changed = dataclasses.replace(graph, inputs=(*graph.inputs, *masks))
    config = {**opened.manifest.config, "sliding_window": 3}
    write_manifest(tmp_path, dataclasses.replace(opened.manifest, graphs=(changed,), config=config))
    engine = Engine(Artifact.open(tmp_path), build=lambda _: NumpyGraph(Weights(CONTEXT), changed))
    ready = engine._ready[4].step
    np.testing.assert_array_equal(ready.arrays["window_self_mask"], causal_mask((2, 1, 8, 4), 3))
    assert ready.window == 3


def test_inputs_that_the_manifest_does_not_list_are_refused(tmp_path: Path) -> None:
    opened = artifact(tmp_path)

    class Other(NumpyGraph):
        def __init__(self) -> None:
            super().__init__(Weights(CONTEXT), opened.manifest.graphs[0])
            self.inputs = [*self.inputs[1:], "other"]

    with pytest.raises(UserError, match=r"step\.mindir: its inputs are cache_mask.* Export again"):
        Engine(opened, build=lambda _: Other())


def test_each_engine_has_a_lock_of_its_own(tmp_path: Path) -> None:
    opened = artifact(tmp_path)
    first, second = (
        Engine(opened, build=lambda _: NumpyGraph(Weights(CONTEXT), opened.manifest.graphs[0])) for _ in range(2)
    )
    with first.engine_lock.take(), second.engine_lock.take():
        pass
    with first.engine_lock.take(), pytest.raises(UserError), first.engine_lock.take():
        pass


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    opened = artifact(tmp_path)
    with pytest.raises(UserError, match=r"device_id is 0, and .* runs on the host CPU. Leave device_id out"):
        Engine(opened, device_id=0)
    with pytest.raises(UserError, match=r"weights_memory is 'disk'; needed: one of copy, map"):
        Engine(opened, weights_memory="disk")
    with pytest.raises(UserError, match=r"threads is 0; needed: at least 1"):
        Engine(opened, 0)
    graph = opened.manifest.graphs[0]
    assert Engine(opened, 1, build=lambda _: NumpyGraph(Weights(CONTEXT), graph)).threads == 1
    assert Engine(opened, build=lambda _: NumpyGraph(Weights(CONTEXT), graph)).threads >= 1


@pytest.mark.parametrize("memory", ["map", "copy"])
def test_only_mapped_weights_follow_the_file(tmp_path: Path, memory: str) -> None:
    made = in_place_manifest(tmp_path, 1)
    graphs = {graph.file: graph for graph in made.graphs}
    opened = Artifact.open(tmp_path)
    engine = Engine(opened, weights_memory=memory, build=lambda path: InPlaceGraph(graphs[path.name]))
    weights = engine._weights
    assert weights is not None
    with (tmp_path / "weights.safetensors").open("r+b") as file:
        file.seek(8 + int.from_bytes((tmp_path / "weights.safetensors").read_bytes()[:8], "little"))
        file.write(bytes(range(1, 250)))
    after = [weights.array(name) for name in ("embedding", "position", "q", "k", "v")]
    assert any(array.tobytes().startswith(bytes(range(1, 250))) for array in after) == (memory == "map")


@pytest.mark.parametrize("memory", ["map", "copy"])
def test_weights_are_hashed_once_or_always_wherever_they_are(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "SMALL", 100)
    made = in_place_manifest(tmp_path / "toy", 1)
    graphs = {graph.file: graph for graph in made.graphs}
    monkeypatch.setattr(hash_cache, "SETTLED", -60.0)

    def load(check: str) -> Engine:
        opened = Artifact.open(tmp_path / "toy", check=check, weights_later=True)
        return Engine(opened, weights_memory=memory, build=lambda path: InPlaceGraph(graphs[path.name]))

    assert made.weights is not None
    path = tmp_path / "toy" / made.weights.file
    load("once")
    assert [entry.rpartition("-")[2] for entry in hash_cache.remembered()] == [made.weights.sha256]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for check in ("once", "always"):
        with pytest.raises(UserError, match=r"weights\.safetensors: SHA-256"):
            load(check)
    load("sizes")
    # As if the cache said that the damaged file is right: "always" does not believe it.
    hash_cache.remember([hash_cache.key(path.stat(), made.weights.sha256)])
    load("once")
    with pytest.raises(UserError, match=r"weights\.safetensors: SHA-256"):
        load("always")


LAYER = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "hidden_size": 16, "intermediate_size": 24}


def layered(
    folder: Path,
    change: Callable[[list[TensorSpec]], list[TensorSpec]] = list,
    opset: str = "cpu",
    alignment: int = ALIGNMENT,
) -> Engine:
    """Returns an engine of the toy whose graphs also take a layer as one range of the weights file, as on the CPU.

    `change` changes the order of the tensors in the file; `alignment` the places where they begin.
    """
    made = in_place_manifest(folder, 1)
    layer = layer_tensors(LAYER, "int8", "model.layers.0.", ())
    others = [
        TensorSpec(name, "float32", getattr(Weights(CONTEXT), name).shape)
        for name in ("embedding", "position", "q", "k", "v")
    ]
    value = {spec.name: np.asarray(getattr(Weights(CONTEXT), spec.name), np.float32) for spec in others}
    value |= {spec.name: np.ones(spec.shape, spec.dtype) for spec in layer}
    stored = change([*others, *layer])
    name = "weights.safetensors"
    entry = write_weights(folder, name, stored, lambda name: [lambda: value[name]])
    if alignment != ALIGNMENT:
        whole = (folder / name).read_bytes()
        size = int.from_bytes(whole[:8], "little")
        (folder / name).write_bytes(
            (size + alignment).to_bytes(8, "little") + whole[8 : 8 + size] + b" " * alignment + whole[8 + size :]
        )
        entry = file_entry(folder, name)
    size = sum(-(-spec.nbytes // ALIGNMENT) * ALIGNMENT for spec in layer)
    stretch = TensorSpec("model.layers.0.*", "uint8", (size,))
    graphs: list[Graph] = [dataclasses.replace(graph, inputs=(*graph.inputs, stretch)) for graph in made.graphs]
    config = {**made.config, **LAYER}
    write_manifest(
        folder,
        dataclasses.replace(
            made, graphs=tuple(graphs), weights=entry, config=config, opset=opset, kernel_abi=ABI, weights_format="int8"
        ),
    )
    by_name = {graph.file: graph for graph in graphs}
    return Engine(Artifact.open(folder), build=lambda path: InPlaceGraph(by_name[path.name]))


def test_a_layers_range_holds_what_its_kernel_reads(tmp_path: Path) -> None:
    engine = layered(tmp_path / "a")
    assert engine.padding == CPU_PADDING
    found = engine.forward(np.array([[3, 4, 5]]), np.zeros(1), np.array([3]))
    np.testing.assert_allclose(found[0], whole_text_logits(Weights(CONTEXT), [3, 4, 5])[-1], rtol=1e-5, atol=1e-4)
    with pytest.raises(UserError, match="where the kernel reads"):
        layered(tmp_path / "b", lambda stored: [*stored[:-2], stored[-1], stored[-2]])
    with pytest.raises(UserError, match="not one contiguous range"):
        layered(tmp_path / "c", lambda stored: [stored[-1], *stored[:-1]])


def test_only_custom_kernels_need_aligned_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needed: a multiple of 64"):
        layered(tmp_path / "a", alignment=8)
    assert layered(tmp_path / "b", opset="portable", alignment=1).padding == 1.0
