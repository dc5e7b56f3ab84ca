"""Prompt lookup for the one answer that runs: guesses what follows, and checks the guesses in one pass."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ...engine.engine import Engine
from ...generation.decode import StepBatch
from ...generation.speculative import LONGEST_NGRAM, Guesser, Pace, PromptLookup, guesses
from ..sequence import ServedSequence


class AnswerLookup:
    """Guesses for answers that run alone, one after another.

    Attributes:
        pace: decides how many tokens to guess, from the measured times of all answers.
        guesser: guesses them.
    """

    def __init__(
        self, engine: Engine, step: StepBatch, most: int, select: Callable[[ServedSequence, np.ndarray], None]
    ) -> None:
        """Prepare.

        Args:
            engine: has a `head`, if `most` is not 0.
            step: runs the passes of this engine, and counts.
            most: tokens to guess at once; 0 guesses nothing.
            select: selects a sequence's next token from logits [V], or ends the sequence.
        """
        self.pace = Pace(most)
        self.guesser: Guesser = PromptLookup(LONGEST_NGRAM)
        self._engine, self._step, self._most, self._select = engine, step, most, select

    def guess(self, sequence: ServedSequence) -> np.ndarray:
        """Return the tokens [n] to check after the sequence's last one; none if that is not worth it now."""
        return guesses(sequence.tokens, self.guesser, self.pace) if self._most else sequence.tokens.row(0)[:0]

    def check(self, sequence: ServedSequence, guessed: np.ndarray) -> None:
        """Compute the last token and guesses [n], and select a token at each position until a guess is wrong.

        Raises the errors of Engine.hidden.
        """
        fed = np.concatenate([[sequence.last_token], guessed])
        began = time.perf_counter()
        states = self._step.check(sequence.row, fed, sequence.computed_tokens, self._engine.hidden)
        logits = self._engine.head.logits(states[sequence.row])
        seconds, accepted = time.perf_counter() - began, 0
        for position, scores in enumerate(logits):
            sequence.computed_tokens += 1
            self._select(sequence, scores)
            if sequence.finished or position == len(guessed) or sequence.last_token != guessed[position]:
                break
            accepted += 1
        sequence.accepted_tokens += accepted
        sequence.rejected_tokens += len(guessed) - accepted
        self._step.timings.accepted_tokens += accepted
        self.pace.checked(len(guessed), accepted, seconds)
