"""Which tokens the KV cache holds, so that a prompt which begins like one of its rows is not computed again.

The engine reports every token that it writes. So the record is correct also after a generation that was cancelled,
interrupted or failed, and generations, sessions and servers can all use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..backend.ascend.cache import DeviceCache
from .kv_cache import KVCache

CONTINUED = 0.5  # a prompt that shares this part of a row continues it; one that shares less gets another row


class Placement(NamedTuple):
    """The cache row of each prompt, int [n], and how many of its tokens this row holds already, int [n]."""

    rows: np.ndarray
    cached: np.ndarray


class PrefixCache:
    """The token ids whose keys and values each row holds, from position 0 on.

    Attributes:
        ids: int32 [B, C].
        length: how many of them are valid, int64 [B].
        adapter: the number of the adapter (engine/adapters.py) that each row is computed with, int32 [B]; 0: none. A
            row is a prefix only of a prompt with the same adapter.
    """

    def __init__(self, cache: KVCache | DeviceCache, batch: int, context: int) -> None:
        self._cache = cache
        self.ids = np.zeros((batch, context), np.int32)
        self.length = np.zeros(batch, np.int64)
        self.adapter = np.zeros(batch, np.int32)
        self._used = np.zeros(batch, np.int64)  # the latest call that wrote the row
        self._calls = 0

    def row(self, index: int) -> np.ndarray:
        """Return the tokens that row `index` holds, [n]."""
        return self.ids[index, : self.length[index]]

    def assign(self, row: int, adapter: int) -> None:
        """Set the adapter that row `row` is computed with from now on. What another adapter has computed is lost."""
        if self.adapter[row] != adapter:
            self.forget([row])
            self.adapter[row] = adapter

    def overwrite(self, start: Sequence[int], length: Sequence[int]) -> None:
        """Record that row b will be written from start[b] on, if length[b] is not 0; its content there is lost."""
        self._calls += 1
        for row, count in enumerate(length):
            if count:
                self.length[row] = min(self.length.item(row), start[row])
                self._used[row] = self._calls

    def written(self, tokens: np.ndarray, start: Sequence[int], length: Sequence[int]) -> None:
        """Record that the cache holds tokens [B, n], length[b] of row b from start[b] on."""
        for row, count in enumerate(length):
            first = start[row]
            if not count or first != self.length.item(row):  # the tokens before are unknown
                continue
            if count == 1:  # every decode step: cheaper without slices
                self.ids[row, first] = tokens.item(row, 0)
            else:
                self.ids[row, first : first + count] = tokens[row, :count]
            self.length[row] = first + count

    def forget(self, rows: Sequence[int] | np.ndarray | slice = slice(None)) -> None:
        """Treat these rows as empty."""
        self.length[rows] = 0

    def reorder(self, source: np.ndarray, tokens: int) -> None:
        """Replace the first `tokens` positions of each row b by those of row source[b]; source: int [B]."""
        moved = np.flatnonzero(source != np.arange(len(source)))
        ids, length = self.ids[source[moved], :tokens], np.minimum(self.length[source[moved]], tokens)
        adapter = self.adapter[source[moved]]
        self.forget(moved)  # an interruption may leave the copy incomplete
        self._cache.reorder(source, tokens)
        self.ids[moved, :tokens], self.length[moved], self.adapter[moved] = ids, length, adapter

    def shared(self, prompt: np.ndarray, adapter: int = 0) -> np.ndarray:
        """Return how many tokens each row has in common with the beginning of a prompt with this adapter, [B].

        The last token of the prompt never counts, since a generation begins with its logits.
        """
        same = self.adapter == adapter
        return np.array([self._common(row, prompt[:-1]) if same[row] else 0 for row in range(len(self.ids))])

    def bring(self, prompt: np.ndarray, row: int) -> int:
        """Copy to `row` as much of the beginning of a prompt as any row holds, if a copy is cheaper than computing.

        The prompt has the adapter of `row`.

        Returns:
            How many tokens of the prompt `row` holds then.
        """
        shared = self.shared(prompt, int(self.adapter[row]))
        best = int(shared.argmax())
        if shared[best] - shared[row] < self._cache.worth_copying:
            return int(shared[row])
        source = np.arange(len(self.ids))
        source[row] = best
        self.reorder(source, int(shared[best]))
        return int(shared[best])

    def fill(self, ids: np.ndarray, arrays: Mapping[str, np.ndarray], adapter: int = 0) -> None:
        """Load tokens with their keys and values into the row that has not been written for longest.

        Args:
            ids: token ids [n].
            arrays: every array of the cache by name, as `held` returns them.
            adapter: the number of the adapter that they were computed with.
        """
        row = int(self._used.argmin())
        self.assign(row, adapter)
        self.forget([row])
        self._cache.fill(row, len(ids), arrays)
        self.ids[row, : len(ids)], self.length[row] = ids, len(ids)
        self._calls += 1
        self._used[row] = self._calls

    def extend(self, row: int, start: int, ids: np.ndarray, blocks: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Load tokens with their keys and values into `row`, behind the first `start` tokens that it holds.

        Args:
            row: the row; it has the adapter that computed the tokens.
            start: at most the tokens that the row holds; what it holds behind them is lost.
            ids: token ids [n].
            blocks: their keys and values, in blocks as KVStore.blocks returns them.
        """
        self.length[row] = start  # an interruption may leave the rest incomplete
        self._cache.write_blocks(row, start, blocks)
        self.ids[row, start : start + len(ids)] = ids
        self.length[row] = start + len(ids)

    def held(self, row: int, tokens: int) -> dict[str, np.ndarray]:
        """Return the first `tokens` positions of `row` by array name; views if the cache is in host memory.

        Shapes are [G, tokens, D], and [G, tokens] for the scales of an int8 cache.
        """
        return self._cache.held(row, tokens)

    def place(self, prompts: Sequence[np.ndarray], reuse: bool = True, adapters: Sequence[int] = ()) -> Placement:
        """Choose cache rows for prompts that will run together.

        A prompt gets the row that it continues. Any other prompt gets the row that has not been written for longest.
        If another row holds its beginning, that is copied: a copy costs far less than computing it, and the other row
        keeps its content.

        Args:
            prompts: token ids [n] of each; at most B prompts.
            reuse: False treats nothing as cached.
            adapters: the number of each prompt's adapter; empty: none has one.
        """
        adapters = adapters or [0] * len(prompts)
        shared = np.array([self.shared(*given) for given in zip(prompts, adapters, strict=True)])  # [n, B]
        continues = np.where(shared >= CONTINUED * self.length, shared, 0)
        rows = np.full(len(prompts), -1)
        for index in np.argsort(-continues.max(axis=1), kind="stable"):
            free = continues[index].copy()
            free[rows[rows >= 0]] = 0
            if free.max() > 0:
                rows[index] = free.argmax()
        oldest = [row for row in np.argsort(self._used, kind="stable") if row not in rows]
        rows[rows < 0] = oldest[: np.count_nonzero(rows < 0)]
        cached = np.zeros(len(rows), np.int64)
        for index, (row, prompt, adapter) in enumerate(zip(rows.tolist(), prompts, adapters, strict=True)):
            self.assign(row, adapter)
            if reuse:
                cached[index] = self.bring(prompt, row)
        return Placement(rows, cached)

    def _common(self, row: int, ids: np.ndarray) -> int:
        held = self.row(row)[: len(ids)]
        differs = np.flatnonzero(held != ids[: len(held)])
        return int(differs[0]) if differs.size else len(held)
