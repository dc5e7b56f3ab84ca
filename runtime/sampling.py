"""Which tokens may be drawn: temperature, top_k, top_p, min_p, typical_p.

The meaning and the order are those of transformers' logits warpers. They work on one row's candidates, and none sorts
the vocabulary: a filter narrows it down to where its limit lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from runtime.candidates import Candidates, Limit
from runtime.generation_config import GenerationConfig

GROUP = 32  # values that are looked at as one, through their maximum
SORTED = 2048  # so many are sorted at once, more are narrowed down first
FIRST_LOOK = 256  # likely tokens that hold most nuclei
BINS = 2048  # into which distances are counted to narrow them down
BINS_A_UNIT = 64.0  # of distances between log-probabilities: beyond 32 units the weights are below 1e-13
LIKELY = 0.5  # from this probability on a draw tries its luck before a limit is applied
FLOOR = np.float32(-200.0)  # stands for a score of -inf where it is multiplied with its weight of 0

Warper = Callable[[Candidates], Candidates]
Distance = Callable[[np.ndarray], np.ndarray]  # relative scores [n] -> at least 0 [n]


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
    candidates = candidates.settled()
    return candidates._replace(temperature=candidates.temperature * value, edges=None)


def top_k(candidates: Candidates, k: int) -> Candidates:
    """The k highest scores, and what equals the last of them."""
    candidates = candidates.settled()
    few = candidates if candidates.ids is not None else _likeliest(candidates, k)
    if k < few.scores.size:
        ascending = few.scores[::-1]
        few = few.first(few.scores.size - int(ascending.searchsorted(few.scores[k - 1])))
    return few


def top_p(candidates: Candidates, p: float, min_tokens_to_keep: int = 1) -> Candidates:
    """The highest scores whose probabilities add up to p: the nucleus. Of equal scores the later ids go first."""
    candidates = candidates.settled()
    few = _likeliest(candidates, FIRST_LOOK).summed()  # most nuclei are small
    assert few.edges is not None
    edges = few.edges if few.scores.size == candidates.scores.size else candidates.run_sums().cumsum()
    mass = p * float(edges[-1])
    if edges is few.edges or mass <= few.edges[-1]:
        return few.first(max(int(few.edges.searchsorted(mass)) + 1, min_tokens_to_keep))
    return _limited(candidates._replace(edges=edges), np.negative, p, mass, ties=False)


def min_p(candidates: Candidates, p: float, min_tokens_to_keep: int = 1) -> Candidates:
    """What is at least p times as likely as the likeliest."""
    candidates = candidates.settled()
    lowest = candidates.peak() + np.float32(candidates.temperature * math.log(p) if p > 0 else -math.inf)
    if candidates.ids is not None:
        count = candidates.scores.size - int(candidates.scores[::-1].searchsorted(lowest))
        return candidates.first(max(count, min_tokens_to_keep))
    kept = candidates.scores >= lowest
    if candidates.kept is not None:
        kept &= candidates.kept
    count = int(np.count_nonzero(kept))
    if count < min_tokens_to_keep:
        return top_k(candidates, min_tokens_to_keep)
    kept_ones = candidates._replace(kept=kept, edges=None)
    return kept_ones.ranked() if count <= SORTED else kept_ones


def typical_p(candidates: Candidates, p: float, min_tokens_to_keep: int = 1) -> Candidates:
    """Locally typical sampling (Meister et al., 2022): the tokens whose surprise is nearest to the entropy, up to
    probability p in all, and what is as near as the last of them."""
    candidates = candidates.settled()
    total = moment = 0.0
    for where, relative in candidates.blocks():
        bounded = np.maximum(relative, FLOOR)
        weights = candidates.weights(where, relative)
        total += float(weights.sum())
        moment += float(np.multiply(weights, bounded, out=bounded).sum())
    expected = np.float32(moment / total)  # of log-probabilities; less the normaliser's logarithm that is -entropy

    def distance(relative: np.ndarray) -> np.ndarray:
        off = relative - expected
        return np.abs(off, out=off)

    kept = _typical(candidates, distance, expected, p, p * total)
    if min_tokens_to_keep > 1 and kept.size() < min_tokens_to_keep:
        distances = distance(candidates.relative(slice(None)))
        last = np.partition(distances, min_tokens_to_keep - 1)[min_tokens_to_keep - 1]
        return candidates.ranked((distances <= last).nonzero()[0])
    return kept


def _typical(candidates: Candidates, distance: Distance, expected: np.float32, p: float, mass: float) -> Candidates:
    few = _likeliest(candidates, FIRST_LOOK)
    relative = few.relative(slice(None))
    distances, weights = distance(relative), np.exp(relative)
    whole = few.scores.size == candidates.scores.size
    if whole or float(weights.sum()) >= mass:
        last = distances[_nearest(distances, weights, mass)[-1]]
        if whole or last < expected - relative[-1]:  # what lies below the few is farther away
            return few.ranked(np.flatnonzero(distances <= last))
    return _limited(candidates, distance, p, mass, ties=True)


def _likeliest(candidates: Candidates, count: int) -> Candidates:
    """At least `count` of the highest scores and what equals the last of them, sorted; all where that is cheap."""
    if candidates.ids is not None:
        return candidates
    if candidates.kept is not None or candidates.scores.size <= SORTED:
        return candidates.ranked()
    scores = candidates.scores
    bound = bound_of_top(scores, count)
    if bound is None:
        count = min(count, scores.size)
        bound = np.partition(scores, scores.size - count)[scores.size - count]
    return candidates.ranked((scores >= bound).nonzero()[0])


def bound_of_top(values: np.ndarray, k: int) -> np.float32 | None:
    """A value that at least k values reach, and few others; None where finding it would not pay.

    It is the k-th largest of the maxima of groups.
    """
    groups = values.size // GROUP
    if groups < 2 * k:
        return None
    maxima = np.maximum.reduce(values[: groups * GROUP].reshape(GROUP, groups))
    maxima.partition(groups - k)
    return maxima[groups - k]


def _limited(candidates: Candidates, distance: Distance, p: float, mass: float, ties: bool) -> Candidates:
    """Those `_within`, of probability p; likely ones found out when they are asked for, which a draw seldom does."""
    if candidates.ids is not None or candidates.kept is not None or p < LIKELY:
        return _within(candidates, distance, mass, ties)
    return candidates._replace(limit=Limit(distance, mass, ties, lambda: _within(candidates, distance, mass, ties)))


def _within(candidates: Candidates, distance: Distance, mass: float, ties: bool) -> Candidates:
    """The candidates of least distance, one by one until their weights reach `mass`; with `ties` also those that are as
    far as the last one.

    Weights are added up by distance in bins, and only the bin in which the mass is reached is looked into.
    """
    bins = np.empty(candidates.scores.size, np.uint16)
    heavy = np.zeros(BINS)
    for where, relative in candidates.blocks():
        scaled = distance(relative)
        scaled *= BINS_A_UNIT
        bins[where] = np.minimum(scaled, BINS - 1, out=scaled)
        heavy += np.bincount(bins[where], weights=candidates.weights(where, relative), minlength=BINS)
    reached, before = _reached(heavy, mass)
    kept = bins < reached
    index = np.flatnonzero(bins == reached)
    relative = candidates.relative(index)
    distances, weights = distance(relative), np.exp(relative)
    mass -= before
    while index.size > SORTED:
        low, high = float(distances.min()), float(distances[weights > 0].max())
        if low == high:
            break
        finer = np.minimum((distances - low) * ((BINS - 1) / (high - low)), BINS - 1).astype(np.intp)
        reached, before = _reached(np.bincount(finer, weights=weights, minlength=BINS), mass)
        kept[index[finer < reached]] = True
        mass -= before
        inside = np.flatnonzero(finer == reached)
        index, distances, weights = index[inside], distances[inside], weights[inside]
    nearest = _nearest(distances, weights, mass)
    kept[index[distances <= distances[nearest[-1]] if ties else nearest]] = True
    return candidates._replace(kept=kept, edges=None)


def _reached(heavy: np.ndarray, mass: float) -> tuple[int, float]:
    """The bin in which the sum of the bins' weights reaches `mass`, the last that has any weight where it does not; and
    the sum of those before it."""
    sums = np.cumsum(heavy)
    reached = int(np.searchsorted(sums, min(mass, float(sums[-1]))))
    return reached, float(sums[reached - 1]) if reached else 0.0


def _nearest(distances: np.ndarray, weights: np.ndarray, mass: float) -> np.ndarray:
    """Indices by distance, until their weights reach `mass`: at least one. Of equal distances the last goes first."""
    order = distances.size - 1 - np.argsort(distances[::-1], kind="stable")
    sums = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(sums, mass)) + 1]
