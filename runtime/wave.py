"""One call of generate(): its settings, the waves of rows that it runs in, and its result put together from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from runtime import generation
from runtime.choosing import Chooser, LogitsProcessor, StoppingCriterion, stops
from runtime.engine import Engine
from runtime.generation import Texts, Timings
from runtime.generation_config import GenerationConfig
from runtime.output import GenerateOutput
from runtime.text import Tokenizer


@dataclass(frozen=True)
class Call:
    """One call's settings and callables."""

    config: GenerationConfig
    logits_processors: list[LogitsProcessor]
    stopping_criteria: list[StoppingCriterion]
    seed: int


class Wave:
    """Rows that run together: their texts, what chooses their tokens and what ends them. Made before anything runs, so
    that settings which do not fit are told first."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Callable[[], Tokenizer],
        call: Call,
        rows: list[np.ndarray],
        first: int,
        limit: int,
    ) -> None:
        """rows: prompts without padding, at most engine.batch; first: the place of rows[0] among all rows of the call,
        by which each has a random stream of its own; limit: new tokens; tokenizer: asked for where settings need it."""
        self.engine = engine
        self.texts = Texts(rows, limit)
        generators = [np.random.default_rng([call.seed, first + index]) for index in range(len(rows))]
        self.chooser = Chooser(call.config, engine.vocab_size, generators, call.logits_processors)
        self.stops = stops(call.config, tokenizer, len(rows), self.chooser, call.stopping_criteria)

    def decode(self, timings: Timings) -> Iterator[np.ndarray]:
        return generation.decode(self.engine, self.texts, timings, self.chooser, self.stops)


def output(sequences: np.ndarray, waves: Sequence[Wave], timings: Timings) -> GenerateOutput:
    """Put the waves' rows together again, step by step."""
    config = waves[0].chooser.config
    steps = max(wave.texts.steps for wave in waves)

    def joined(of: Callable[[Wave], list[np.ndarray]]) -> tuple[np.ndarray, ...]:
        return tuple(
            np.concatenate([of(w)[step] if step < w.texts.steps else np.zeros_like(of(w)[0]) for w in waves])
            for step in range(steps)
        )

    return GenerateOutput(
        sequences,
        tuple(reason or "length" for wave in waves for reason in wave.texts.finish_reasons),
        timings,
        scores=joined(lambda wave: wave.chooser.scores) if config.output_scores else None,
        logits=joined(lambda wave: wave.chooser.logits) if config.output_logits else None,
        logprobs=np.stack(joined(lambda wave: wave.chooser.logprobs), axis=1) if config.output_logprobs else None,
    )
