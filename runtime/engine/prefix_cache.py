"""Which tokens lie in the KV cache, so that a text which begins like one of its rows is not computed again.

The engine tells it of every token that it writes, whoever asked for them. So what it knows is true also where a
generation was cancelled, interrupted or failed, and it serves generations, sessions and servers alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..backend.ascend.cache import DeviceCache
from .kv_cache import KVCache

CONTINUED = 0.5  # a text that shares this much of a row continues it, one that shares less gets a row of its own


class Placement(NamedTuple):
    """rows [n]: the cache row of each text; cached [n]: how many of its tokens lie there already."""

    rows: np.ndarray
    cached: np.ndarray


class PrefixCache:
    """The token ids whose keys and values each row holds, from position 0 on: ids int32 [B, C], length int64 [B]."""

    def __init__(self, cache: KVCache | DeviceCache, batch: int, context: int) -> None:
        self._cache = cache
        self.ids = np.zeros((batch, context), np.int32)
        self.length = np.zeros(batch, np.int64)
        self._used = np.zeros(batch, np.int64)  # the latest call that wrote the row
        self._calls = 0

    def row(self, index: int) -> np.ndarray:
        """The tokens that row `index` holds."""
        return self.ids[index, : self.length[index]]

    def overwrite(self, start: Sequence[int], length: Sequence[int]) -> None:
        """Row b is about to be written from start[b] on, if length[b] is not 0; what it held there is lost."""
        self._calls += 1
        for row, count in enumerate(length):
            if count:
                self.length[row] = min(self.length.item(row), start[row])
                self._used[row] = self._calls

    def written(self, tokens: np.ndarray, start: Sequence[int], length: Sequence[int]) -> None:
        """tokens [B, n] lie in the cache now, length[b] of them from start[b] on."""
        for row, count in enumerate(length):
            first = start[row]
            if not count or first != self.length.item(row):  # then the tokens before are not known
                continue
            if count == 1:  # every decode step: cheaper without slices
                self.ids[row, first] = tokens.item(row, 0)
            else:
                self.ids[row, first : first + count] = tokens[row, :count]
            self.length[row] = first + count

    def forget(self, rows: Sequence[int] | np.ndarray | slice = slice(None)) -> None:
        """Take these rows as empty."""
        self.length[rows] = 0

    def reorder(self, source: np.ndarray, tokens: int) -> None:
        """Row b becomes what row source[b] was, in its first `tokens` positions; source: [B] row numbers."""
        moved = np.flatnonzero(source != np.arange(len(source)))
        ids, length = self.ids[source[moved], :tokens], np.minimum(self.length[source[moved]], tokens)
        self.forget(moved)  # an interruption may leave the copy half done
        self._cache.reorder(source, tokens)
        self.ids[moved, :tokens], self.length[moved] = ids, length

    def shared(self, text: np.ndarray) -> np.ndarray:
        """How many tokens each row has in common with the beginning of `text`, [B]. Its last token never counts: the
        logits behind it are what a generation begins with."""
        return np.array([self._common(row, text[:-1]) for row in range(len(self.ids))])

    def bring(self, text: np.ndarray, row: int) -> int:
        """Have in `row` as much of the beginning of `text` as any row holds, where a copy is worth it, and return how
        many tokens that is."""
        shared = self.shared(text)
        best = int(shared.argmax())
        if shared[best] - shared[row] < self._cache.worth_copying:
            return int(shared[row])
        source = np.arange(len(self.ids))
        source[row] = best
        self.reorder(source, int(shared[best]))
        return int(shared[best])

    def fill(self, ids: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Give the row that has not been written for longest these tokens, with their keys and values: every array of
        the cache by name, as `held` gives them."""
        row = int(self._used.argmin())
        self.forget([row])
        self._cache.fill(row, len(ids), arrays)
        self.ids[row, : len(ids)], self.length[row] = ids, len(ids)
        self._calls += 1
        self._used[row] = self._calls

    def held(self, row: int, tokens: int) -> dict[str, np.ndarray]:
        """The first `tokens` positions of `row`, by the names of the cache's arrays: [G, tokens, D], and [G, tokens] of
        an int8 scale. Views, where the cache is in the host's memory."""
        return self._cache.held(row, tokens)

    def place(self, texts: Sequence[np.ndarray], reuse: bool = True) -> Placement:
        """Rows for texts that will run together, at most B of them. reuse: False takes nothing as cached.

        A text gets the row that it continues. Any other gets the row that has not been written for longest, and what
        another row holds of it is copied there: a copy costs far less than computing it, and the other text stays.
        """
        shared = np.array([self.shared(text) for text in texts])  # [n, B]
        continues = np.where(shared >= np.maximum(1, CONTINUED * self.length), shared, 0)
        rows = np.full(len(texts), -1)
        for index in np.argsort(-continues.max(axis=1), kind="stable"):
            free = continues[index].copy()
            free[rows[rows >= 0]] = 0
            if free.max() > 0:
                rows[index] = free.argmax()
        oldest = [row for row in np.argsort(self._used, kind="stable") if row not in rows]
        rows[rows < 0] = oldest[: np.count_nonzero(rows < 0)]
        if not reuse:
            return Placement(rows, np.zeros(len(rows), np.int64))
        return Placement(rows, np.array([self.bring(text, int(row)) for text, row in zip(texts, rows, strict=True)]))

    def _common(self, row: int, text: np.ndarray) -> int:
        held = self.row(row)[: len(text)]
        differs = np.flatnonzero(held != text[: len(held)])
        return int(differs[0]) if differs.size else len(held)
