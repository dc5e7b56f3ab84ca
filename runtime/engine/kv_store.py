"""Keys and values of texts that no cache row holds any more, in host memory, so that a later prompt finds them again.

A text is kept in blocks of some tokens, in a tree: texts with a common beginning share its blocks. When the memory is
used up, the block that was unused for longest goes first; it is always the end of a text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from ..backend.ascend.cache import DeviceCache
from .kv_cache import KVCache


class _Block:
    """Some tokens behind the blocks before them: their keys and values by array name, and the blocks that follow."""

    def __init__(self, parent: _Block | None, key: tuple[int, bytes], arrays: Mapping[str, np.ndarray]) -> None:
        self.parent, self.key, self.arrays = parent, key, arrays
        self.following: dict[tuple[int, bytes], _Block] = {}


class KVStore:
    """The stored blocks. The caller holds the engine's lock.

    Attributes:
        limit: bytes that the keys and values may take.
        nbytes: bytes that they take.
        block: tokens of a block.
    """

    def __init__(self, cache: KVCache | DeviceCache, limit: int, block: int) -> None:
        """Make an empty store.

        Args:
            cache: whose rows are kept.
            limit: bytes of memory; a limit below the size of one block keeps nothing.
            block: tokens of a block.
        """
        self.limit, self.block = limit, block
        self.nbytes = 0
        self._cache = cache
        self._roots: dict[tuple[int, bytes], _Block] = {}
        # The block unused for longest comes first. Whoever uses a block uses the blocks before it as well, and these
        # count as used later, so the first block of this order is never one that another block follows.
        self._order: OrderedDict[_Block, None] = OrderedDict()

    def held(self, ids: np.ndarray, adapter: int) -> int:
        """Return how many tokens of the beginning of a text [n] are stored; a multiple of `block`."""
        return len(self._find(ids, adapter)) * self.block

    def blocks(self, ids: np.ndarray, adapter: int) -> list[Mapping[str, np.ndarray]]:
        """Return the stored blocks of the beginning of a text [n], by array name. They count as used now."""
        found = self._find(ids, adapter)
        self._use(found)
        return [block.arrays for block in found]

    def keep(self, row: int, ids: np.ndarray, adapter: int) -> None:
        """Store the whole blocks of the text [n] that a cache row holds, as far as they are not stored.

        Args:
            row: the cache row.
            ids: the tokens that it holds.
            adapter: the number of the adapter that computed it.
        """
        found = self._find(ids, adapter)
        self._use(found)
        count = len(ids) // self.block
        if count - len(found) < max(1, self._cache.worth_copying // self.block):
            return
        held = self._cache.held(row, count * self.block)
        size = sum(array.nbytes for array in held.values()) // count
        for place in range(len(found), count):
            if not self._make_room(size, found):
                return
            here = slice(place * self.block, (place + 1) * self.block)
            try:
                arrays = {name: array[:, here].copy() for name, array in held.items()}
            except MemoryError:  # the store is a convenience: keep less
                return
            parent = found[-1] if found else None
            key = _key(ids, adapter, place, self.block)
            made = _Block(parent, key, arrays)
            (self._roots if parent is None else parent.following)[key] = made
            self.nbytes += size
            found.append(made)
            self._use(found)

    def _find(self, ids: np.ndarray, adapter: int) -> list[_Block]:
        """Return the stored blocks of the beginning of a text, in its order."""
        found: list[_Block] = []
        level = self._roots
        for place in range(len(ids) // self.block):
            block = level.get(_key(ids, adapter, place, self.block))
            if block is None:
                break
            found.append(block)
            level = block.following
        return found

    def _use(self, blocks: list[_Block]) -> None:
        for block in reversed(blocks):
            self._order[block] = None
            self._order.move_to_end(block)

    def _make_room(self, size: int, kept: list[_Block]) -> bool:
        """Forget blocks until `size` bytes are free. Returns False if only the blocks `kept` are left."""
        while self.nbytes + size > self.limit:
            oldest = next(iter(self._order), None)
            if oldest is None or oldest in kept:
                return False
            del self._order[oldest]
            del (self._roots if oldest.parent is None else oldest.parent.following)[oldest.key]
            self.nbytes -= sum(array.nbytes for array in oldest.arrays.values())
        return True


def _key(ids: np.ndarray, adapter: int, place: int, block: int) -> tuple[int, bytes]:
    """Return what identifies a block among those that follow the same block."""
    return adapter, ids[place * block : (place + 1) * block].astype(np.int32).tobytes()
