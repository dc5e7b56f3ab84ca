"""Statistics of tests that sample."""

from __future__ import annotations

import numpy as np


def softmax(scores: np.ndarray) -> np.ndarray:
    """Returns the probabilities of `scores` over the last axis, in float64."""
    weights = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def assert_same_scores(ours: np.ndarray, expected: np.ndarray) -> None:
    """The same tokens are banned, and the others have the same scores and probabilities."""
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(expected))
    np.testing.assert_allclose(softmax(ours), softmax(expected), atol=1e-5, rtol=0)
    finite = np.isfinite(expected)
    np.testing.assert_allclose(ours[finite], expected[finite], atol=1e-5, rtol=1e-6)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns by how many standard deviations the counts differ from the probabilities more than chance explains.

    With d degrees of freedom the statistic has mean d and variance 2d. Tokens that are expected fewer than five times
    count as one.
    """
    expected = probabilities * counts.sum()
    order = np.argsort(expected)[::-1]
    counts, expected = counts[order], expected[order]
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    used = expected > 0
    assert counts[~used].sum() == 0
    degrees = used.sum() - 1
    statistic = ((counts[used] - expected[used]) ** 2 / expected[used]).sum()
    return float((statistic - degrees) / np.sqrt(2 * degrees))
