"""Which token comes next: the processors and the sampler of one call, applied to the logits of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from .config import GenerationConfig
from .logits_processors import processors, without_eos
from .sampler import Sampler
from .sequences import Sequences
from .step_processors import StepProcessor, step_processors
from .warpers import log_softmax

# A caller's processor, as Hugging Face calls its own but with numpy arrays: input_ids [rows, n], scores [rows, V].
LogitsProcessor = Callable[[np.ndarray, np.ndarray], Any]  # -> scores [rows, V]


class TokenSelector:
    """Selects the next token of each row, and keeps the outputs that the settings ask for.

    Attributes:
        sampler: applies the sampling settings.
        plain: a sampler without settings, for log-probabilities of the model itself.
        scores: per step float32 [rows, V], after the processors and the sampling settings (output_scores).
        logits: per step float32 [rows, V], as the model gave them (output_logits).
        logprobs: per step float32 [rows], of the selected tokens under the logits (output_logprobs).

    Rows that ended have zeros there.
    """

    def __init__(
        self,
        config: GenerationConfig,
        vocab_size: int,
        generators: Sequence[np.random.Generator],
        custom: Sequence[LogitsProcessor] = (),
        allowed: StepProcessor | None = None,
    ) -> None:
        """Prepare the processors and the sampler.

        Args:
            config: the settings of the call.
            vocab_size: width of the logits.
            generators: one per row; a row draws from its own only.
            custom: the caller's processors, which run after the built-in ones.
            allowed: of the caller's prefix_allowed_tokens_fn.

        Raises:
            UserError: a setting names an id outside the vocabulary.
        """
        self.config = config
        self.custom = custom
        self.generators = generators
        self.processors = processors(config, vocab_size)
        self.step_processors = step_processors(config, vocab_size, allowed)
        keep = 1 if config.num_beams == 1 else max(2, 1 + len(config.eos_token_id))  # some beam must be able to go on
        self.sampler = Sampler(config if config.do_sample else None, keep)
        self.plain = Sampler()
        self.scores: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []
        self.logprobs: list[np.ndarray] = []
        self._processed = np.zeros((0, 0), np.float32)

    def __call__(self, sequences: Sequences, logits: np.ndarray) -> list[int]:
        """Return the next token of each row, -1 for a row that has ended.

        Args:
            sequences: the rows so far.
            logits: float32 [rows, V], C-contiguous.

        Raises:
            UserError: the settings leave a row no token.
            NotNumbersError: logits are not numbers.
        """
        config = self.config
        rows = [row for row, live in enumerate(sequences.live) if live]
        scores, places = logits, rows
        if self._changes_scores(sequences):
            scores, places = self.processed(sequences, logits, rows), list(range(len(rows)))
        picked = [-1] * len(sequences)
        for row, place in zip(rows, places, strict=True):
            if config.do_sample:
                picked[row] = self.sampler.draw(scores, place, self.generators[row].random())
            else:
                picked[row] = self.sampler.likeliest(scores, place)
        if config.output_logits:
            self.logits.append(logits.copy())
        if config.output_scores:
            kept = np.zeros_like(logits)
            for row, place in zip(rows, places, strict=True):
                kept[row] = self._warped(scores[place])
            self.scores.append(kept)
        if config.output_logprobs:
            logprobs = np.zeros(len(sequences), np.float32)
            for row in rows:
                logprobs[row] = logits.item(row, picked[row]) - self.plain.logsumexp(logits, row)
            self.logprobs.append(logprobs)
        return picked

    def log_probabilities(self, sequences: Sequences, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return log-probabilities float32 [rows, V] for beam search, all rows taken as live.

        Args:
            sequences: the rows so far.
            logits: float32 [rows, V], C-contiguous.

        Returns:
            The log-probabilities after processors and sampling settings, and the model's own.

        Raises:
            NotNumbersError: logits are not numbers.
        """
        normalisers = [self.plain.logsumexp(logits, row) for row in range(len(logits))]
        logprobs = logits - np.array(normalisers, np.float32)[:, None]
        scores = self.processed(sequences, logprobs, list(range(len(logits))))
        scores = np.stack([self._warped(row) for row in scores])
        if self.config.output_logits:
            self.logits.append(logits.copy())
        if self.config.output_scores:
            self.scores.append(scores.copy())
        return scores, logprobs

    def processed(self, sequences: Sequences, logits: np.ndarray, rows: list[int]) -> np.ndarray:
        """Return the processed scores [len(rows), V] of these rows; the next call overwrites them."""
        scores = self._copy(logits, rows)
        ids = [sequences.row(row) for row in rows]
        for processor in self.processors:
            scores = processor(ids, scores)
        if self._below_min_new_tokens(sequences):
            scores = without_eos(scores, self.config.eos_token_id)
        for step_processor in self.step_processors:
            scores = step_processor(sequences, rows, scores)
        if self.custom:
            whole = np.zeros_like(logits)
            whole[rows] = scores
            input_ids = sequences.left_padded(self.config.padding or 0)
            for custom in self.custom:
                whole = np.asarray(custom(input_ids, whole), np.float32)
                if whole.shape != logits.shape:
                    raise UserError(f"a logits_processor returned shape {whole.shape}; needed: {logits.shape}")
            scores[:] = whole[rows]
        return scores

    def _warped(self, scores: np.ndarray) -> np.ndarray:
        """Return scores [V] after the sampling settings and renormalize_logits."""
        warped = self.sampler.warp(scores)
        return log_softmax(warped) if self.config.renormalize_logits else warped

    def _changes_scores(self, sequences: Sequences) -> bool:
        """Whether anything besides the sampler changes this step's scores."""
        several = self.processors or self.step_processors or self.custom
        return bool(several or self._below_min_new_tokens(sequences))

    def _below_min_new_tokens(self, sequences: Sequences) -> bool:
        return sequences.steps < self.config.min_new_tokens and bool(self.config.eos_token_id)

    def _copy(self, logits: np.ndarray, rows: list[int]) -> np.ndarray:
        """Copy rows of the logits to memory that is kept: new memory of this size costs a page fault every 4 KB."""
        shape = (len(rows), logits.shape[1])
        if self._processed.shape != shape:
            self._processed = np.empty(shape, np.float32)
        for place, row in enumerate(rows):
            self._processed[place] = logits[row]
        return self._processed
