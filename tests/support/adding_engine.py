"""An engine that only adds up tokens: a model whose next token anyone can compute from the whole text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgellama.engine.engine_lock import Cancelled
from edgellama.engine.prefix_cache import Placement

ROWS, VOCAB = 4, 11


def follower(text: Sequence[int]) -> int:
    """Return the likeliest token after a text: it depends on every token and its position."""
    return sum((place + 1) * token for place, token in enumerate(text)) % VOCAB


def continued(prompt: Sequence[int], count: int, after: Callable[[Sequence[int]], int] = follower) -> list[int]:
    """Return the next `count` tokens of a text, one by one: decoding in its simplest form."""
    text = list(prompt)
    for _ in range(count):
        text.append(after(text))
    return text[len(prompt) :]


class Adder:
    """An engine of four rows that remembers the tokens of each row, and whose logits are 1 for `follower`.

    Attributes:
        rows: the tokens of each row.
        lengths: the lengths that each pass was called with.
        copies: the calls of `reorder`.
        places: the calls of `place`.
        stop_at: raise Cancelled after this many passes.
        scores: gives the logits [VOCAB] after a text.
    """

    batch = ROWS
    vocab_size = VOCAB

    def __init__(self, worth_copying: int = 1) -> None:
        """Begin with empty rows; worth_copying: as in KVCache."""
        self.rows: list[list[int]] = [[] for _ in range(ROWS)]
        self.lengths: list[list[int]] = []
        self.copies: list[tuple[list[int], int]] = []
        self.places: list[tuple[list[list[int]], bool, list[int]]] = []
        self.stop_at = 10**9
        self.cache = SimpleNamespace(worth_copying=worth_copying)
        self.head: Any = SimpleNamespace(logits=lambda hidden: hidden)
        self.prefixes = self
        self.scores: Callable[[Sequence[int]], np.ndarray] = lambda text: np.eye(VOCAB, dtype=np.float32)[
            follower(text)
        ]

    def forward(self, tokens: np.ndarray, start: np.ndarray, length: np.ndarray, cancelled: Any = None) -> np.ndarray:
        """Feed tokens, and return the logits after the last one of each row."""
        every = self.hidden(tokens, start, length)
        logits = np.zeros((ROWS, VOCAB), np.float32)
        for row in np.flatnonzero(length):
            logits[row] = every[row, length[row] - 1]
        return logits

    def hidden(
        self, tokens: np.ndarray, start: np.ndarray, length: np.ndarray, cancelled: Callable[[], bool] = lambda: False
    ) -> np.ndarray:
        """Feed tokens, and return the logits after each one: `head` passes them on."""
        if len(self.lengths) >= self.stop_at or cancelled():
            raise Cancelled
        self.lengths.append(np.asarray(length).tolist())
        logits = np.zeros((*tokens.shape, VOCAB), np.float32)
        for row in np.flatnonzero(length):
            assert start[row] <= len(self.rows[row])
            self.rows[row][start[row] :] = tokens[row, : length[row]].tolist()
            for place in range(length[row]):
                logits[row, place] = self.scores(self.rows[row][: start[row] + place + 1])
        return logits

    def reorder(self, source: np.ndarray, tokens: int) -> None:
        """Copy the first tokens of rows to others."""
        self.copies.append((source.tolist(), tokens))
        self.rows = [self.rows[row][:tokens] for row in source]

    def place(self, prompts: Sequence[np.ndarray], reuse: bool, adapters: Sequence[int]) -> Placement:
        """Give the prompts the first rows, with nothing cached."""
        self.places.append(([prompt.tolist() for prompt in prompts], reuse, list(adapters)))
        return Placement(np.arange(len(prompts)), np.zeros(len(prompts), np.int64))
