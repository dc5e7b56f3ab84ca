"""The decode loop: prefill the prompts, then one pass of the engine for each new token.

`StepBatch` is one pass: it fills the engine's inputs, runs and measures it. Greedy and sampled decoding (`decode`),
beam search and the server's scheduler all run their passes through it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from ..engine.engine_lock import Cancelled
from ..engine.prefix_cache import Placement
from ..errors import LogitsError
from .sampler import NotNumbersError, Sampler
from .sequences import Sequences
from .stopping import Stop

Forward = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # Engine.forward
Select = Callable[[Sequences, np.ndarray], Sequence[int]]  # sequences, logits [rows, V] -> tokens [rows]; ended: any
T = TypeVar("T")


class Steps(Protocol):
    """The part of an engine that the decode loop needs."""

    batch: int

    def forward(self, tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Run a pass, as Engine.forward does."""


@dataclass
class GenerationTimings:
    """Counts and seconds of one generation. Decode steps exclude the prefill, which gives the first token.

    Attributes:
        prompt_tokens: tokens of all prompts.
        cached_tokens: those of them that were in the cache already; only the others were computed.
        prefill: seconds.
        decode_steps: passes after the prefill.
        decode: seconds.
        guessed_tokens: those that speculative decoding guessed.
        accepted_tokens: those of them that were right; each saved a pass.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill: float = 0.0
    decode_steps: int = 0
    decode: float = 0.0
    guessed_tokens: int = 0
    accepted_tokens: int = 0


class StepBatch:
    """One pass of an engine at a time: which tokens each row feeds at which position, and the run.

    Feed the rows that take part, then `run`. The next feed begins another pass. A pass feeds either prompts or single
    tokens, and its time counts as prefill or decode accordingly.

    Attributes:
        timings: what `run` adds its time to.
    """

    def __init__(self, engine: Steps, timings: GenerationTimings, forward: Forward | None = None) -> None:
        """Allocate the inputs.

        Args:
            engine: runs the passes.
            timings: measured times are added here.
            forward: replaces engine.forward.
        """
        self.timings = timings
        self._engine, self._forward = engine, forward
        self._start = np.zeros(engine.batch, np.int64)
        self._length = np.zeros(engine.batch, np.int64)
        self._next_tokens = np.zeros((engine.batch, 1), np.int64)
        self._rows: list[int] = []  # those that take part
        self._prompts: list[tuple[int, np.ndarray]] = []
        self._ran = False

    def feed_prompt(self, row: int, prompt: np.ndarray, cached: int) -> None:
        """Feed a whole prompt [n], of which the cache row holds the first `cached` tokens; counts it in `timings`."""
        self.timings.prompt_tokens += len(prompt)
        self.timings.cached_tokens += cached
        self.feed(row, prompt[cached:], cached)

    def feed(self, row: int, tokens: np.ndarray, start: int) -> None:
        """Feed tokens [n] of a prompt at positions `start` on."""
        self._take_part(row, start, len(tokens))
        self._prompts.append((row, tokens))

    def feed_token(self, row: int, token: int, start: int) -> None:
        """Feed one token at position `start`: a decode step."""
        self._take_part(row, start, 1)
        self._next_tokens[row, 0] = token

    def run(self, forward: Forward | None = None) -> np.ndarray:
        """Run the pass and return logits [B, V] float32, which the next pass may overwrite.

        Args:
            forward: runs this pass, and gives what is returned; None takes that of all passes.

        Raises:
            Cancelled: the generation was cancelled before or during the pass.
        """
        self._ran = True
        tokens, forward = self._tokens(), forward or self._forward or self._engine.forward
        began = time.perf_counter()
        try:
            logits = forward(tokens, self._start, self._length)
        finally:
            spent = time.perf_counter() - began
            if self._prompts:
                self.timings.prefill += spent
            else:
                self.timings.decode += spent
        if not self._prompts:
            self.timings.decode_steps += 1
        return logits

    def check(self, row: int, tokens: np.ndarray, start: int, every_position: Forward) -> np.ndarray:
        """Run a pass that feeds one row its last token and guesses of what follows; the next feed begins another pass.

        Args:
            row: the cache row.
            tokens: ids [n], n >= 2: the last token, then the guesses.
            start: position of the last token.
            every_position: runs the pass; called as Engine.forward, returns logits [n, V] of the row's tokens.

        Raises:
            Cancelled: the generation was cancelled before the pass.
        """
        self._take_part(row, start, len(tokens))
        self._ran = True
        fed = np.zeros((len(self._start), len(tokens)), np.int64)
        fed[row] = tokens
        began = time.perf_counter()
        logits = every_position(fed, self._start, self._length)
        self.timings.decode += time.perf_counter() - began
        self.timings.decode_steps += 1
        self.timings.guessed_tokens += len(tokens) - 1
        return logits

    def select(self, select: Callable[..., T], *arguments: object, row: int | None = None) -> T:
        """Return select(*arguments), which selects tokens by the logits of this pass.

        Args:
            select: raises NotNumbersError for logits that are not numbers.
            arguments: of `select`.
            row: which row's logits it gets; None for all of them.

        Raises:
            LogitsError: the logits are not numbers; the message says after how many tokens.
        """
        try:
            return select(*arguments)
        except NotNumbersError as error:
            depth = self._start + self._length
            tokens = depth.max() if row is None else depth[row]
            raise LogitsError(
                f"logits are not numbers after {tokens} tokens: a weight, an activation, the cache or a processor "
                "gives NaN or infinity. Compare the artifact's files with `edgellama check`, and export it again"
            ) from error

    def _take_part(self, row: int, start: int, length: int) -> None:
        if self._ran:
            # A row at a time: for so few numbers this is cheaper than numpy's functions, whose code is no longer in
            # the processor's caches after a pass.
            for fed in self._rows:
                self._start[fed] = self._start.item(fed) + self._length.item(fed)
                self._length[fed] = 0
            self._rows, self._prompts, self._ran = [], [], False
        self._rows.append(row)
        self._start[row], self._length[row] = start, length

    def _tokens(self) -> np.ndarray:
        """The tokens of the pass, [B, n]; rows are valid up to their length."""
        if not self._prompts:
            return self._next_tokens
        tokens = np.zeros((len(self._start), max(len(fed) for _, fed in self._prompts)), np.int64)
        for row, fed in self._prompts:
            tokens[row, : len(fed)] = fed
        return tokens


def greedy(logits: np.ndarray) -> np.ndarray:
    """Return the most likely token of each row: float32 [B, V] -> [B].

    Raises:
        NotNumbersError: logits are not numbers.
    """
    return np.array([_plain().likeliest(logits, row) for row in range(len(logits))])


@functools.cache
def _plain() -> Sampler:
    return Sampler()


def decode(
    engine: Steps,
    sequences: Sequences,
    timings: GenerationTimings,
    select: Select = lambda sequences, logits: greedy(logits).tolist(),
    stops: Sequence[tuple[str, Stop]] = (),
    placement: Placement | None = None,
    forward: Forward | None = None,
) -> Iterator[list[int]]:
    """Prefill the prompts of `sequences` together, then add a token to each row, step by step.

    A row ends when one of `stops` says so, or after its limit of tokens ("length"). All rows end, without a token, when
    `forward` raises Cancelled ("cancelled"). Nothing is computed beyond the token last taken from the iterator.

    Args:
        engine: runs the passes.
        sequences: at most engine.batch prompts; new tokens are appended to them.
        timings: counts and times are added to it.
        select: picks the next tokens; greedy by default.
        stops: (finish reason, stop) pairs.
        placement: the cache row of each sequence, and how many of its tokens are cached there; None takes the first
            rows, with nothing cached.
        forward: replaces engine.forward.

    Yields:
        The new tokens [rows], -1 for rows that ended before; `sequences` holds them by then.

    Raises:
        LogitsError: logits are not numbers.
    """
    rows, cached = placement or Placement(np.arange(len(sequences)), np.zeros(len(sequences), np.int64))
    together = np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
    mine = slice(rows[0], rows[0] + len(rows)) if together else rows  # a slice of the logits is no copy
    places = rows.tolist()
    step = StepBatch(engine, timings, forward)
    for index, row in enumerate(places):
        step.feed_prompt(row, sequences.row(index), int(cached[index]))
    for _ in range(sequences.limit):
        try:
            logits = step.run()[mine]
        except Cancelled:
            sequences.finish(sequences.live, "cancelled")
            return
        picked = step.select(select, sequences, logits)
        picked = [token if live else -1 for token, live in zip(picked, sequences.live, strict=True)]
        sequences.push(picked)
        for reason, stop in stops:
            sequences.finish(stop(sequences), reason)
        sequences.finish(sequences.full(), "length")
        yield picked
        if True not in sequences.live:
            return
        for row, live, token, length in zip(places, sequences.live, picked, sequences.length, strict=True):
            if live:
                step.feed_token(row, token, length - 1)
