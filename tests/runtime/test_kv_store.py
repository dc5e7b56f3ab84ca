"""The store of keys and values, against what a text's keys and values are defined to be here."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.artifact.manifest import TensorSpec
from edgellama.backend.ascend.cache import DeviceCache
from edgellama.engine.kv_cache import KVCache
from edgellama.engine.kv_store import KVStore
from edgellama.engine.prefix_cache import PrefixCache
from support.device_lite import make_lite

ROWS, GROUPS, CONTEXT, DIM, BLOCK = 2, 3, 24, 2, 4
SPECS = {
    "float32": [TensorSpec(f"{kind}_cache.0", "float32", (ROWS, GROUPS, CONTEXT, DIM)) for kind in "kv"],
    "float16": [TensorSpec(f"{kind}_cache.0", "int16", (ROWS, GROUPS, CONTEXT, DIM)) for kind in "kv"],
    "int8": [
        *(TensorSpec(f"{kind}_cache.0", "int8", (ROWS, GROUPS, CONTEXT, DIM)) for kind in "kv"),
        *(TensorSpec(f"{kind}_scale.0", "float32", (ROWS, GROUPS, CONTEXT)) for kind in "kv"),
    ],
}


def expected(spec: TensorSpec, ids: list[int], adapter: int) -> np.ndarray:
    """Returns what a text's tokens have in this array: values that depend on every token before them."""
    made = np.zeros((GROUPS, len(ids), *spec.shape[3:]), spec.dtype)
    for place in range(len(ids)):
        seed = [sum(map(ord, spec.name)), adapter, *ids[: place + 1]]
        made[:, place] = np.random.default_rng(seed).integers(-100, 100, made[:, place].shape)
    return made


class Rows:
    """A cache, its record and a store, filled with `expected` values."""

    def __init__(self, kind: str, limit: int) -> None:
        self.cache = KVCache()
        self.specs = SPECS[kind]
        for spec in self.specs:
            self.cache.bind(spec)
        self.prefixes = PrefixCache(self.cache, ROWS, CONTEXT)
        self.store = KVStore(self.cache, limit, BLOCK)

    def compute(self, row: int, ids: list[int], adapter: int) -> None:
        self.prefixes.assign(row, adapter)
        self.cache.fill(row, len(ids), {spec.name: expected(spec, ids, adapter) for spec in self.specs})
        self.prefixes.ids[row, : len(ids)], self.prefixes.length[row] = ids, len(ids)

    def restore(self, row: int, ids: list[int], adapter: int) -> int:
        """Restore all that is stored of a text into an emptied row, and check every value."""
        for array in self.cache.arrays.values():
            array[row] = 77
        held = self.store.held(np.array(ids), adapter)
        blocks = self.store.blocks(np.array(ids[:held]), adapter)
        self.prefixes.forget([row])
        self.prefixes.assign(row, adapter)
        self.prefixes.extend(row, 0, np.array(ids[:held]), blocks)
        assert self.prefixes.row(row).tolist() == ids[:held]
        for spec in self.specs:
            np.testing.assert_array_equal(
                self.cache.arrays[spec.name][row][:, :held], expected(spec, ids[:held], adapter)
            )
            assert (self.cache.arrays[spec.name][row][:, held:] == 77).all()
        return held


def block_bytes(kind: str) -> int:
    return sum(spec.nbytes // ROWS // CONTEXT * BLOCK for spec in SPECS[kind])


texts = st.lists(st.integers(0, 1), min_size=1, max_size=CONTEXT)


@pytest.mark.parametrize("kind", SPECS)
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(texts, st.integers(0, 1)), min_size=1, max_size=12), room=st.integers(0, 9))
def test_what_comes_back_is_what_was_kept(kind: str, steps: list[tuple[list[int], int]], room: int) -> None:
    """Texts of two tokens have many common beginnings; the room is often too small for all of them."""
    rows = Rows(kind, room * block_bytes(kind))
    kept: set[tuple[int, tuple[int, ...]]] = set()
    for ids, adapter in steps:
        rows.compute(0, ids, adapter)
        rows.store.keep(0, rows.prefixes.row(0), adapter)
        ends = range(BLOCK, len(ids) + 1, BLOCK)
        kept |= {(adapter, tuple(ids[:end])) for end in ends}
        assert rows.store.nbytes <= rows.store.limit
        assert rows.restore(1, ids, adapter) == min(len(ends), room) * BLOCK
        if len(kept) <= room:  # nothing was forgotten
            assert rows.store.nbytes == len(kept) * block_bytes(kind)
            for other, text in kept:
                assert rows.restore(1, list(text), other) == len(text)
    for ids, adapter in steps:
        rows.restore(1, ids, adapter)


def test_texts_share_their_common_beginning() -> None:
    rows = Rows("float32", 100 * block_bytes("float32"))
    for last in range(5):
        rows.compute(0, [1] * 16 + [last] * 4, 0)
        rows.store.keep(0, rows.prefixes.row(0), 0)
    assert rows.store.nbytes == (4 + 5) * block_bytes("float32")


def test_the_text_unused_for_longest_is_forgotten_from_its_end() -> None:
    rows = Rows("float32", 5 * block_bytes("float32"))
    first, second = [1] * 12, [1] * 4 + [2] * 8  # three blocks each, one of them common
    for ids in (first, second):
        rows.compute(0, ids, 0)
        rows.store.keep(0, rows.prefixes.row(0), 0)
    assert rows.restore(1, first, 0) == 12  # used now
    rows.compute(0, [3] * 4, 0)
    rows.store.keep(0, rows.prefixes.row(0), 0)
    assert [rows.store.held(np.array(ids), 0) for ids in (first, second, [3] * 4)] == [12, 8, 4]


def test_adapters_are_kept_apart() -> None:
    rows = Rows("float32", 100 * block_bytes("float32"))
    rows.compute(0, [1] * 8, 1)
    rows.store.keep(0, rows.prefixes.row(0), 1)
    assert [rows.store.held(np.array([1] * 8), adapter) for adapter in (0, 1, 2)] == [0, 8, 0]


def test_a_device_is_asked_only_for_long_texts() -> None:
    """A copy moves whole tensors, so below `worth_copying` tokens nothing is kept."""
    lite = make_lite(SimpleNamespace(), 1)  # type: ignore[arg-type]
    cache = DeviceCache(SimpleNamespace(), lite, 1)  # type: ignore[arg-type]
    spec = TensorSpec("k_cache.0", "float32", (1, 1, 512, 2))
    cache.bind(spec)
    values = np.random.default_rng(0).normal(size=(1, 512, 2)).astype(np.float32)
    cache.fill(0, 512, {spec.name: values})
    store = KVStore(cache, 1 << 20, 128)
    ids = np.arange(500)
    store.keep(0, ids[:255], 0)
    assert store.nbytes == 0
    store.keep(0, ids, 0)
    assert store.nbytes == 384 * 8 and store.held(ids, 0) == 384
    cache.fill(0, 512, {spec.name: values * 0})
    cache.write_blocks(0, 0, store.blocks(ids, 0))
    np.testing.assert_array_equal(cache.held(0, 512)[spec.name][:, :384], values[:, :384])
    assert not cache.held(0, 512)[spec.name][:, 384:].any()


def test_no_memory_for_a_block_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(np.ndarray):
        def __getitem__(self, place: object) -> np.ndarray:
            raise MemoryError

    rows = Rows("float32", 100 * block_bytes("float32"))
    rows.compute(0, [1] * 8, 0)
    held = rows.cache.held
    monkeypatch.setattr(
        rows.cache, "held", lambda row, tokens: {name: one.view(Full) for name, one in held(row, tokens).items()}
    )
    rows.store.keep(0, rows.prefixes.row(0), 0)
    assert rows.store.nbytes == 0 and rows.store.held(np.array([1] * 8), 0) == 0
