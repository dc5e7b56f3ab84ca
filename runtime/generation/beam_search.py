"""Beam search: the texts of highest total log-probability, found by keeping the best few at each step.

Scores, stopping rules and ties follow transformers' beam search: log-probabilities go through the processors, add up,
and are divided by length ** length_penalty once a text ends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .config import GenerationConfig

GROUP = 32  # values that are looked at as one, through their maximum
NEVER = np.float32(-1e9)  # what transformers adds to scores that must not win
REASONS = ("", "eos", "stop_string", "stopping_criteria", "length", "cancelled")


class Beams(NamedTuple):
    """Texts of one prompt: new tokens [n, steps], the beam that each was added to and its log-probability by the model
    [n, steps], the text's score [n], and why it ended [n], as an index of REASONS."""

    tokens: np.ndarray
    came_from: np.ndarray
    logprobs: np.ndarray
    scores: np.ndarray
    ended: np.ndarray

    def take(self, index: np.ndarray) -> Beams:
        return Beams(*(field[index] for field in self))

    def joined(self, others: Beams) -> Beams:
        pairs = zip(self, others, strict=True)
        return Beams(*(np.concatenate(pair).astype(pair[0].dtype) for pair in pairs))


class Search:
    """The beams of one prompt."""

    def __init__(self, config: GenerationConfig, limit: int, generator: np.random.Generator | None = None) -> None:
        """limit: new tokens. generator: draws continuations, without replacement, instead of taking the likeliest."""
        self.config, self.limit, self.generator = config, limit, generator
        self.step = 0
        beams = config.num_beams
        none, zeros = np.full((beams, limit), -1, np.int64), np.zeros((beams, limit), np.float32)
        start = np.full(beams, NEVER, np.float32)
        start[0] = 0.0  # the first step's continuations are those of one beam, or all beams would be alike
        self.running = Beams(none, none, zeros, start, np.zeros(beams, np.int8))
        self.finished = self.running._replace(scores=np.full(beams, NEVER, np.float32))
        self.hopeful = True  # the running beams may still beat the finished ones
        self.stuck = False  # none of them goes on

    def best(self, log_probs: np.ndarray, logprobs: np.ndarray | None = None) -> tuple[np.ndarray, Beams]:
        """The likeliest continuations of all beams, or those drawn: (the beam of each, texts with scores).

        log_probs: [beams, V], as they count; logprobs: [beams, V], the model's own, which are noted. There are more
        continuations than beams, so that enough remain when some of them end.
        """
        beams, vocab_size = log_probs.shape
        count = max(2, 1 + len(self.config.eos_token_id)) * beams
        total = (log_probs + self.running.scores[:, None]).reshape(-1)
        if self.generator is None:
            top = _top(total, count)
        else:  # the highest of scores with Gumbel noise are a draw from their softmax, one after another
            top = _top(total + self.generator.gumbel(size=total.size), count)
        source, token = top // vocab_size, top % vocab_size
        grown = self.running.take(source)  # copies
        grown.tokens[:, self.step], grown.came_from[:, self.step] = token, source
        if logprobs is not None:
            grown.logprobs[:, self.step] = logprobs[source, token]
        return source, grown._replace(scores=total[top], ended=np.zeros(count, np.int8))

    def advance(self, source: np.ndarray, candidates: Beams) -> np.ndarray:
        """Take the next beams from `candidates`, some of which have ended; returns the beam each one continues."""
        config, beams = self.config, self.config.num_beams
        hits = candidates.ended > 0
        next_index = _top(candidates.scores + hits * NEVER, beams)
        running = candidates.take(next_index)
        running = running._replace(scores=running.scores + hits[next_index] * NEVER)

        penalty = np.float32((self.step + 1) ** config.length_penalty)
        ended = hits & (np.arange(len(hits)) < beams)  # the others are there to go on only
        full = self.finished.ended.all() and config.early_stopping is True
        scores = candidates.scores / penalty + NEVER * (~ended).astype(np.float32)
        scores += NEVER * (int(full) + int(not self.hopeful))
        merged = self.finished.joined(candidates._replace(scores=scores, ended=candidates.ended * ended))
        self.finished = merged.take(_top(merged.scores, beams))
        self.running = running
        self.stuck = bool(hits.all())
        self.step += 1
        longest = config.early_stopping == "never" and config.length_penalty > 0
        possible = running.scores[0] / np.float32((self.limit if longest else self.step) ** config.length_penalty)
        worst = np.where(self.finished.ended > 0, self.finished.scores.min(), NEVER)
        self.hopeful = self.hopeful and bool((possible > worst).any())
        return source[next_index]

    def cancel(self) -> None:
        """End here, with the running texts behind those that have ended."""
        penalty = np.float32(max(self.step, 1) ** self.config.length_penalty)
        running = self.running._replace(
            scores=self.running.scores / penalty, ended=np.full_like(self.running.ended, REASONS.index("cancelled"))
        )
        ended = self.finished.take(np.flatnonzero(self.finished.ended))
        self.finished = ended.joined(running).take(np.arange(self.config.num_beams))

    @property
    def closed(self) -> bool:
        """Nothing better can come, or, with early_stopping, as many texts have ended as there are beams."""
        full = bool(self.finished.ended.all()) and self.config.early_stopping is True
        return self.stuck or full or not self.hopeful


def _top(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the largest, largest first."""
    bound = _bound_of_top(values, count)
    few = np.arange(values.size) if bound is None else np.flatnonzero(values >= bound)
    return few[np.argsort(-values[few], kind="stable")[:count]]


def _bound_of_top(values: np.ndarray, k: int) -> np.float32 | None:
    """A value that at least k values reach, and few others; None where finding it would not pay.

    It is the k-th largest of the maxima of groups.
    """
    groups = values.size // GROUP
    if groups < 2 * k:
        return None
    maxima = np.maximum.reduce(values[: groups * GROUP].reshape(GROUP, groups))
    maxima.partition(groups - k)
    return maxima[groups - k]
