"""Logits processors that depend on the step: where a row's prompt ends, and how many tokens it may still have.

The meaning and the order are those of transformers' logits processors. They run after those of logits_processors.py and
before the caller's own.
min_new_tokens is not among them: it comes first, and `without_eos` applies it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from .config import GenerationConfig
from .sequences import Sequences

# sequences, the rows that `scores` holds, scores float32 [len(rows), V] -> scores, which may be changed in place
StepProcessor = Callable[[Sequences, Sequence[int], np.ndarray], np.ndarray]
ID_LISTS = ("suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id")


def step_processors(
    config: GenerationConfig, vocab_size: int, allowed: StepProcessor | None = None
) -> list[StepProcessor]:
    """Return the processors of these settings, in transformers' order.

    Args:
        config: the settings.
        vocab_size: the ids must be below it.
        allowed: of prefix_allowed_tokens_fn.

    Raises:
        UserError: a setting names an id outside the vocabulary.
    """
    for name in ID_LISTS:
        highest = max(getattr(config, name), default=0)
        if highest >= vocab_size:
            raise UserError(f"{name} holds id {highest}; this artifact's ids are 0..{vocab_size - 1} (vocab_size)")
    return list(_in_order(config, allowed))


def _in_order(config: GenerationConfig, allowed: StepProcessor | None) -> Iterator[StepProcessor]:
    eos = list(config.eos_token_id)
    if config.encoder_repetition_penalty != 1.0:
        yield _prompt_bonus(1 / config.encoder_repetition_penalty)
    if config.encoder_no_repeat_ngram_size:
        yield _no_prompt_ngrams(config.encoder_no_repeat_ngram_size)
    if allowed is not None:
        yield allowed
    if config.forced_eos_token_id:
        yield _forced_eos(list(config.forced_eos_token_id))
    if config.remove_invalid_values:
        yield _finite
    if config.exponential_decay_length_penalty is not None and eos:
        yield _decay(config.exponential_decay_length_penalty, eos)
    if config.suppress_tokens:
        yield _first_steps(None, list(config.suppress_tokens))
    if config.begin_suppress_tokens:
        yield _first_steps(1, list(config.begin_suppress_tokens))


def _prompt_bonus(penalty: float) -> StepProcessor:
    """Divide positive scores of the prompt's tokens by a penalty, and multiply negative ones."""

    def change(sequences: Sequences, rows: Sequence[int], scores: np.ndarray) -> np.ndarray:
        for place, row in enumerate(rows):
            prompt = np.unique(sequences.row(row)[: sequences.prompt_length[row]])
            found = scores[place, prompt]
            scores[place, prompt] = np.where(found < 0, found * np.float32(penalty), found / np.float32(penalty))
        return scores

    return change


def _no_prompt_ngrams(size: int) -> StepProcessor:
    """Ban tokens that complete a sequence of `size` tokens that the prompt holds."""

    def ban(sequences: Sequences, rows: Sequence[int], scores: np.ndarray) -> np.ndarray:
        for place, row in enumerate(rows):
            ids, length = sequences.row(row), sequences.prompt_length[row]
            if len(ids) + 1 < size or length < size:
                continue
            windows = np.lib.stride_tricks.sliding_window_view(ids[:length], size)
            begins = (windows[:, :-1] == ids[len(ids) - size + 1 :]).all(axis=1)
            scores[place, windows[begins, -1]] = -np.inf
        return scores

    return ban


def _first_steps(steps: int | None, ids: list[int]) -> StepProcessor:
    """Ban ids in the first steps; None bans them in all."""

    def ban(sequences: Sequences, rows: Sequence[int], scores: np.ndarray) -> np.ndarray:
        if steps is None or sequences.steps < steps:
            scores[:, [i for i in ids if 0 <= i < scores.shape[1]]] = -np.inf
        return scores

    return ban


def _forced_eos(ids: list[int]) -> StepProcessor:
    def force(sequences: Sequences, rows: Sequence[int], scores: np.ndarray) -> np.ndarray:
        last = [place for place, row in enumerate(rows) if sequences.steps == sequences.limits[row] - 1]
        scores[last] = -np.inf
        scores[np.ix_(last, ids)] = 0
        return scores

    return force


def _finite(sequences: Sequences, rows: Sequence[int], scores: np.ndarray) -> np.ndarray:
    return np.nan_to_num(scores, copy=False)


def _decay(setting: tuple[int, float], eos: list[int]) -> StepProcessor:
    start, factor = setting

    def penalise(sequences: Sequences, rows: Sequence[int], scores: np.ndarray) -> np.ndarray:
        beyond = sequences.steps - start
        if beyond > 0:
            found = scores[:, eos]
            with np.errstate(over="ignore", invalid="ignore"):
                gain = np.abs(found) * np.float32(min(factor**beyond - 1, np.finfo(np.float32).max))
            scores[:, eos] = found + np.where(np.isfinite(found), gain, 0)
        return scores

    return penalise


class PrefixAllowed:
    """Leaves only the tokens that the caller's prefix_allowed_tokens_fn(prompt number, ids of the row) returns."""

    def __init__(self, function: Callable[[int, Any], Sequence[int]], prompts: Sequence[int]) -> None:
        """Take the function, and the number of each row's prompt."""
        self._function, self._prompts = function, prompts

    def __call__(self, sequences: Sequences, rows: Sequence[int], scores: np.ndarray) -> np.ndarray:
        """Return the scores with -inf for all other tokens; allowed tokens that are all banned already become 0."""
        for place, row in enumerate(rows):
            ids = np.asarray(self._function(self._prompts[row], sequences.row(row).copy()), np.int64).reshape(-1)
            if not ids.size:
                raise UserError(
                    f"prefix_allowed_tokens_fn returned no token for prompt {self._prompts[row]}. Return the eos id to "
                    "end the text"
                )
            if ids.min() < 0 or ids.max() >= scores.shape[1]:
                raise UserError(
                    f"prefix_allowed_tokens_fn returned id {int(ids.max())}; this artifact's ids are "
                    f"0..{scores.shape[1] - 1} (vocab_size)"
                )
            kept = scores[place, ids]
            scores[place] = -np.inf
            scores[place, ids] = kept if np.isfinite(kept).any() else 0
        return scores
