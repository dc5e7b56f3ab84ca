"""Beam search: finds the sequences of highest total log-probability by keeping the best few at each step.

Scores, stopping rules and ties follow transformers' beam search: log-probabilities go through the processors, add up,
and are divided by length ** length_penalty when a sequence ends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .config import GenerationConfig

GROUP = 32  # values that are represented by their maximum
NEVER = np.float32(-1e9)  # transformers adds this to scores that must not win
REASONS = ("", "eos", "stop_string", "stopping_criteria", "length", "cancelled")


class Beams(NamedTuple):
    """Sequences of one prompt.

    Attributes:
        tokens: new tokens, int64 [n, steps].
        came_from: the beam that each token was added to, int64 [n, steps].
        logprobs: log-probability of each token under the model, float32 [n, steps].
        scores: of each sequence, float32 [n].
        ended: why each sequence ended, as an index of REASONS, int8 [n]; 0 while it runs.
    """

    tokens: np.ndarray
    came_from: np.ndarray
    logprobs: np.ndarray
    scores: np.ndarray
    ended: np.ndarray

    def take(self, index: np.ndarray) -> Beams:
        """Return copies of the sequences of these indices."""
        return Beams(*(field[index] for field in self))

    def joined(self, others: Beams) -> Beams:
        """Return these sequences and then the others; the types are those of these."""
        pairs = zip(self, others, strict=True)
        return Beams(*(np.concatenate(pair).astype(pair[0].dtype) for pair in pairs))


class BeamSearch:
    """The search for one prompt.

    Attributes:
        running: the beams, best first.
        finished: the best sequences that have ended, best first.
        step: tokens added so far.
        hopeful: the running beams may still beat the finished sequences.
        stuck: no beam goes on.
    """

    def __init__(self, config: GenerationConfig, limit: int, generator: np.random.Generator | None = None) -> None:
        """Begin the search.

        Args:
            config: num_beams, length_penalty, early_stopping and eos_token_id count here.
            limit: new tokens.
            generator: draws continuations, without replacement; None takes the likeliest.
        """
        self.config, self.limit, self.generator = config, limit, generator
        self.step = 0
        beams = config.num_beams
        none, zeros = np.full((beams, limit), -1, np.int64), np.zeros((beams, limit), np.float32)
        start = np.full(beams, NEVER, np.float32)
        start[0] = 0.0  # the first step continues one beam only; otherwise all beams would be equal
        self.running = Beams(none, none, zeros, start, np.zeros(beams, np.int8))
        self.finished = self.running._replace(scores=np.full(beams, NEVER, np.float32))
        self.hopeful = True
        self.stuck = False

    def best(self, log_probs: np.ndarray, logprobs: np.ndarray | None = None) -> tuple[np.ndarray, Beams]:
        """Return the likeliest continuations of all beams, or those drawn.

        There are more continuations than beams, so that enough remain when some of them end.

        Args:
            log_probs: float32 [beams, V], after processors and sampling settings.
            logprobs: float32 [beams, V], the model's own, which are recorded.

        Returns:
            The beam of each continuation, and the continuations with their scores.
        """
        beams, vocab_size = log_probs.shape
        count = max(2, 1 + len(self.config.eos_token_id)) * beams
        total = (log_probs + self.running.scores[:, None]).reshape(-1)
        if self.generator is None:
            top = _top(total, count)
        else:  # the highest scores with Gumbel noise are draws from the softmax, without replacement
            top = _top(total + self.generator.gumbel(size=total.size), count)
        source, token = top // vocab_size, top % vocab_size
        grown = self.running.take(source)  # copies
        grown.tokens[:, self.step], grown.came_from[:, self.step] = token, source
        if logprobs is not None:
            grown.logprobs[:, self.step] = logprobs[source, token]
        return source, grown._replace(scores=total[top], ended=np.zeros(count, np.int8))

    def advance(self, source: np.ndarray, candidates: Beams) -> np.ndarray:
        """Take the next beams from the continuations, some of which have ended.

        Args:
            source: the beam of each continuation, as `best` returned it.
            candidates: the continuations, with `ended` filled in.

        Returns:
            The beam that each of the next beams continues, [beams].
        """
        config, beams = self.config, self.config.num_beams
        hits = candidates.ended > 0
        next_index = _top(candidates.scores + hits * NEVER, beams)
        running = candidates.take(next_index)
        running = running._replace(scores=running.scores + hits[next_index] * NEVER)

        penalty = np.float32((self.step + 1) ** config.length_penalty)
        ended = hits & (np.arange(len(hits)) < beams)  # the others are only there to continue
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
        """End the search; the running beams follow the sequences that have ended."""
        penalty = np.float32(max(self.step, 1) ** self.config.length_penalty)
        running = self.running._replace(
            scores=self.running.scores / penalty, ended=np.full_like(self.running.ended, REASONS.index("cancelled"))
        )
        ended = self.finished.take(np.flatnonzero(self.finished.ended))
        self.finished = ended.joined(running).take(np.arange(self.config.num_beams))

    @property
    def closed(self) -> bool:
        """Whether nothing better can come, or, with early_stopping, num_beams sequences have ended."""
        full = bool(self.finished.ended.all()) and self.config.early_stopping is True
        return self.stuck or full or not self.hopeful


def _top(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the largest values, largest first."""
    bound = _bound_of_top(values, count)
    few = np.arange(values.size) if bound is None else np.flatnonzero(values >= bound)
    return few[np.argsort(-values[few], kind="stable")[:count]]


def _bound_of_top(values: np.ndarray, k: int) -> np.float32 | None:
    """Return a value that at least k values reach, and few others: the k-th largest of the maxima of groups.

    None if there are too few values for this to pay.
    """
    groups = values.size // GROUP
    if groups < 2 * k:
        return None
    maxima = np.maximum.reduce(values[: groups * GROUP].reshape(GROUP, groups))
    maxima.partition(groups - k)
    return maxima[groups - k]
