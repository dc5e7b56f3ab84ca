"""Logits processors: they change the scores by the tokens so far (biases, penalties, bans), in greedy decoding too.

The meaning and the order are those of transformers' logits processors. A processor takes the token ids of each row
(int64 [n], prompt without padding and new tokens) and their scores float32 [rows, V], which it may change in place, and
returns the scores.
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
from .sampler import float_pointer

TokenRows = Sequence[np.ndarray]
Processor = Callable[[TokenRows, np.ndarray], np.ndarray]


def processors(config: GenerationConfig, vocab_size: int) -> list[Processor]:
    """Return the processors of these settings, in transformers' order.

    min_new_tokens is not among them: it comes after them, and `without_eos` applies it.

    Raises:
        UserError: a setting names an id outside the vocabulary.
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
        yield RepetitionPenalties(config.repetition_penalty, config.no_repeat_ngram_size)
    banned = [ids for ids in config.bad_words_ids if not (len(ids) == 1 and ids[0] in config.eos_token_id)]
    if banned:
        yield SequenceBias([(ids, -np.inf) for ids in banned])


class SequenceBias:
    """Adds a bias to the score of a sequence's last id if the row ends with the ids before it; -inf bans it."""

    def __init__(self, biases: Sequence[tuple[tuple[int, ...], float]]) -> None:
        single = {ids[0]: bias for ids, bias in biases if len(ids) == 1}
        self.ids = np.array(list(single), np.int64)
        self.biases = np.array(list(single.values()), np.float32)
        self.longer = [(np.array(ids[:-1]), ids[-1], np.float32(bias)) for ids, bias in biases if len(ids) > 1]

    def __call__(self, rows: TokenRows, scores: np.ndarray) -> np.ndarray:
        """Return the scores [rows, V], changed in place. rows: token ids [n] of each row."""
        scores[:, self.ids] += self.biases
        for ids, row in zip(rows, scores, strict=True):
            for prefix, last, bias in self.longer:
                if prefix.size <= ids.size and np.array_equal(ids[-prefix.size :], prefix):
                    row[last] += bias
        return scores


class RepetitionPenalties:
    """Applies repetition_penalty, then no_repeat_ngram_size. kernels/cpu/sampling/penalties.cpp does the work.

    repetition_penalty, of CTRL (Keskar et al., 2019), divides positive scores of tokens that the row holds, and
    multiplies negative ones. no_repeat_ngram_size bans every token that would complete an n-gram of this size which the
    row holds already.
    """

    def __init__(self, repetition_penalty: float, no_repeat_ngram_size: int) -> None:
        self.settings = (repetition_penalty, no_repeat_ngram_size)
        self._penalise = _native()

    def __call__(self, rows: TokenRows, scores: np.ndarray) -> np.ndarray:
        """Return the scores [rows, V], changed in place. rows: token ids [n] of each row."""
        pointer, size = float_pointer(scores), scores.shape[1]
        for row, ids in enumerate(rows):
            self._penalise(pointer, row, size, _byref(_ids_pointer(ids)), len(ids), *self.settings)
        return scores


@cache
def _native() -> Any:
    """Return edgellama_penalise of penalties.cpp."""
    pointer, whole = ctypes.c_void_p, ctypes.c_long
    function = kernel_library().edgellama_penalise
    function.restype, function.argtypes = None, [pointer, whole, whole, pointer, whole, ctypes.c_float, whole]
    return function


_byref: Any = ctypes.byref
_ids_pointer: Any = ctypes.c_int64.from_buffer  # the cheapest way to an array's first element


def without_eos(scores: np.ndarray, eos: Sequence[int]) -> np.ndarray:
    """Return the scores [rows, V], changed in place, with the eos ids banned: min_new_tokens is not yet reached."""
    scores[:, [i for i in eos if 0 <= i < scores.shape[1]]] = -np.inf
    return scores
