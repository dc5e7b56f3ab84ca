"""Which token comes next, and when a row ends: the settings of a call put to work on one wave of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from .config import GenerationConfig
from .logits_processors import processors, without_eos
from .sampler import Sampler
from .sequences import Texts

# A caller's own, called as Hugging Face calls its own but with numpy arrays: input_ids [rows, n], scores [rows, V].
LogitsProcessor = Callable[[np.ndarray, np.ndarray], Any]  # -> scores [rows, V]


class Chooser:
    """Picks each row's next token by the settings, and keeps the figures that were asked for.

    scores (after the processors), logits (before): a [rows, V] a step; logprobs: a [rows] a step, of the chosen tokens
    under the logits. Rows that ended have zeros there.
    """

    def __init__(
        self,
        config: GenerationConfig,
        vocab_size: int,
        generators: Sequence[np.random.Generator],
        custom: Sequence[LogitsProcessor] = (),
    ) -> None:
        """generators: one a row, which it alone draws from."""
        self.config = config
        self.custom = custom
        self.generators = generators
        self.processors = processors(config, vocab_size)
        keep = 1 if config.num_beams == 1 else max(2, 1 + len(config.eos_token_id))  # beams must be able to go on
        self.sampler = Sampler(config if config.do_sample else None, keep)
        self.plain = Sampler()
        self.scores: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []
        self.logprobs: list[np.ndarray] = []
        self._processed = np.zeros((0, 0), np.float32)

    def __call__(self, texts: Texts, logits: np.ndarray) -> list[int]:
        """texts, logits [rows, V] float32, C-contiguous -> tokens [rows], -1 for a row that has ended.

        Raises UserError where the settings leave a row no token, NotNumbersError for logits that are not numbers.
        """
        config = self.config
        rows = [row for row, live in enumerate(texts.live) if live]
        scores, places = logits, rows
        if self._sways(texts):
            scores, places = self.processed(texts, logits, rows), list(range(len(rows)))
        picked = [-1] * len(texts)
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
                kept[row] = self.sampler.warped(scores[place])
            self.scores.append(kept)
        if config.output_logprobs:
            logprobs = np.zeros(len(texts), np.float32)
            for row in rows:
                logprobs[row] = logits.item(row, picked[row]) - self.plain.log_normaliser(logits, row)
            self.logprobs.append(logprobs)
        return picked

    def processed(self, texts: Texts, logits: np.ndarray, rows: list[int]) -> np.ndarray:
        """Scores [live rows, V] before temperature and limits; the next call overwrites them."""
        scores = self._copy(logits, rows)
        ids = [texts.row(row) for row in rows]
        for processor in self.processors:
            scores = processor(ids, scores)
        if self._few_yet(texts):
            scores = without_eos(scores, self.config.eos_token_id)
        if self.custom:
            whole = np.zeros_like(logits)
            whole[rows] = scores
            input_ids = texts.left_padded(self.config.padding or 0)
            for custom in self.custom:
                whole = np.asarray(custom(input_ids, whole), np.float32)
                if whole.shape != logits.shape:
                    raise UserError(f"a logits_processor returned shape {whole.shape}; needed: {logits.shape}")
            scores[:] = whole[rows]
        return scores

    def _sways(self, texts: Texts) -> bool:
        """Whether anything beside the sampler changes this step's scores."""
        return bool(self.processors or self.custom or self._few_yet(texts))

    def _few_yet(self, texts: Texts) -> bool:
        return texts.steps < self.config.min_new_tokens and bool(self.config.eos_token_id)

    def _copy(self, logits: np.ndarray, rows: list[int]) -> np.ndarray:
        """The rows of the logits in memory that is kept: fresh memory of such a size costs a page fault every 4 KB."""
        shape = (len(rows), logits.shape[1])
        if self._processed.shape != shape:
            self._processed = np.empty(shape, np.float32)
        for place, row in enumerate(rows):
            self._processed[place] = logits[row]
        return self._processed
