"""From scores to a token: temperature, top_k, top_p, min_p, typical_p, and the draw.

The meaning and the order are those of transformers' logits warpers. They work on one row's candidates, so what a filter
drops costs the next one nothing, and none sorts the vocabulary: a filter narrows it down to where its limit lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from runtime.generation_config import GenerationConfig

GROUP = 32  # values that are looked at as one, through their maximum
SORTED = 2048  # so many are sorted at once, more are narrowed down first
FIRST_LOOK = 256  # likely tokens that hold most nuclei
BLOCK = 256  # weights summed at once by a draw


class Candidates(NamedTuple):
    """Tokens still in question: scores float32 [n], and their ids int64 [n], None where they are 0..n-1."""

    scores: np.ndarray
    ids: np.ndarray | None = None

    def keep(self, index: np.ndarray) -> Candidates:
        """Only those at `index`."""
        return Candidates(self.scores[index], index if self.ids is None else self.ids[index])

    def dense(self, vocab_size: int) -> np.ndarray:
        """Scores [vocab_size] as transformers has them: -inf for what was dropped."""
        if self.ids is None:
            return self.scores
        scores = np.full(vocab_size, -np.inf, np.float32)
        scores[self.ids] = self.scores
        return scores


Warper = Callable[[Candidates], Candidates]


def warpers(config: GenerationConfig, min_tokens_to_keep: int = 1) -> list[Warper]:
    """What the settings ask for, in transformers' order; a neutral value asks for nothing."""
    return list(_warpers(config, min_tokens_to_keep))


def _warpers(config: GenerationConfig, keep: int) -> Iterator[Warper]:
    if config.temperature != 1.0:
        yield lambda candidates: temperature(candidates, config.temperature)
    if config.top_k:
        yield lambda candidates: top_k(candidates, max(config.top_k, keep))
    if config.top_p < 1.0:
        yield lambda candidates: top_p(candidates, config.top_p, keep)
    min_p_value = config.min_p
    if min_p_value is not None:
        yield lambda candidates: min_p(candidates, min_p_value, keep)
    if config.typical_p < 1.0:
        yield lambda candidates: typical_p(candidates, config.typical_p, keep)


def temperature(candidates: Candidates, value: float) -> Candidates:
    return candidates._replace(scores=candidates.scores / np.float32(value))


def top_k(candidates: Candidates, k: int) -> Candidates:
    """The k highest scores, and what equals the last of them."""
    scores = candidates.scores
    if k >= scores.size:
        return candidates
    bound = bound_of_top(scores, k)
    index = None if bound is None else np.flatnonzero(scores >= bound)
    few = scores if index is None else scores[index]
    last = np.partition(few, few.size - k)[few.size - k]
    kept = np.flatnonzero(few >= last)
    return candidates.keep(kept if index is None else index[kept])


def top_p(candidates: Candidates, p: float, min_tokens_to_keep: int = 1) -> Candidates:
    """The highest scores whose probabilities add up to p: the nucleus. Of equal scores the later ids go first."""
    weights, total = _weights(candidates.scores)
    kept, _ = _heaviest(candidates.scores, weights, p * total, min_tokens_to_keep)
    return candidates.keep(np.sort(kept))


def min_p(candidates: Candidates, p: float, min_tokens_to_keep: int = 1) -> Candidates:
    """What is at least p times as likely as the likeliest."""
    scores = candidates.scores
    kept = np.flatnonzero(scores >= scores.max() + (np.log(np.float32(p)) if p > 0 else -np.inf))
    if kept.size < min_tokens_to_keep:
        return top_k(candidates, min_tokens_to_keep)
    return candidates.keep(kept)


def typical_p(candidates: Candidates, p: float, min_tokens_to_keep: int = 1) -> Candidates:
    """Locally typical sampling (Meister et al., 2022): the tokens whose surprise is nearest to the entropy, up to
    probability p in all, and what is as near as the last of them."""
    scores = candidates.scores
    weights, total = _weights(scores)
    surprise = (scores.max() + np.float32(math.log(total))) - scores  # [n], inf where the score is -inf
    possible = weights > 0
    entropy = np.float32((weights[possible] * surprise[possible]).sum(dtype=np.float64) / total)
    nearness = -np.abs(surprise - entropy)
    _, last = _heaviest(nearness, weights, p * total, min_tokens_to_keep)
    return candidates.keep(np.flatnonzero(nearness >= last))


def draw(candidates: Candidates, uniform: float) -> int:
    """The token id that a number in [0, 1) picks: each with its probability, the softmax of the scores."""
    weights, _ = _weights(candidates.scores)
    first = 0
    if weights.size > 4 * BLOCK:  # find the block first
        whole = weights.size // BLOCK * BLOCK
        sums = weights[:whole].reshape(-1, BLOCK).sum(axis=1, dtype=np.float64)
        edges = np.cumsum(np.append(sums, weights[whole:].sum(dtype=np.float64)))
        target = uniform * edges[-1]
        block = int(np.searchsorted(edges, target, side="right"))
        first = block * BLOCK
        target -= edges[block - 1] if block else 0.0
        weights = weights[first : first + BLOCK]
        edges = np.cumsum(weights, dtype=np.float64)
    else:
        edges = np.cumsum(weights, dtype=np.float64)
        target = uniform * edges[-1]
    index = int(np.searchsorted(edges, target, side="right"))
    if index >= weights.size:  # the two sums of a block differ by rounding
        index = int(np.flatnonzero(weights)[-1])
    return first + index if candidates.ids is None else int(candidates.ids[first + index])


def log_normaliser(scores: np.ndarray) -> float:
    """log(sum(exp(scores))): a score minus this is its log-probability."""
    _, total = _weights(scores)
    return float(scores.max()) + math.log(total)


def _weights(scores: np.ndarray) -> tuple[np.ndarray, float]:
    """exp(scores - max) [n] float32, and their sum."""
    weights = np.exp(scores - scores.max())
    return weights, float(weights.sum())


def bound_of_top(values: np.ndarray, k: int) -> np.float32 | None:
    """A value that at least k values reach, and few others; None where finding it would not pay.

    It is the k-th largest of the maxima of groups.
    """
    groups = values.size // GROUP
    if groups < 2 * k:
        return None
    maxima = values[: groups * GROUP].reshape(GROUP, groups).max(axis=0)
    return np.partition(maxima, groups - k)[groups - k]


def _heaviest(keys: np.ndarray, weights: np.ndarray, mass: float, at_least: int) -> tuple[np.ndarray, np.float32]:
    """The largest keys, one by one until their weights reach `mass`: (their indices, the last one's key).

    A quickselect by weight: what lies surely inside or outside is never sorted. Of equal keys the last index counts
    as the largest.
    """
    index: np.ndarray | None = None  # of `keys` among those given; None: all of them
    inside: list[np.ndarray] = []
    last = keys.max()
    pivot = bound_of_top(keys, FIRST_LOOK)
    while keys.size > SORTED:
        if pivot is None:
            sample = keys[:: keys.size // 64]
            pivot = np.partition(sample, sample.size // 2)[sample.size // 2]
        above = keys >= pivot
        if above.all():
            above = keys > pivot
            if not above.any():  # nothing but equal keys
                break
        upper = np.flatnonzero(above)
        weight = float(weights[upper].sum(dtype=np.float64))
        if weight < mass or upper.size < at_least:
            mass -= weight
            at_least -= upper.size
            inside.append(upper if index is None else index[upper])
            last = keys[upper].min()
            upper = np.flatnonzero(~above)
        index, keys, weights = upper if index is None else index[upper], keys[upper], weights[upper]
        pivot = None
    order = np.argsort(keys, kind="stable")[::-1]
    sums = np.cumsum(weights[order], dtype=np.float64)
    size = int(np.searchsorted(sums, mass)) + 1 if mass > 0 else 0  # the one that reaches it is the last
    kept = order[: max(size, at_least)]
    if kept.size:
        last = keys[kept[-1]]
    return np.concatenate([*inside, kept if index is None else index[kept]]), last
