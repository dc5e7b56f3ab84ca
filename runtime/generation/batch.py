"""One call of generate(): its settings, the waves of rows that it runs in, and its result put together from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..engine.engine import Engine
from ..engine.engine_lock import Cancellation
from ..text.tokenizer import Tokenizer
from .config import GenerationConfig
from .decode import Timings, decode
from .output import GenerateOutput
from .sequences import Texts
from .stopping import StoppingCriterion, stops
from .token_selector import Chooser, LogitsProcessor


@dataclass(frozen=True)
class Call:
    """One call's settings and callables, and what cancels it."""

    config: GenerationConfig
    logits_processors: list[LogitsProcessor]
    stopping_criteria: list[StoppingCriterion]
    seed: int
    reuse_prefix: bool = False
    cancelled: Cancellation = field(default_factory=Cancellation)


class Wave:
    """Rows that run together: their texts, what chooses their tokens and what ends them. Made before anything runs, so
    that settings which do not fit are told first."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Callable[[], Tokenizer],
        call: Call,
        rows: Sequence[np.ndarray],
        first: int,
        limits: Sequence[int],
    ) -> None:
        """rows: prompts without padding, at most engine.batch; first: the place of rows[0] among all rows of the call,
        by which each has a random stream of its own; limits: new tokens of each; tokenizer: asked for where settings
        need it."""
        self.engine = engine
        self.call = call
        self.texts = Texts(rows, limits)
        generators = [np.random.default_rng([call.seed, first + index]) for index in range(len(rows))]
        self.chooser = Chooser(call.config, engine.vocab_size, generators, call.logits_processors)
        self.stops = stops(call.config, tokenizer, len(rows), self.chooser, call.stopping_criteria)

    def decode(self, timings: Timings) -> Iterator[list[int]]:
        """Run, with the engine's turn taken; what the cache holds of the prompts is not computed again, if the call
        reuses it."""
        texts = [self.texts.row(index) for index in range(len(self.texts))]
        placement = self.engine.prefixes.place(texts, self.call.reuse_prefix)
        forward = PromptsOnce(self.engine, texts, placement.rows, self.call.cancelled.is_set)
        return decode(self.engine, self.texts, timings, self.chooser, self.stops, placement, forward)


class PromptsOnce:
    """Engine.forward for the rows of one wave: its first pass computes each prompt once, and rows with the same prompt
    get a copy of what that wrote to the cache."""

    def __init__(
        self, engine: Engine, texts: Sequence[np.ndarray], rows: np.ndarray, cancelled: Callable[[], bool]
    ) -> None:
        """rows: where in the cache each text lies."""
        self._engine, self._cancelled = engine, cancelled
        self._source = np.arange(engine.batch)
        self._tokens = max(map(len, texts))
        first: dict[bytes, int] = {}
        for text, row in zip(texts, rows.tolist(), strict=True):
            if len(text) >= engine.cache.worth_copying:
                self._source[row] = first.setdefault(text.tobytes(), row)
        self._copies = np.flatnonzero(self._source != np.arange(engine.batch))

    def __call__(self, tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        if not self._copies.size:
            return self._engine.forward(tokens, start, length, self._cancelled)
        computed = length.copy()
        computed[self._copies] = 0
        logits = self._engine.forward(tokens, start, computed, self._cancelled)
        self._engine.reorder(self._source, self._tokens)
        logits[self._copies] = logits[self._source[self._copies]]
        self._copies = self._copies[:0]
        return logits


def output(sequences: np.ndarray, waves: Sequence[Wave], timings: Timings) -> GenerateOutput:
    """Put the waves' rows together again, step by step; zeros where a wave had ended."""
    config = waves[0].chooser.config
    steps = max(wave.texts.steps for wave in waves)

    def joined(of: Callable[[Wave], list[np.ndarray]]) -> tuple[np.ndarray, ...]:
        shape = next((of(wave)[0].shape[1:] for wave in waves if wave.texts.steps), ())
        blanks = [np.zeros((len(wave.texts), *shape), np.float32) for wave in waves]
        return tuple(
            np.concatenate(
                [of(w)[step] if step < w.texts.steps else blank for w, blank in zip(waves, blanks, strict=True)]
            )
            for step in range(steps)
        )

    logprobs = np.zeros((len(sequences), steps), np.float32)
    if config.output_logprobs:
        for step, column in enumerate(joined(lambda wave: wave.chooser.logprobs)):
            logprobs[:, step] = column
    return GenerateOutput(
        sequences,
        tuple(reason or "length" for wave in waves for reason in wave.texts.finish_reasons),
        tuple(len(wave.texts.new(index)) for wave in waves for index in range(len(wave.texts))),
        timings,
        scores=joined(lambda wave: wave.chooser.scores) if config.output_scores else None,
        logits=joined(lambda wave: wave.chooser.logits) if config.output_logits else None,
        logprobs=logprobs if config.output_logprobs else None,
    )
