"""The batches of one generate() call: each runs up to engine.batch rows together, and their results are joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..engine.engine import Engine
from ..engine.engine_lock import Cancellation
from ..errors import UserError
from ..text.tokenizer import Tokenizer
from .config import GenerationConfig
from .decode import GenerationTimings, decode
from .output import GenerateOutput, join_steps
from .sequences import Sequences
from .speculative import LONGEST_NGRAM, MOST_TOKENS, Guesser, Pace, PromptLookup, decode_guessing
from .step_processors import PrefixAllowed
from .stopping import StoppingCriterion, stops
from .token_selector import LogitsProcessor, TokenSelector


@dataclass(frozen=True)
class GenerateCall:
    """The settings and callables of one call, and the means to cancel it.

    prefix_allowed: the caller's prefix_allowed_tokens_fn.
    adapters: the number of each prompt's adapter; empty: none has one.
    draft: the assistant_model, if there is one; it takes precedence over prompt lookup.
    """

    config: GenerationConfig
    logits_processors: list[LogitsProcessor]
    stopping_criteria: list[StoppingCriterion]
    seed: int
    reuse_prefix: bool
    prefix_allowed: Callable[[int, np.ndarray], Sequence[int]] | None = None
    adapters: Sequence[int] = ()
    draft: Guesser | None = None
    cancelled: Cancellation = field(default_factory=Cancellation)

    @property
    def guesses(self) -> str:
        """The argument or setting that makes this call guess tokens. Empty: the call guesses none."""
        if self.draft is not None:
            return "assistant_model"
        return "" if self.config.prompt_lookup_num_tokens is None else "prompt_lookup_num_tokens"

    def allowed(self, prompts: Sequence[int]) -> PrefixAllowed | None:
        """Return the processor of prefix_allowed_tokens_fn for rows of these prompts; None without one."""
        return None if self.prefix_allowed is None else PrefixAllowed(self.prefix_allowed, prompts)


class Batch:
    """Rows that run together: their sequences, the selector of their tokens, and what ends them.

    A batch is made before anything runs, so that unsuitable settings are reported first.

    Attributes:
        sequences: prompts and new tokens.
        adapters: the number of each row's adapter; 0: none.
        selector: selects the tokens, and keeps scores, logits and log-probabilities.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Callable[[], Tokenizer],
        call: GenerateCall,
        rows: Sequence[np.ndarray],
        first: int,
        limits: Sequence[int],
    ) -> None:
        """Check the settings.

        Args:
            engine: runs the rows.
            tokenizer: returns the tokenizer; called only if the settings need it.
            call: the settings.
            rows: prompts [n] without padding, at most engine.batch.
            first: index of rows[0] among all rows of the call; it gives each row its own random stream.
            limits: new tokens of each row.

        Raises:
            UserError: a setting does not suit this artifact.
        """
        self.engine = engine
        self.call = call
        prompts = [(first + index) // call.config.num_return_sequences for index in range(len(rows))]
        self.adapters = [call.adapters[prompt] if call.adapters else 0 for prompt in prompts]
        if name := call.guesses:
            if len(rows) != 1:
                raise UserError(
                    f"{name} speeds up one sequence at a time, and this call has {len(rows)}. Give one prompt per "
                    f"call, or leave {name} out"
                )
            _ = engine.head  # raises UserError for a target that cannot check guesses
        self.sequences = Sequences(rows, limits)
        generators = [np.random.default_rng([call.seed, first + index]) for index in range(len(rows))]
        self.selector = TokenSelector(
            call.config, engine.vocab_size, generators, call.logits_processors, call.allowed(prompts)
        )
        self.stops = stops(call.config, tokenizer, len(rows), self.selector.scores, call.stopping_criteria)

    def decode(self, timings: GenerationTimings) -> Iterator[list[int]]:
        """Run the rows; the caller holds the engine's lock.

        Prompt tokens that the cache holds already are not computed again, if the call reuses prefixes.

        Yields:
            The new tokens [rows] of each step, -1 for rows that have ended.
        """
        prompts = [self.sequences.row(index) for index in range(len(self.sequences))]
        placement = self.engine.prefixes.place(prompts, self.call.reuse_prefix, self.adapters)
        forward = PromptsOnce(self.engine, prompts, placement.rows, self.call.cancelled.is_set, self.adapters)
        config = self.call.config
        if not self.call.guesses:
            return decode(self.engine, self.sequences, timings, self.selector, self.stops, placement, forward)
        return decode_guessing(
            *(self.engine, self.sequences, timings, self.selector, self.stops),
            (int(placement.rows[0]), int(placement.cached[0])),
            *(forward, self.call.cancelled.is_set),
            self.call.draft or PromptLookup(config.max_matching_ngram_size or LONGEST_NGRAM),
            Pace(config.prompt_lookup_num_tokens or MOST_TOKENS - 1),
        )


class PromptsOnce:
    """Engine.forward for one batch, whose first pass computes equal prompts with the same adapter only once.

    Rows with the same prompt and adapter get a copy of the cache entries that one of them wrote.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[np.ndarray],
        rows: np.ndarray,
        cancelled: Callable[[], bool],
        adapters: Sequence[int] = (),
    ) -> None:
        """Find the equal prompts.

        Args:
            engine: runs the passes.
            prompts: token ids [n] of each row.
            rows: the cache row of each prompt.
            cancelled: asked before each chunk of a pass.
            adapters: the number of each prompt's adapter; empty: none has one.
        """
        self._engine, self._cancelled = engine, cancelled
        self._source = np.arange(engine.batch)
        self._tokens = max(map(len, prompts))
        first: dict[tuple[bytes, int], int] = {}
        for prompt, adapter, row in zip(prompts, adapters or [0] * len(prompts), rows.tolist(), strict=True):
            if len(prompt) >= engine.cache.worth_copying:
                self._source[row] = first.setdefault((prompt.tobytes(), adapter), row)
        self._copies = np.flatnonzero(self._source != np.arange(engine.batch))

    def __call__(self, tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Run a pass; arguments, result and errors are those of Engine.forward."""
        if not self._copies.size:
            return self._engine.forward(tokens, start, length, self._cancelled)
        computed = length.copy()
        computed[self._copies] = 0
        logits = self._engine.forward(tokens, start, computed, self._cancelled)
        self._engine.reorder(self._source, self._tokens)
        logits[self._copies] = logits[self._source[self._copies]]
        self._copies = self._copies[:0]
        return logits


def batch_output(ids: np.ndarray, batches: Sequence[Batch], timings: GenerationTimings) -> GenerateOutput:
    """Join the results of the batches.

    Args:
        ids: prompts and new tokens of all rows, int64 [B, n + new].
        batches: those that ran, in the order of their rows.
        timings: of the whole call.
    """
    config = batches[0].selector.config
    steps = max(batch.sequences.steps for batch in batches)
    rows = [len(batch.sequences) for batch in batches]

    def joined(of: Callable[[TokenSelector], list[np.ndarray]]) -> tuple[np.ndarray, ...]:
        return join_steps([of(batch.selector) for batch in batches], rows, steps)

    logprobs = np.zeros((len(ids), steps), np.float32)
    if config.output_logprobs:
        for step, column in enumerate(joined(lambda selector: selector.logprobs)):
            logprobs[:, step] = column
    return GenerateOutput(
        ids,
        tuple(reason or "length" for batch in batches for reason in batch.sequences.finish_reasons),
        tuple(len(batch.sequences.new(index)) for batch in batches for index in range(len(batch.sequences))),
        timings,
        scores=joined(lambda selector: selector.scores) if config.output_scores else None,
        logits=joined(lambda selector: selector.logits) if config.output_logits else None,
        logprobs=logprobs if config.output_logprobs else None,
    )
