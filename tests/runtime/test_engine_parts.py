"""The parts of the engine alone: chunks, the inputs of a step, and the arrays of the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellama.artifact.manifest import Graph, TensorSpec
from edgellama.backend.resources import Limit
from edgellama.engine import kv_cache
from edgellama.engine.chunks import plan_chunks
from edgellama.engine.kv_cache import ALIGNMENT, KVCache
from edgellama.engine.prefix_cache import PrefixCache
from edgellama.engine.step_inputs import MASKED, StepInputs, causal_mask
from edgellama.errors import UserError
from support.mappings import HUGE_PAGES, on_huge_pages

DEFAULT = (1, 32, 128, 512)
ROWS, GROUPED, CONTEXT = 2, 3, 12  # GROUPED: query heads per KV head


@pytest.mark.parametrize(
    ("tokens", "padding", "expected"),
    [
        (0, 1.0, []),
        (42, 1.0, [(32, 32), (32, 10)]),
        (42, 0.125, [(128, 42)]),
        (1100, 1.0, [(512, 512), (512, 512), (128, 76)]),
        (129, 1.0, [(128, 128), (1, 1)]),
        (129, 0.125, [(128, 128), (1, 1)]),
        (160, 0.125, [(128, 128), (32, 32)]),
        (300, 0.125, [(512, 300)]),
        (512, 0.125, [(512, 512)]),
        (513, 0.125, [(512, 512), (1, 1)]),
    ],
)
def test_chunks_are_cheap_where_padding_is(tokens: int, padding: float, expected: list[tuple[int, int]]) -> None:
    assert plan_chunks(tokens, DEFAULT, padding) == expected


def test_of_equal_costs_the_larger_bucket_runs() -> None:
    """Two passes of 1 token cost 2 * (1 + 32); one of 34 costs 2 + 32 and, as padding is free of charge, no more."""
    assert plan_chunks(2, (1, 34), 1.0) == [(34, 2)]
    assert plan_chunks(2, (1, 35), 1.0) == [(1, 1), (1, 1)]


def step_inputs(bucket: int, names: tuple[str, ...], window: int = 0) -> StepInputs:
    """Returns the inputs of a graph of bucket 4 that has these inputs."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "tokens": ("int32", (ROWS, 4)),
        "tokens_by_step": ("int32", (4, ROWS)),
        "start": ("int32", (ROWS,)),
        "length": ("int32", (ROWS, 1)),
        "positions": ("int32", (ROWS, 4)),
        "last": ("int32", (ROWS, 1)),
        "cache_mask": ("float32", (ROWS, 1, 1, CONTEXT)),
        "self_mask": ("float32", (ROWS, 1, GROUPED * 4, 4)),
        "window_cache_mask": ("float32", (ROWS, 1, GROUPED * 4, CONTEXT)),
        "window_self_mask": ("float32", (ROWS, 1, GROUPED * 4, 4)),
        "k_cache.0": ("float32", (ROWS, 1, CONTEXT, 1)),
    }
    graph = Graph("g", "0" * 64, 1, 4, (1, 4), tuple(TensorSpec(name, *shapes[name]) for name in names), ())
    return StepInputs(graph, bucket, CONTEXT, window)


@pytest.mark.parametrize("window", [0, 1, 2, 3, 4, 9])
def test_a_token_of_a_call_sees_itself_and_those_before_within_the_window(window: int) -> None:
    mask = causal_mask((ROWS, 1, GROUPED * 4, 4), window)
    assert mask.dtype == np.float32 and mask.flags.c_contiguous and mask.shape == (ROWS, 1, GROUPED * 4, 4)
    for row in range(ROWS):
        for line in range(GROUPED * 4):
            token = line % 4
            seen = [other <= token and (not window or token - other < window) for other in range(4)]
            assert (mask[row, 0, line] == 0).tolist() == seen
            assert (mask[row, 0, line][~np.array(seen)] <= MASKED).all()
    assert np.isfinite(mask).all()


@pytest.mark.parametrize("name", ["tokens", "tokens_by_step"])
@pytest.mark.parametrize("bucket", [1, 4])
def test_tokens_outside_the_valid_ones_become_a_valid_id(name: str, bucket: int) -> None:
    step = step_inputs(bucket, (name, "start", "length", "k_cache.0"))
    assert set(step.arrays) == {name, "start", "length"}
    assert step.arrays["length"].shape == (ROWS, 1)
    for call, length in (
        ([[5, 6, 7, -9], [8, 77777, -1, -1]], [3, 1]),
        ([[5], [6]], [1, 0]),
        ([[4, 3], [2, 1]], [0, 2]),
    ):
        if bucket == 1:
            call, length = [row[:1] for row in call], [min(count, 1) for count in length]
        step.fill(np.array(call), [4, 0], length)
        found = step.arrays[name] if name == "tokens" else step.arrays[name].T
        wanted = [(row[:count] + [0] * 4)[:bucket] for row, count in zip(call, length, strict=True)]
        assert found.tolist() == wanted
        assert step.arrays["start"].ravel().tolist() == [4, 0]
        assert step.arrays["length"].ravel().tolist() == length


def test_a_call_wider_than_the_bucket_gives_its_first_tokens() -> None:
    step = step_inputs(4, ("tokens", "start", "length"))
    step.fill(np.arange(12).reshape(2, 6), [0, 0], [4, 2])
    assert step.arrays["tokens"].tolist() == [[0, 1, 2, 3], [6, 7, 0, 0]]


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("bucket", [1, 4])
@pytest.mark.parametrize(("start", "length"), [([0, 5], [4, 2]), ([10, 3], [2, 0]), ([12, 1], [0, 1])])
def test_a_portable_graphs_inputs_follow_from_start_and_length(
    window: int, bucket: int, start: list[int], length: list[int]
) -> None:
    names = ("tokens", "positions", "last", "cache_mask", "self_mask", "window_cache_mask", "window_self_mask")
    step = step_inputs(bucket, names, window)
    length = [min(count, bucket) for count in length]
    step.fill(np.ones((ROWS, bucket), int), start, length)
    x = step.arrays
    for row in range(ROWS):
        positions = [start[row] + token for token in range(bucket)]
        assert x["positions"][row].tolist() == [min(position, CONTEXT - 1) for position in positions]
        assert x["last"][row, 0] == row * bucket + max(length[row], 1) - 1
        assert (x["cache_mask"][row, 0, 0] == 0).tolist() == [place < start[row] for place in range(CONTEXT)]
        for line in range(GROUPED * bucket):
            token = line % bucket
            seen = [p < start[row] and (p > start[row] + token - window) for p in range(CONTEXT)]
            assert (x["window_cache_mask"][row, 0, line] == 0).tolist() == seen
    for name in ("cache_mask", "window_cache_mask"):
        assert set(np.unique(x[name])) <= {np.float32(0), MASKED}
    np.testing.assert_array_equal(x["self_mask"], causal_mask(x["self_mask"].shape))
    np.testing.assert_array_equal(x["window_self_mask"], causal_mask(x["self_mask"].shape, window))


@pytest.mark.parametrize("name", ["positions", "last", "cache_mask", "window_cache_mask"])
def test_each_derived_input_is_filled_without_the_others(name: str) -> None:
    step = step_inputs(4, ("tokens", name), window=2)
    before = step.arrays[name].copy()
    step.fill(np.ones((ROWS, 4), int), [3, 0], [2, 4])
    assert not np.array_equal(step.arrays[name], before)


def test_a_graph_without_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"g: no input called tokens.* Export again"):
        step_inputs(4, ("start", "length"))


@pytest.mark.parametrize("dtype", ["float32", "int16", "int8"])
def test_arrays_begin_at_a_cache_line(dtype: str) -> None:
    cache = KVCache(200)
    for size in (1, 3, 5, 64):
        found = cache.bind(TensorSpec(f"k_cache.{size}", dtype, (2, size)))
        assert (found.dtype, found.shape, found.ctypes.data % ALIGNMENT) == (np.dtype(dtype), (2, size), 0)
        assert not found.any()
        found[:] = 1  # all of it is its own
    assert ALIGNMENT == 64


def test_arrays_are_cut_from_one_block_while_it_lasts() -> None:
    made = KVCache(4 * ALIGNMENT)
    arrays = [made.bind(TensorSpec(f"k_cache.{i}", "float32", (2, 5))) for i in range(5)]  # 40 of 64 bytes each
    places = [array.ctypes.data - arrays[0].ctypes.data for array in arrays]
    assert places[:4] == [i * ALIGNMENT for i in range(4)]
    arrays[4][:] = 1  # behind the end of the block: memory of its own
    assert not any(array.any() for array in arrays[:4])


@pytest.mark.skipif(not HUGE_PAGES, reason="this kernel has none")
@pytest.mark.parametrize(
    ("available", "huge"),
    [(None, True), (16 << 20, True), ((16 << 20) - 1, False), (17 << 20, True), (5 << 20, False), (1 << 20, False)],
)
def test_a_cache_of_up_to_a_quarter_of_the_memory_is_on_huge_pages(
    available: int | None, huge: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A huge page takes its memory at once; a cache that nearly fills the memory must take it only as it is filled."""
    limit = None if available is None else Limit(available, "a test")
    monkeypatch.setattr(kv_cache, "available_memory", lambda: limit)
    made = KVCache(4 << 20)
    array = made.bind(TensorSpec("k_cache.0", "int8", (2 << 20,)))
    assert on_huge_pages(array) == huge
    assert made.bind(TensorSpec("v_cache.0", "int8", (2 << 20,))).ctypes.data - array.ctypes.data == 2 << 20
    assert on_huge_pages(made.arrays["v_cache.0"]) == huge


def test_copying_a_single_token_in_host_memory_is_worth_it(cache: KVCache) -> None:
    prefixes = PrefixCache(cache, 3, 6)
    tokens = np.array([[0], [7], [0]])
    prefixes.overwrite([0, 0, 0], [0, 1, 0])
    cache.arrays["k_cache.0"][1, :, 0] = 5
    prefixes.written(tokens, [0, 0, 0], [0, 1, 0])
    assert prefixes.bring(np.array([7, 8]), 2) == 1
    assert (cache.arrays["k_cache.0"][2, :, 0] == 5).all()


@pytest.fixture
def cache() -> KVCache:
    made = KVCache()
    for layer in range(2):
        for kind in "kv":
            made.bind(TensorSpec(f"{kind}_cache.{layer}", "float32", (3, 2, 6, 2)))
    return made


def test_an_array_is_allocated_once(cache: KVCache) -> None:
    array = cache.arrays["k_cache.1"]
    assert cache.bind(TensorSpec("k_cache.1", "float32", (3, 2, 6, 2))) is array
    assert cache.nbytes == 4 * array.nbytes == 4 * 3 * 2 * 6 * 2 * 4


def test_returned_keys_and_values_are_written_at_their_rows_places(cache: KVCache) -> None:
    new = [np.random.default_rng(i).random((3, 2, 4, 2), np.float32) for i in range(4)]
    expected = {name: array.copy() for name, array in cache.arrays.items()}
    start, length = np.array([2, 0, 3]), np.array([4, 0, 1])
    for name, array in zip(("k_cache.0", "v_cache.0", "k_cache.1", "v_cache.1"), new, strict=True):
        for row in range(3):
            for token in range(length[row]):
                expected[name][row, :, start[row] + token] = array[row, :, token]
    cache.write(new, start, length)
    for name, array in cache.arrays.items():
        np.testing.assert_array_equal(array, expected[name])


def test_rows_are_copied_as_they_were(cache: KVCache) -> None:
    for i, array in enumerate(cache.arrays.values()):
        array[:] = np.random.default_rng(i).random(array.shape)
    before = {name: array.copy() for name, array in cache.arrays.items()}
    cache.reorder(np.array([1, 0, 2]), 4)  # an exchange
    for name, array in cache.arrays.items():
        np.testing.assert_array_equal(array[:, :, :4], before[name][[1, 0, 2], :, :4])
        np.testing.assert_array_equal(array[:, :, 4:], before[name][:, :, 4:])


def test_a_row_can_be_saved_and_filled_again(cache: KVCache) -> None:
    for i, array in enumerate(cache.arrays.values()):
        array[:] = np.random.default_rng(i).random(array.shape)
    saved: dict[str, Any] = {name: array.copy() for name, array in cache.held(1, 3).items()}
    assert {array.shape for array in saved.values()} == {(2, 3, 2)} and saved.keys() == cache.arrays.keys()
    before = {name: array.copy() for name, array in cache.arrays.items()}
    cache.fill(2, 3, saved)
    for name, array in cache.arrays.items():
        np.testing.assert_array_equal(array[2, :, :3], before[name][1, :, :3])
        np.testing.assert_array_equal(array[2, :, 3:], before[name][2, :, 3:])
        np.testing.assert_array_equal(array[:2], before[name][:2])
