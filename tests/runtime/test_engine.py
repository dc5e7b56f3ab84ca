"""Compares the engine with one pass over the whole text: chunks, buckets, masks, cache, rows of different length."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from edgellama.artifact.manifest import Artifact, file_entry, write_manifest
from edgellama.engine.chunks import PASS_COST, plan_chunks
from edgellama.engine.engine import Engine
from edgellama.errors import UserError
from support.tiny import VOCAB, InPlaceGraph, NumpyGraph, Weights, artifact, in_place_manifest, whole_text_logits

BUCKETS = (1, 4, 16)


def build(folder: Path, **changes: object) -> tuple[Engine, Weights]:
    opened = artifact(folder, **changes)
    weights = Weights(opened.manifest.context)
    return Engine(opened, build=lambda _: NumpyGraph(weights, opened.manifest.graphs[0])), weights


def build_in_place(folder: Path, **changes: int) -> tuple[Engine, Weights]:
    manifest = in_place_manifest(folder, **changes)
    graphs = {graph.file: graph for graph in manifest.graphs}
    return Engine(Artifact.open(folder), build=lambda path: InPlaceGraph(graphs[path.name])), Weights(manifest.context)


@pytest.fixture(scope="module", params=[build, build_in_place])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Weights]:
    return request.param(tmp_path_factory.mktemp("toy"), batch=3)


def cost(buckets: tuple[int, ...]) -> int:
    return sum(bucket + PASS_COST for bucket in buckets)


@given(st.integers(1, 2000), st.sets(st.integers(2, 300), max_size=3))
def test_chunks_hold_the_call_and_pad_the_last_only(tokens: int, others: set[int]) -> None:
    buckets = tuple(sorted({1, *others}))
    chunks = plan_chunks(tokens, buckets)
    assert sum(count for _, count in chunks) == tokens
    assert all(bucket == count for bucket, count in chunks[:-1])
    assert all(bucket in buckets and 1 <= count <= bucket for bucket, count in chunks)


@given(st.integers(1, 100))
def test_chunks_are_the_cheapest_cover(tokens: int) -> None:
    """No other multiset of buckets that covers the call is cheaper."""
    buckets = (1, 8, 40, 100)
    covers = (
        (40,) * a + (8,) * b + (1,) * max(0, tokens - 40 * a - 8 * b) for a, b in itertools.product(range(4), range(14))
    )
    best = min([cost((100,)), *map(cost, covers)])
    assert cost(tuple(bucket for bucket, _ in plan_chunks(tokens, buckets))) == best


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(1, [1]), (5, [32]), (33, [32, 1]), (100, [128]), (129, [128, 1]), (700, [512, 128, 32, 32])],
)
def test_chunks_of_the_default_buckets(tokens: int, expected: list[int]) -> None:
    assert [bucket for bucket, _ in plan_chunks(tokens, (1, 32, 128, 512))] == expected


@pytest.mark.parametrize("length", [1, 3, 4, 5, 15, 16, 17, 32, 48, 63, 64])
def test_prefill_at_every_bucket_edge(shared: tuple[Engine, Weights], length: int) -> None:
    engine, weights = shared
    tokens = np.random.default_rng(length).integers(0, VOCAB, (3, length))
    got = engine.forward(tokens, np.zeros(3), np.full(3, length))
    for row in range(3):
        np.testing.assert_allclose(got[row], whole_text_logits(weights, tokens[row])[-1], rtol=1e-5, atol=1e-4)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequence_of_calls_equals_one_pass_per_row(shared: tuple[Engine, Weights], data: st.DataObject) -> None:
    """Rows grow by different numbers of tokens, also by none, in calls of any width, with arbitrary padding."""
    engine, weights = shared
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    texts: list[list[int]] = [[], [], []]
    for _ in range(data.draw(st.integers(1, 5))):
        room = [64 - len(text) for text in texts]
        length = np.array([data.draw(st.integers(0, min(40, r))) for r in room])
        width = max(1, int(length.max()) + data.draw(st.integers(0, 3)))
        tokens = rng.integers(-9, 10**6, (3, width))
        for row in range(3):
            tokens[row, : length[row]] = rng.integers(0, VOCAB, length[row])
        start = np.array([len(text) for text in texts])
        got = engine.forward(tokens, start, length)
        for row, text in enumerate(texts):
            text += tokens[row, : length[row]].tolist()
            expected = whole_text_logits(weights, text)[-1] if length[row] else np.zeros(VOCAB)
            np.testing.assert_allclose(got[row], expected, rtol=1e-5, atol=1e-4)


def test_a_row_can_be_shortened_and_written_again(shared: tuple[Engine, Weights]) -> None:
    """The engine ignores cache entries from `start` on, so a prefix can be kept and continued differently."""
    engine, weights = shared
    first, second = [5, 6, 7, 8, 9, 10], [5, 6, 7, 30, 31]
    engine.forward(np.array([first] * 3), np.zeros(3), np.full(3, 6))
    got = engine.forward(np.array([second[3:]] * 3), np.full(3, 3), np.full(3, 2))
    np.testing.assert_allclose(got[1], whole_text_logits(weights, second)[-1], rtol=1e-5, atol=1e-4)


def test_buckets_are_switched_only_when_they_change(tmp_path: Path) -> None:
    engine, _ = build(tmp_path)
    (built,) = {id(ready.built): ready.built for ready in engine._ready.values()}.values()
    engine.forward(np.ones((1, 20), int), np.zeros(1), np.array([20]))  # 16 (as traced), then 4
    for position in range(20, 25):
        engine.forward(np.ones((1, 1), int), np.array([position]), np.ones(1))
    assert built.switches == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("tokens", "start", "length", "message"),
    [
        (np.ones((3, 5)), [60, 0, 0], [5, 5, 5], r"65 tokens; this artifact holds 64 \(context\)"),
        (np.full((3, 1), VOCAB), [0] * 3, [1] * 3, r"token id 50; this artifact's ids are 0\.\.49"),
        (np.full((3, 1), -1), [0] * 3, [1] * 3, r"token id -1"),
        (np.ones((2, 1)), [0] * 3, [1] * 3, r"tokens have shape \(2, 1\)"),
        (np.ones((3, 1)), [0] * 2, [1] * 3, r"start and length have shapes"),
        (np.ones((3, 1)), [0] * 3, [2] * 3, r"length in 0\.\.1"),
        (np.ones((3, 1)), [-1] * 3, [1] * 3, r"start >= 0"),
    ],
)
def test_a_call_that_does_not_fit_runs_nothing(
    shared: tuple[Engine, Weights], tokens: np.ndarray, start: list[int], length: list[int], message: str
) -> None:
    engine, _ = shared
    before = {name: array.copy() for name, array in engine.cache.arrays.items()}
    with pytest.raises(UserError, match=message):
        engine.forward(tokens, np.array(start), np.array(length))
    for name, array in engine.cache.arrays.items():
        np.testing.assert_array_equal(array, before[name])


def test_an_artifact_that_cannot_run_is_refused_at_load(tmp_path: Path) -> None:
    opened = artifact(tmp_path / "a", opset="ascend310b")
    with pytest.raises(UserError, match=r"op set is 'ascend310b'; this runtime runs portable, cpu"):
        Engine(opened)
    opened = artifact(tmp_path / "c", opset="cpu", kernel_abi=1 << 20)
    with pytest.raises(UserError, match=r"kernel_abi is 1048576; the kernels of this release run \d+ to \d+"):
        Engine(opened)
    with pytest.raises(UserError, match=r"threads is 0"):
        Engine(artifact(tmp_path / "b"), 0)


def test_every_bucket_reads_one_copy_of_the_weights_and_the_cache(tmp_path: Path) -> None:
    engine, _ = build_in_place(tmp_path, batch=1)
    bound = [dict(zip(ready.built.inputs, ready.bound, strict=True)) for ready in engine._ready.values()]
    assert len(bound) == 3
    for name in ("embedding", "q", "k_cache.0", "v_cache.1"):
        assert len({arrays[name].ctypes.data for arrays in bound}) == 1
    assert all(array.ctypes.data % 64 == 0 for array in engine.cache.arrays.values())
    with pytest.raises(ValueError, match="read-only"):
        bound[0]["embedding"][0] = 1


def test_weights_that_do_not_fit_the_graph_are_refused(tmp_path: Path) -> None:
    good = in_place_manifest(tmp_path, 1)
    weights = tmp_path / "weights.safetensors"
    whole = load_file(weights)

    def load(tensors: dict[str, np.ndarray]) -> None:
        save_file(tensors, weights)
        write_manifest(tmp_path, dataclasses.replace(good, weights=file_entry(tmp_path, weights.name)))
        Engine(Artifact.open(tmp_path), build=lambda _: InPlaceGraph(good.graphs[0]))

    with pytest.raises(UserError, match=r"has no tensor 'position'"):
        load({name: array for name, array in whole.items() if name != "position"})
    with pytest.raises(UserError, match=r"'position' is float32 \[63, 16\]; the graph takes float32 \[64, 16\]"):
        load({**whole, "position": whole["position"][1:].copy()})
