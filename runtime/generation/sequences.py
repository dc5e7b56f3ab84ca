"""The token ids of the rows that run together: prompts, new tokens, and why each row ended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Texts:
    """The rows of one wave: each one's ids, its prompt without padding first, and why it ended."""

    def __init__(self, prompts: Sequence[np.ndarray], limits: Sequence[int]) -> None:
        """limits: how many new tokens each row may have."""
        self.limits = list(limits)
        self.limit, self._least = max(limits), min(limits)
        self.steps = 0
        # Lists: of so few numbers Python's own are cheaper than numpy's, in a decode step above all.
        self.prompt_length = [len(prompt) for prompt in prompts]
        self.length = list(self.prompt_length)
        width = max(length + limit for length, limit in zip(self.length, limits, strict=True))
        self.ids = np.zeros((len(prompts), width), np.int64)
        for row, prompt in zip(self.ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        self.live = [True] * len(prompts)
        self.finish_reasons: list[str | None] = [None] * len(prompts)

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> np.ndarray:
        return self.ids[index, : self.length[index]]

    def new(self, index: int) -> np.ndarray:
        """The row's new tokens, the eos that ended it included."""
        return self.ids[index, self.prompt_length[index] : self.length[index]]

    def newest(self) -> list[int]:
        """Each row's last token."""
        return [self.ids.item(row, length - 1) for row, length in enumerate(self.length)]

    def last(self) -> np.ndarray:
        """Each row's last token, [rows]."""
        return np.array(self.newest())

    def left_padded(self, filler: int) -> np.ndarray:
        """All texts as Hugging Face's callables see them, [rows, longest prompt + steps]; ended rows are filled up."""
        out = np.full((len(self), max(self.prompt_length) + self.steps), filler, np.int64)
        for index, row in enumerate(out):
            text = self.row(index)
            first = len(row) - self.steps - self.prompt_length[index]
            row[first : first + len(text)] = text
        return out

    def push(self, picked: Sequence[int]) -> None:
        """Add a token to each live row; picked: [rows]."""
        for row, token in enumerate(picked):
            if self.live[row]:
                self.ids[row, self.length[row]] = token
                self.length[row] += 1
        self.steps += 1

    def full(self) -> list[bool]:
        """Which rows have as many new tokens as they may."""
        if self.steps < self._least:  # every step but the last, most often
            return [False] * len(self)
        return [self.steps >= limit for limit in self.limits]

    def finish(self, ended: Sequence[bool], reason: str) -> None:
        """Rows of `ended` that still live end now."""
        for row, ends in enumerate(ended):
            if ends and self.live[row]:
                self.finish_reasons[row] = reason
                self.live[row] = False


def join(ids: np.ndarray, new: Sequence[np.ndarray], padding: int | None) -> np.ndarray:
    """ids [B, n] and each row's new tokens, padded to the longest: [B, n + new], as Hugging Face returns it."""
    width = max(len(row) for row in new)
    filler = 0 if padding is None else padding  # None: no eos, so rows end together unless something else ends them
    output = np.full((len(ids), ids.shape[1] + width), filler, np.int64)
    output[:, : ids.shape[1]] = ids
    for index, row in enumerate(new):
        output[index, ids.shape[1] : ids.shape[1] + len(row)] = row
    return output
