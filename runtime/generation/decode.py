"""The decode loop, and what generate() means: the arguments and conventions of Hugging Face's, in numpy.

Reference for the conventions: transformers' `GenerationMixin.generate` (padding, mask inference, lengths, eos, output).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..engine.engine_lock import Cancelled
from ..engine.prefix_cache import Placement
from .sampler import NotNumbersError, Sampler
from .sequences import Texts


class Steps(Protocol):
    """What the loop needs of an engine."""

    batch: int

    def forward(self, tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray: ...


@dataclass
class Timings:
    """Counts and seconds of one generation. cached_tokens of the prompt_tokens were in the cache already, so that only
    the others were computed. Decode steps exclude the prefill, which yields the first token."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill: float = 0.0
    decode_steps: int = 0
    decode: float = 0.0


Forward = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # Engine.forward
Choose = Callable[[Texts, np.ndarray], Sequence[int]]  # texts, logits [rows, V] -> tokens [rows]; ended rows: any
Stop = Callable[[Texts], Sequence[bool]]  # [rows]: ends with its last token


def greedy(logits: np.ndarray) -> np.ndarray:
    """The most likely token of each row: [B, V] float32 -> [B]. Raises NotNumbersError where logits are not numbers."""
    return np.array([_plain().likeliest(logits, row) for row in range(len(logits))])


@functools.cache
def _plain() -> Sampler:
    return Sampler()


def decode(
    engine: Steps,
    texts: Texts,
    timings: Timings,
    choose: Choose = lambda texts, logits: greedy(logits).tolist(),
    stops: Sequence[tuple[str, Stop]] = (),
    placement: Placement | None = None,
    forward: Forward | None = None,
) -> Iterator[list[int]]:
    """Prefill the prompts of `texts` (at most engine.batch) together, then add a token to each row, step by step.

    Yields the new tokens [rows], -1 for rows that ended before; `texts` holds them then. A row ends where one of
    `stops` (finish reason, stop) says so, or after its limit of tokens ("length"); all end where `forward` raises
    Cancelled ("cancelled", without a token). Nothing is computed beyond the token last asked for.
    placement: the texts' cache rows, and how much of them is there; the first rows, nothing, when None.
    forward: stands for engine.forward.
    """
    forward = forward or engine.forward
    rows, cached = placement or Placement(np.arange(len(texts)), np.zeros(len(texts), np.int64))
    together = np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
    mine = slice(rows[0], rows[0] + len(rows)) if together else rows  # a slice of the logits is no copy
    start = np.zeros(engine.batch, np.int64)
    length = np.zeros(engine.batch, np.int64)
    start[rows] = cached
    length[rows] = np.array(texts.length) - cached
    tokens = np.zeros((engine.batch, int(length.max())), np.int64)
    for index, row in enumerate(rows):
        tokens[row, : length[row]] = texts.row(index)[cached[index] :]
    timings.prompt_tokens += sum(texts.length)
    timings.cached_tokens += int(cached.sum())
    places = rows.tolist()
    for step in range(texts.limit):
        began = time.perf_counter()
        try:
            logits = forward(tokens, start, length)[mine]
        except Cancelled:
            texts.finish(texts.live, "cancelled")
            return
        finally:
            spent = time.perf_counter() - began
            if step == 0:
                timings.prefill += spent
            else:
                timings.decode += spent
        timings.decode_steps += step > 0
        try:
            picked = choose(texts, logits)
        except NotNumbersError as error:
            raise RuntimeError(f"logits are not numbers after {int((start + length).max())} tokens") from error
        picked = [token if live else -1 for token, live in zip(picked, texts.live, strict=True)]
        texts.push(picked)
        for reason, stop in stops:
            texts.finish(stop(texts), reason)
        texts.finish(texts.full(), "length")
        yield picked
        if True not in texts.live:
            return
        if step == 0:
            tokens = np.zeros((engine.batch, 1), np.int64)
        # A row at a time: of so few numbers this is cheaper than numpy's functions, whose code has left the caches.
        for row, alive, token in zip(places, texts.live, picked, strict=True):
            start[row] = start.item(row) + length.item(row)
            length[row] = alive
            tokens[row, 0] = max(token, 0)
