"""Beam search: the texts of highest total log-probability, found by keeping the best few at each step.

Scores, stopping rules and ties follow transformers' beam search: log-probabilities go through the processors, add up,
and are divided by length ** length_penalty once a text ends.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from runtime.candidates import log_normaliser
from runtime.choosing import Chooser
from runtime.generation import Forward, Steps, Texts, Timings
from runtime.generation_config import GenerationConfig
from runtime.prefix_cache import PrefixCache
from runtime.sampling import bound_of_top
from runtime.turn import Cancelled

NEVER = np.float32(-1e9)  # what transformers adds to scores that must not win


class BeamSteps(Steps, Protocol):
    """An engine whose cache rows can change places."""

    prefixes: PrefixCache

    def reorder(self, source: np.ndarray, tokens: int) -> None: ...


class Beams(NamedTuple):
    """Texts of one prompt: new tokens [n, steps], scores [n], whether each has ended [n]."""

    tokens: np.ndarray
    scores: np.ndarray
    ended: np.ndarray

    def take(self, index: np.ndarray) -> Beams:
        return Beams(self.tokens[index], self.scores[index], self.ended[index])


class Search:
    """The beams of one prompt."""

    def __init__(self, config: GenerationConfig, limit: int) -> None:
        self.config, self.limit = config, limit
        self.step = 0
        beams = config.num_beams
        none = np.full((beams, limit), -1, np.int64)
        start = np.full(beams, NEVER, np.float32)
        start[0] = 0.0  # the first step's continuations are those of one beam, or all beams would be alike
        self.running = Beams(none, start, np.zeros(beams, bool))
        self.finished = Beams(none.copy(), np.full(beams, NEVER, np.float32), np.zeros(beams, bool))
        self.hopeful = True  # the running beams may still beat the finished ones

    def best(self, log_probs: np.ndarray) -> tuple[np.ndarray, Beams]:
        """The likeliest continuations of all beams: (the beam of each, texts with scores).

        log_probs: [beams, V]. There are more than beams, so that enough remain when some of them end.
        """
        beams, vocab_size = log_probs.shape
        count = max(2, 1 + len(self.config.eos_token_id)) * beams
        total = (log_probs + self.running.scores[:, None]).reshape(-1)
        top = _top(total, count)
        source, token = top // vocab_size, top % vocab_size
        tokens = self.running.tokens[source]
        tokens[:, self.step] = token
        return source, Beams(tokens, total[top], np.zeros(count, bool))

    def advance(self, source: np.ndarray, candidates: Beams, hits: np.ndarray) -> np.ndarray:
        """Take the next beams from `candidates`, of which `hits` have ended; returns the beam each one continues."""
        config, beams = self.config, self.config.num_beams
        next_index = _top(candidates.scores + hits * NEVER, beams)
        running = candidates.take(next_index)
        running = running._replace(scores=running.scores + hits[next_index] * NEVER)

        penalty = np.float32((self.step + 1) ** config.length_penalty)
        ended = hits & (np.arange(len(hits)) < beams)  # the others are there to go on only
        full = self.finished.ended.all() and config.early_stopping is True
        scores = candidates.scores / penalty + NEVER * (~ended).astype(np.float32)
        scores += NEVER * (int(full) + int(not self.hopeful))
        merged = Beams(
            np.concatenate([self.finished.tokens, candidates.tokens]),
            np.concatenate([self.finished.scores, scores.astype(np.float32)]),
            np.concatenate([self.finished.ended, ended]),
        )
        self.finished = merged.take(_top(merged.scores, beams))
        self.running = running
        self.step += 1
        longest = config.early_stopping == "never" and config.length_penalty > 0
        possible = running.scores[0] / np.float32((self.limit if longest else self.step) ** config.length_penalty)
        worst = np.where(self.finished.ended, self.finished.scores.min(), NEVER)
        self.hopeful = self.hopeful and bool((possible > worst).any())
        return source[next_index]

    def cancel(self) -> None:
        """End here: where no text has ended, the running ones are the result."""
        if not self.finished.ended.any():
            penalty = np.float32(max(self.step, 1) ** self.config.length_penalty)
            self.finished = self.running._replace(scores=self.running.scores / penalty)

    @property
    def closed(self) -> bool:
        """Nothing better can come, or, with early_stopping, as many texts have ended as there are beams."""
        return not self.hopeful or (bool(self.finished.ended.all()) and self.config.early_stopping is True)


def beam_search(
    engine: BeamSteps,
    prompts: Sequence[np.ndarray],
    limit: int,
    chooser: Chooser,
    timings: Timings,
    forward: Forward | None = None,
) -> list[Beams]:
    """The best num_beams texts of each prompt, best first; -1 follows the end of one that is shorter than another.

    prompts: ids without padding, at most engine.batch // num_beams of them. A prompt is prefilled once, in the row of
    its first beam; the cache rows follow their beams. forward: stands for engine.forward; where it raises Cancelled,
    the search ends with what there is.
    """
    forward = forward or engine.forward
    config = chooser.config
    beams, rows = config.num_beams, len(prompts) * config.num_beams
    texts = Texts([prompt for prompt in prompts for _ in range(beams)], limit)
    searches = [Search(config, limit) for _ in prompts]
    start = np.zeros(engine.batch, np.int64)
    length = np.zeros(engine.batch, np.int64)
    tokens = np.zeros((engine.batch, int(texts.length.max())), np.int64)
    for row, prompt in zip(range(0, rows, beams), prompts, strict=True):
        start[row] = engine.prefixes.bring(prompt, row)
        length[row] = len(prompt) - start[row]
        tokens[row, : length[row]] = prompt[start[row] :]
    tokens = tokens[:, : int(length.max())]
    timings.cached_tokens += int(start.sum())
    timings.prompt_tokens += int((start + length).sum())
    for step in range(limit):
        began = time.perf_counter()
        try:
            logits = forward(tokens, start, length)[:rows]
        except Cancelled:
            for search in searches:
                search.cancel()
            break
        if np.isnan(logits.max(axis=1)).any():
            raise RuntimeError(f"logits are not numbers after {int((start + length).max())} tokens")
        spent = time.perf_counter() - began
        if step == 0:
            timings.prefill += spent
        else:
            timings.decode += spent
            timings.decode_steps += 1
        log_probs = logits - np.array([log_normaliser(row) for row in logits], np.float32)[:, None]
        log_probs = chooser.processed(texts, log_probs, list(range(rows)))
        source = np.arange(engine.batch)
        for first, search in zip(range(0, rows, beams), searches, strict=True):
            if not search.closed:
                mine = slice(first, first + beams)
                came_from, candidates = search.best(log_probs[mine])
                hits = np.isin(candidates.tokens[:, step], config.eos_token_id) | (step == limit - 1)
                source[mine] = first + search.advance(came_from, candidates, hits)
                texts.ids[mine, texts.prompt_length[first] :][:, :limit] = search.running.tokens
        if step == limit - 1 or all(search.closed for search in searches):
            break
        engine.reorder(source, int(texts.length.max()))
        start[:rows] = texts.length
        texts.length += 1
        texts.steps += 1
        length[:rows] = np.repeat([not search.closed for search in searches], beams)
        tokens = np.zeros((engine.batch, 1), np.int64)
        tokens[:rows, 0] = texts.last()
    return [search.finished for search in searches]


def _top(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the largest, largest first."""
    bound = bound_of_top(values, count)
    few = np.arange(values.size) if bound is None else np.flatnonzero(values >= bound)
    return few[np.argsort(-values[few], kind="stable")[:count]]
