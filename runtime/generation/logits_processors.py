"""What changes the scores by the text so far: biases, penalties, bans. Greedy decoding uses them too.

The meaning and the order are those of transformers' logits processors. A processor takes the texts (int64 ids of each
row, prompt without padding and new tokens) and their scores float32 [rows, V], which it may change in place, and
returns the scores that count.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from ..backend.cpu_kernels import kernel_library
from ..errors import UserError
from .config import GenerationConfig
from .sampler import first

TokenRows = Sequence[np.ndarray]
Processor = Callable[[TokenRows, np.ndarray], np.ndarray]


def processors(config: GenerationConfig, vocab_size: int) -> list[Processor]:
    """What the settings ask for, in transformers' order (min_new_tokens, which comes last, is `without_eos`).

    Raises UserError where a setting names an id that the vocabulary does not have.
    """
    for name, sequences in (
        ("bad_words_ids", config.bad_words_ids),
        ("sequence_bias", [ids for ids, _ in config.sequence_bias]),
    ):
        highest = max((max(ids) for ids in sequences), default=0)
        if highest >= vocab_size:
            raise UserError(f"{name} holds id {highest}; this artifact's ids are 0..{vocab_size - 1} (vocab_size)")
    return list(_processors(config))


def _processors(config: GenerationConfig) -> Iterator[Processor]:
    if config.sequence_bias:
        yield SequenceBias(config.sequence_bias)
    if config.repetition_penalty != 1.0 or config.no_repeat_ngram_size:
        yield Penalties(config.repetition_penalty, config.no_repeat_ngram_size)
    banned = [ids for ids in config.bad_words_ids if not (len(ids) == 1 and ids[0] in config.eos_token_id)]
    if banned:
        yield SequenceBias([(ids, -np.inf) for ids in banned])


class SequenceBias:
    """Adds to the score of a sequence's last id, where the ids before it end the text. -inf bans the sequence."""

    def __init__(self, biases: Sequence[tuple[tuple[int, ...], float]]) -> None:
        single = {ids[0]: bias for ids, bias in biases if len(ids) == 1}
        self.ids = np.array(list(single), np.int64)
        self.biases = np.array(list(single.values()), np.float32)
        self.longer = [(np.array(ids[:-1]), ids[-1], np.float32(bias)) for ids, bias in biases if len(ids) > 1]

    def __call__(self, texts: TokenRows, scores: np.ndarray) -> np.ndarray:
        scores[:, self.ids] += self.biases
        for text, row in zip(texts, scores, strict=True):
            for prefix, last, bias in self.longer:
                if prefix.size <= text.size and np.array_equal(text[-prefix.size :], prefix):
                    row[last] += bias
        return scores


class Penalties:
    """repetition_penalty, of CTRL (Keskar et al., 2019): tokens of the text have positive scores divided by it,
    negative ones multiplied. Then no_repeat_ngram_size: no token that would end the text with so many tokens that it
    holds already. The work is done in kernels/cpu/sampling/penalties.cpp."""

    def __init__(self, repetition_penalty: float, no_repeat_ngram_size: int) -> None:
        self.settings = (repetition_penalty, no_repeat_ngram_size)
        self._penalise = _native()

    def __call__(self, texts: TokenRows, scores: np.ndarray) -> np.ndarray:
        at, size = first(scores), scores.shape[1]
        for row, text in enumerate(texts):
            self._penalise(at, row, size, _byref(_of_ids(text)), len(text), *self.settings)
        return scores


@cache
def _native() -> Any:
    """edgellama_penalise of penalties.cpp."""
    pointer, whole = ctypes.c_void_p, ctypes.c_long
    function = kernel_library().edgellama_penalise
    function.restype, function.argtypes = None, [pointer, whole, whole, pointer, whole, ctypes.c_float, whole]
    return function


_byref: Any = ctypes.byref
_of_ids: Any = ctypes.c_int64.from_buffer  # the cheapest way to an array's first element


def without_eos(scores: np.ndarray, eos: Sequence[int]) -> np.ndarray:
    """No row can end: what min_new_tokens asks for until there are so many."""
    scores[:, [i for i in eos if 0 <= i < scores.shape[1]]] = -np.inf
    return scores
