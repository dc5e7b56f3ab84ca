"""The tokens that may come next, with their weights, and the draw of one of them.

A decode step reads all weights of the model, so afterwards neither the scores nor the code that handles them lie in the
nearer caches. What costs here is how much memory is touched and how many functions are called, not arithmetic. So the
vocabulary is gone through in blocks with one small buffer, and the few tokens that a filter leaves are kept sorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 16384  # scores whose weights are made at once
RUN = 128  # weights that are summed at once
RUNS = np.arange(0, BLOCK, RUN)
TRIES = 2  # draws from all candidates before a limit is applied to them
BELOW_ONE = 1 - 2.0**-53


class Limit(NamedTuple):
    """Candidates in the order of `distance` (relative scores [n] -> [n], at least 0), until their weights reach `mass`.

    Of equal ones the last goes first or, with ties, those count that are as far as the last one that is needed.
    apply: finds them all. A draw needs less: to know of one token whether it is among them.
    """

    distance: Callable[[np.ndarray], np.ndarray]
    mass: float
    ties: bool
    apply: Callable[[], Candidates]

    def admits(self, candidates: Candidates, index: int) -> bool:
        """Whether the candidate at `index` is among them: whether those before it weigh less than `mass`."""
        (own,) = self.distance(candidates.relative(slice(index, index + 1)))
        before = 0.0
        for where, relative in candidates.blocks():
            nearer = (self.distance(relative) < own).astype(np.float32)
            nearer *= candidates.weights(where, relative)
            before += float(nearer.sum())
        if not self.ties:
            equal = np.count_nonzero(candidates.scores[index + 1 :] == candidates.scores[index])
            if equal:
                before += equal * float(candidates.weights(slice(0), candidates.relative(slice(index, index + 1)))[0])
        return before < self.mass


class Candidates(NamedTuple):
    """Tokens still in question: scores float32 [n], to be divided by `temperature`.

    ids: int64 [n], the scores then being sorted, highest first; None where the ids are 0..n-1.
    kept: a boolean mask [n] of those that count, None where all do; never together with ids.
    edges: the running sums of the weights where they are known, float64: [n] with ids, of each RUN without.
    limit: what else they must meet, not applied yet; only to candidates without ids and mask.
    """

    scores: np.ndarray
    ids: np.ndarray | None = None
    temperature: float = 1.0
    kept: np.ndarray | None = None
    edges: np.ndarray | None = None
    limit: Limit | None = None

    def size(self) -> int:
        """How many count."""
        few = self.settled()
        return few.scores.size if few.kept is None else int(np.count_nonzero(few.kept))

    def settled(self) -> Candidates:
        """The same with the limit applied."""
        return self if self.limit is None else self.limit.apply()

    def ranked(self, index: np.ndarray | None = None) -> Candidates:
        """Those at `index` (increasing), or all that count, sorted; of equal scores the later ids come first."""
        if self.ids is not None:
            return self if index is None else Candidates(self.scores[index], self.ids[index], self.temperature)
        if index is None:
            index = np.arange(self.scores.size) if self.kept is None else self.kept.nonzero()[0]
        scores = self.scores[index]
        order = scores.argsort(kind="stable")[::-1]
        return Candidates(scores[order], index[order], self.temperature)

    def first(self, count: int) -> Candidates:
        """The `count` highest of sorted ones."""
        edges = None if self.edges is None else self.edges[:count]
        ids = None if self.ids is None else self.ids[:count]
        return Candidates(self.scores[:count], ids, self.temperature, edges=edges)

    def summed(self) -> Candidates:
        """Sorted ones with their `edges`."""
        if self.edges is not None:
            return self
        return self._replace(edges=np.exp(self.relative(slice(None))).cumsum(dtype=np.float64))

    def dense(self, vocab_size: int) -> np.ndarray:
        """Scores [vocab_size] as transformers has them: -inf for what was dropped."""
        if self.limit is not None:
            return self.settled().dense(vocab_size)
        scores = self.scores / np.float32(self.temperature)
        if self.ids is None:
            return scores if self.kept is None else np.where(self.kept, scores, np.float32(-np.inf))
        spread = np.full(vocab_size, -np.inf, np.float32)
        spread[self.ids] = scores
        return spread

    def peak(self) -> np.floating:
        return self.scores[0] if self.ids is not None else self.scores.max()

    def relative(self, index: np.ndarray | slice) -> np.ndarray:
        """Scores at `index` over temperature, less the highest: float32, at most 0."""
        return self._relative(self.scores[index], self.peak(), None)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """(where, relative scores), block by block; valid until the next one, whether `kept` or not."""
        scores, peak = self.scores, self.peak()
        buffer = np.empty(min(BLOCK, scores.size), np.float32)
        for first in range(0, scores.size, BLOCK):
            where = slice(first, min(first + BLOCK, scores.size))
            yield where, self._relative(scores[where], peak, buffer[: where.stop - first])

    def weights(self, where: slice, relative: np.ndarray) -> np.ndarray:
        """exp(relative), in its place, and 0 for what is not kept."""
        weights = np.exp(relative, out=relative)
        if self.kept is not None:
            weights *= self.kept[where]
        return weights

    def run_sums(self) -> np.ndarray:
        """The sum of each RUN of weights, float64."""
        sums = np.empty(-(-self.scores.size // RUN))
        for where, relative in self.blocks():
            first = where.start // RUN
            runs = RUNS if relative.size == BLOCK else RUNS[: -(-relative.size // RUN)]
            sums[first : first + runs.size] = np.add.reduceat(self.weights(where, relative), runs)
        return sums

    def _relative(self, part: np.ndarray, peak: np.floating, out: np.ndarray | None) -> np.ndarray:
        relative = np.subtract(part, peak, out=out)
        if self.temperature != 1.0:
            relative /= np.float32(self.temperature)
        return relative


def draw(candidates: Candidates, uniform: float) -> int:
    """The token id that a number in [0, 1) picks: each with its probability, the softmax of the scores."""
    if candidates.ids is not None:
        edges = candidates.summed().edges
        assert edges is not None
        return int(candidates.ids[edges.searchsorted(uniform * edges[-1], side="right")])
    edges = candidates.run_sums().cumsum() if candidates.edges is None else candidates.edges
    for _ in range(TRIES):
        target = uniform * edges[-1]
        run = int(edges.searchsorted(target, side="right"))  # has weight: its edge is above the one before
        where = slice(run * RUN, (run + 1) * RUN)
        weights = candidates.weights(where, candidates.relative(where))
        within = weights.cumsum(dtype=np.float64)
        target -= edges[run - 1] if run else 0.0
        index = int(within.searchsorted(target, side="right"))
        if index == weights.size:  # the two sums of a run differ by rounding
            index = int(weights.nonzero()[0][-1])
        if candidates.limit is None or candidates.limit.admits(candidates, where.start + index):
            return where.start + index
        # Where in the token's share the number fell is as random as the number was, whatever the token.
        share = (target - (within[index - 1] if index else 0.0)) / weights[index]
        uniform = min(max(float(share), 0.0), BELOW_ONE)
    return draw(candidates.settled(), uniform)


def log_normaliser(scores: np.ndarray) -> float:
    """log(sum(exp(scores))): a score minus this is its log-probability."""
    return float(scores.max()) + math.log(Candidates(scores).run_sums().sum())
