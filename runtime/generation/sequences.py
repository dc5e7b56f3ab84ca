"""The token ids of the rows that run together: prompts, new tokens, and why each row ended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Sequences:
    """The token ids of one batch of rows.

    Attributes:
        ids: int64 [rows, width]; each row's prompt without padding, then its new tokens.
        length: tokens of each row so far.
        prompt_length: tokens of each row's prompt.
        limits: new tokens that each row may have; `limit` is the largest.
        steps: tokens pushed so far to a row that still runs.
        live: whether each row still runs.
        finish_reasons: why each row ended; None while it runs.

    These are lists: for so few numbers Python's own are cheaper than numpy's, above all in a decode step.
    """

    def __init__(self, prompts: Sequence[np.ndarray], limits: Sequence[int]) -> None:
        """Begin with the prompts.

        Args:
            prompts: token ids [n] of each row, without padding.
            limits: how many new tokens each row may have.
        """
        self.limits = list(limits)
        self.limit, self._least = max(limits), min(limits)
        self.steps = 0
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
        """Return the tokens of a row so far, [n]; a view."""
        return self.ids[index, : self.length[index]]

    def new(self, index: int) -> np.ndarray:
        """Return the new tokens of a row, [n], including the eos that ended it; a view."""
        return self.ids[index, self.prompt_length[index] : self.length[index]]

    def newest(self) -> list[int]:
        """Return the last token of each row."""
        return [self.ids.item(row, length - 1) for row, length in enumerate(self.length)]

    def last(self) -> np.ndarray:
        """Return the last token of each row as an array, [rows]."""
        return np.array(self.newest())

    def left_padded(self, filler: int) -> np.ndarray:
        """Return all rows as Hugging Face's callables see them: int64 [rows, longest prompt + steps].

        Args:
            filler: the id in front of shorter prompts and behind rows that have ended.
        """
        out = np.full((len(self), max(self.prompt_length) + self.steps), filler, np.int64)
        for index, row in enumerate(out):
            ids = self.row(index)
            first = len(row) - self.steps - self.prompt_length[index]
            row[first : first + len(ids)] = ids
        return out

    def push(self, picked: Sequence[int]) -> None:
        """Append a token to each live row; picked: [rows], ignored for rows that have ended."""
        for row, token in enumerate(picked):
            if self.live[row]:
                self.ids[row, self.length[row]] = token
                self.length[row] += 1
        self.steps += 1

    def full(self) -> list[bool]:
        """Whether each row has reached its limit of new tokens."""
        if self.steps < self._least:  # nearly always, in every step but the last
            return [False] * len(self)
        return [self.steps >= limit for limit in self.limits]

    def finish(self, ended: Sequence[bool], reason: str) -> None:
        """End the live rows that `ended` marks, [rows], with this finish reason."""
        for row, ends in enumerate(ended):
            if ends and self.live[row]:
                self.finish_reasons[row] = reason
                self.live[row] = False


def join(ids: np.ndarray, new: Sequence[np.ndarray], padding: int | None) -> np.ndarray:
    """Append each row's new tokens to its prompt: int64 [B, n + new], as Hugging Face's generate() returns it.

    Args:
        ids: the prompts [B, n], with their padding.
        new: the new tokens of each row; shorter rows are padded behind.
        padding: the id to pad with; None if there is no eos id, since rows then rarely end at different lengths (0 pads
            in that case).
    """
    width = max(len(row) for row in new)
    output = np.full((len(ids), ids.shape[1] + width), 0 if padding is None else padding, np.int64)
    output[:, : ids.shape[1]] = ids
    for index, row in enumerate(new):
        output[index, ids.shape[1] : ids.shape[1] + len(row)] = row
    return output
