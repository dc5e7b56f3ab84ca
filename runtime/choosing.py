"""Which token comes next, and when a row ends: the settings of a call put to work on one wave of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from runtime.candidates import Candidates, draw, log_normaliser
from runtime.errors import UserError
from runtime.generation import Stop, Texts, greedy
from runtime.generation_config import GenerationConfig
from runtime.processors import processors, without_eos
from runtime.sampling import warpers
from runtime.text import Tokenizer

# A caller's own, called as Hugging Face calls its own but with numpy arrays: input_ids [rows, n], scores [rows, V].
LogitsProcessor = Callable[[np.ndarray, np.ndarray], Any]  # -> scores [rows, V]
StoppingCriterion = Callable[[np.ndarray, Any], Any]  # -> one boolean, or [rows]


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
        self.warpers = warpers(config, keep) if config.do_sample else []
        self.scores: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []
        self.logprobs: list[np.ndarray] = []

    def __call__(self, texts: Texts, logits: np.ndarray) -> np.ndarray:
        """texts, logits [rows, V] -> tokens [rows]."""
        rows = [row for row, live in enumerate(texts.live.tolist()) if live]
        if self.config.output_logits:
            self.logits.append(logits.copy())
        normalisers = [log_normaliser(logits[row]) for row in rows] if self.config.output_logprobs else []
        processed = self.processed(texts, logits, rows)
        kept = np.zeros_like(logits) if self.config.output_scores else None
        picked = [-1] * len(texts)
        if self.config.do_sample:
            for row, scores in zip(rows, processed, strict=True):
                candidates = Candidates(scores)
                for warper in self.warpers:
                    candidates = warper(candidates)
                picked[row] = draw(candidates, self.generators[row].random())
                if kept is not None:
                    kept[row] = candidates.dense(scores.size)
        else:
            for row, token in zip(rows, greedy(processed).tolist(), strict=True):
                picked[row] = token
            if kept is not None:
                kept[rows] = processed
        if kept is not None:
            self.scores.append(kept)
        if self.config.output_logprobs:
            logprobs = np.zeros(len(texts), np.float32)
            for row, normaliser in zip(rows, normalisers, strict=True):
                logprobs[row] = logits[row, picked[row]] - normaliser
            self.logprobs.append(logprobs)
        return np.array(picked, np.int64)

    def processed(self, texts: Texts, logits: np.ndarray, rows: list[int]) -> np.ndarray:
        """Scores [live rows, V] before the warpers."""
        scores = logits if len(rows) == len(logits) else logits[rows]
        few_yet = texts.steps < self.config.min_new_tokens and self.config.eos_token_id
        if self.processors or few_yet or self.custom:
            scores = scores.copy()
        ids = [texts.row(row) for row in rows]
        for processor in self.processors:
            scores = processor(ids, scores)
        if few_yet:
            scores = without_eos(scores, self.config.eos_token_id)
        if self.custom:
            whole = np.zeros_like(logits)
            whole[rows] = scores
            input_ids = texts.left_padded(self.config.padding or 0)
            for custom in self.custom:
                whole = np.asarray(custom(input_ids, whole), np.float32)
                if whole.shape != logits.shape:
                    raise UserError(f"a logits_processor returned shape {whole.shape}; needed: {logits.shape}")
            scores = whole[rows]
        if (self.processors or few_yet or self.custom) and np.isneginf(scores.max(axis=1)).any():
            raise UserError("the settings rule out every token of the vocabulary. Ban less")
        return scores


def stops(
    config: GenerationConfig,
    tokenizer: Callable[[], Tokenizer],
    rows: int,
    chooser: Chooser,
    criteria: Sequence[StoppingCriterion] = (),
) -> list[tuple[str, Stop]]:
    """(finish reason, stop) of all that may end one of `rows` rows beside the length."""
    made: list[tuple[str, Stop]] = []
    if config.eos_token_id:
        eos = frozenset(config.eos_token_id)
        made.append(("eos", lambda texts: np.array([token in eos for token in texts.last().tolist()])))
    if config.stop_strings:
        made.append(("stop_string", StopStrings(config.stop_strings, tokenizer(), rows)))
    for criterion in criteria:
        made.append(("stopping_criteria", _criterion(criterion, config, chooser)))
    return made


class StopStrings:
    """Ends a row where its new text, special tokens included, holds one of the strings."""

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer, rows: int) -> None:
        self.strings = strings
        self.before = max(len(string) for string in strings) - 1  # characters that a string may begin with earlier
        self.streams = [tokenizer.text_stream(skip_special_tokens=False) for _ in range(rows)]
        self.tails = [""] * rows

    def __call__(self, texts: Texts) -> np.ndarray:
        found = np.zeros(len(texts), bool)
        last = texts.last()
        for row in np.flatnonzero(texts.live):
            text = self.tails[row] + self.streams[row].push(last[row])
            found[row] = any(string in text for string in self.strings)
            self.tails[row] = text[max(0, len(text) - self.before) :]
        return found


def _criterion(criterion: StoppingCriterion, config: GenerationConfig, chooser: Chooser) -> Stop:
    def stop(texts: Texts) -> np.ndarray:
        scores = tuple(chooser.scores) if config.output_scores else None
        ended = np.asarray(criterion(texts.left_padded(config.padding or 0), scores), bool)
        if ended.shape not in ((), (len(texts),)):
            raise UserError(f"a stopping_criteria returned shape {ended.shape}; needed: one boolean, or {len(texts)}")
        return np.broadcast_to(ended, len(texts))

    return stop


def listed(name: str, given: Any) -> list[Any]:
    """A callable, or several in a list. Raises UserError for anything else."""
    several = isinstance(given, (list, tuple))
    made = list(given) if several else [] if given is None else [given]
    for one in made:
        if not callable(one):
            raise UserError(f"{name} holds {one!r}; needed: a callable or a list of them")
    return made
