"""Lossless speculative decoding of one sequence: guess the next tokens, check all of them in one pass of the engine.

A pass over a few tokens reads every weight once, as a pass over one token does, so checked guesses are nearly free. The
next token is selected from the logits of each position in turn, exactly as without guesses: by the same processors, the
same sampler and the same random numbers. A guess is accepted if the selected token is the guessed one. So the tokens
are those of plain decoding. For sampling this is the accept/reject rule of arXiv:2211.17192 for a draft that is certain
of its guess. The kernels compute up to MOST_TOKENS tokens of a row with the bits of single steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from ..engine.engine import Engine
from ..engine.engine_lock import Cancelled
from ..errors import UserError
from ..text.tokenizer import Tokenizer
from .decode import Forward, GenerationTimings, Select, StepBatch
from .sequences import Sequences
from .stopping import Stop

LONGEST_NGRAM = 4  # of prompt lookup, if the settings do not say
MOST_TOKENS = 8  # in a checking pass: kFewTokens of kernels/cpu/attention/attention_plan.h
SHORTEST_NGRAM = 2  # a single equal token says little about what follows


class Guesser(Protocol):
    """Guesses how a sequence continues."""

    def guess(self, ids: np.ndarray, most: int) -> np.ndarray:
        """Return token ids [`most` or fewer, also none] that may follow ids [n]; most is at least 1."""


class PromptLookup:
    """Guesses that what followed the last tokens earlier in the sequence follows again (prompt lookup decoding)."""

    def __init__(self, longest: int) -> None:
        """Set how many of the last tokens must be found earlier: `longest`, or fewer, but at least SHORTEST_NGRAM."""
        self._longest = max(longest, 1)

    def guess(self, ids: np.ndarray, most: int) -> np.ndarray:
        """Return the tokens after the latest earlier place of the last tokens; the longest match counts."""
        for size in range(self._longest, min(SHORTEST_NGRAM, self._longest) - 1, -1):
            places = len(ids) - size  # where an earlier match may begin
            if places < 1:
                continue
            found = np.ones(places, bool)
            for offset in range(size):
                found &= ids[offset : offset + places] == ids[len(ids) - size + offset]
            begins = np.flatnonzero(found) + size
            if begins.size:
                latest = int(begins[-1])
                return np.resize(ids[latest : latest + most], most)  # past the end: the text repeats itself
        return ids[:0]


class DraftModel:
    """Guesses the likeliest tokens of another model (a Guesser).

    The guesses are certain ones, so sampling keeps the distribution of the model that checks them (arXiv:2211.17192).
    What the draft model has computed stays in its cache, also the guesses; the next guess computes the rest.
    """

    def __init__(self, engine: Engine) -> None:
        """Guess with an engine, which others may use in between."""
        self._engine = engine

    def guess(self, ids: np.ndarray, most: int) -> np.ndarray:
        """Return `most` token ids that may follow ids [n]; fewer, or none, at the end of the engine's context."""
        engine = self._engine
        most = min(most, engine.context - len(ids) + 1)  # the last guess is not fed
        found: list[int] = []
        with engine.engine_lock.take():
            if most > 0:
                placement = engine.prefixes.place([ids])
                row, cached = int(placement.rows[0]), int(placement.cached[0])
                step = StepBatch(engine, GenerationTimings())
                step.feed(row, ids[cached:], cached)
            while len(found) < most:
                found.append(int(step.run()[row].argmax()))
                step.feed_token(row, found[-1], len(ids) + len(found) - 1)
        return np.array(found, np.int64)


def check_same_tokens(ours: Engine, theirs: Engine, *tokenizers: Tokenizer | None) -> None:
    """Raise UserError unless a draft model has the tokens of the model that checks it, and is another one.

    Args:
        ours: checks the guesses.
        theirs: guesses.
        tokenizers: of both; None for an artifact without one.
    """
    if ours is theirs:
        raise UserError(
            "assistant_model is the model itself, whose guesses save nothing. Give a smaller one, or use "
            "prompt_lookup_num_tokens"
        )
    name = theirs.manifest.name
    if ours.vocab_size != theirs.vocab_size:
        raise UserError(
            f"assistant_model {name} has {theirs.vocab_size:,} tokens; needed: the {ours.vocab_size:,} of this model. "
            "Give a model of the same family"
        )
    found = [tokenizer.model.get_vocab(True) for tokenizer in tokenizers if tokenizer is not None]
    if len(found) == 2 and found[0] != found[1]:
        text, token = min(set(found[0].items()) ^ set(found[1].items()), key=lambda item: (item[1], item[0]))
        raise UserError(
            f"assistant_model {name} has other tokens than this model, for example {text!r} ({token}). Give a model of "
            "the same family"
        )


class Pace:
    """Decides how many tokens to guess, so that wrong guesses cost little.

    The balance is the time that accepted guesses have saved less the time that checking them took beyond plain steps.
    A guess is made only if its loss, were it wrong, would leave the balance above a small share of the decoding time.
    The decision depends on measured times. It changes the speed, never the tokens.
    """

    SHARE = 0.015  # of the decoding time that may be lost
    STEPS = 1.0  # plain steps that may be lost in addition, so that a first guess is possible at once
    EXTRA = 0.12  # assumed cost of a further token in a pass, in plain steps, until it is measured

    def __init__(self, most: int) -> None:
        """Set the largest number of guessed tokens."""
        self._most = min(most, MOST_TOKENS - 1)
        self._next = min(4, self._most)
        self._step = 0.0  # seconds of a plain step
        self._passes: dict[int, float] = {}  # tokens in a pass -> seconds
        self._spent = self._balance = 0.0

    def length(self) -> int:
        """Return how many tokens to guess next; 0 if a wrong guess would cost too much."""
        if self._step == 0.0:
            return 0
        allowed = self._balance + self.SHARE * self._spent + self.STEPS * self._step
        return self._next if self._cost(self._next + 1) - self._step <= allowed else 0

    def stepped(self, seconds: float) -> None:
        """Record a plain step."""
        self._spent += seconds
        self._step = self._mean(self._step, seconds)

    def checked(self, guessed: int, accepted: int, seconds: float) -> None:
        """Record a pass that checked `guessed` tokens, of which `accepted` were right."""
        self._spent += seconds
        self._passes[guessed + 1] = self._mean(self._passes.get(guessed + 1, 0.0), seconds)
        self._balance += (accepted + 1) * self._step - seconds
        self._next = min(2 * self._next, self._most) if accepted == guessed else max(1, min(accepted + 1, self._most))

    def _cost(self, tokens: int) -> float:
        known = self._passes.get(tokens)
        return known if known is not None else self._step * (1 + self.EXTRA * (tokens - 1))

    @staticmethod
    def _mean(mean: float, value: float) -> float:
        return value if mean == 0.0 else mean + 0.25 * (value - mean)


def guesses(sequences: Sequences, guesser: Guesser, pace: Pace) -> np.ndarray:
    """Return the tokens [n] to check after the last one of the one sequence; none if that is not worth it now."""
    ids = sequences.row(0)
    most = min(pace.length(), sequences.limit - sequences.steps - 1)
    return guesser.guess(ids, most).copy() if most > 0 else ids[:0]


def decode_guessing(
    engine: Engine,
    sequences: Sequences,
    timings: GenerationTimings,
    select: Select,
    stops: Sequence[tuple[str, Stop]],
    placed: tuple[int, int],
    forward: Forward,
    cancelled: Callable[[], bool],
    guesser: Guesser,
    pace: Pace,
) -> Iterator[list[int]]:
    """Decode one sequence as `decode.decode` does, with the same tokens, ends and errors, in fewer passes.

    Args:
        engine: runs the passes; it has a `head`.
        sequences: one prompt; new tokens are appended to it.
        timings: counts and times are added to it.
        select, stops: as in `decode`.
        placed: the cache row of the sequence, and how many of its tokens are cached there.
        forward: Engine.forward for the prompt and for plain steps.
        cancelled: asked before each checking pass.
        guesser: guesses tokens.
        pace: says how many.

    Yields:
        The new token [1] of each position.
    """
    row, cached = placed
    step = StepBatch(engine, timings, forward)

    def every_position(tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        return engine.head.logits(engine.hidden(tokens, start, length, cancelled)[row])

    step.feed_prompt(row, sequences.row(0), cached)
    guessed = sequences.row(0)[:0]
    logits = None
    began = time.perf_counter()  # of a pass and the guesses that it checks
    while True:
        try:
            if logits is None:  # the prompt
                logits = step.run()[row : row + 1]
            elif guessed.size:
                tokens = np.concatenate([sequences.row(0)[-1:], guessed])
                logits = step.check(row, tokens, sequences.length[0] - 1, every_position)
            else:
                step.feed_token(row, sequences.newest()[0], sequences.length[0] - 1)
                logits = step.run()[row : row + 1]
                pace.stepped(time.perf_counter() - began)
        except Cancelled:
            sequences.finish(sequences.live, "cancelled")
            return
        ran = time.perf_counter()
        accepted = 0
        for position, scores in enumerate(logits):
            picked = list(step.select(select, sequences, scores[None]))
            sequences.push(picked)
            for reason, stop in stops:
                sequences.finish(stop(sequences), reason)
            sequences.finish(sequences.full(), "length")
            right = position < len(guessed) and picked[0] == guessed.item(position) and sequences.live[0]
            accepted += right  # a guess saves a pass if the sequence goes on after it
            if guessed.size and not right:
                timings.accepted_tokens += accepted
                pace.checked(len(guessed), accepted, ran - began)
                yield picked
                break
            yield picked
        if not sequences.live[0]:
            return
        began = time.perf_counter()
        guessed = guesses(sequences, guesser, pace)
