"""The sampling settings that are seldom used: top_h, epsilon_cutoff and eta_cutoff, as transformers defines them.

The others are in native code (sampler.py). top_h applies before them and the two cutoffs after them.
"""

from __future__ import annotations

import numpy as np

TOP_H_TOKENS = 100  # top_h looks at this many tokens only


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Return the log-probabilities float32 [V] of scores [V]."""
    shifted = scores.astype(np.float64) - scores.max()
    return (shifted - np.log(np.exp(shifted).sum())).astype(np.float32)


def apply_top_h(scores: np.ndarray, temperature: float, share: float) -> np.ndarray:
    """Keep the likeliest tokens whose terms of the entropy reach at most `share` of it, at least one.

    Potraka et al., 2025, arXiv:2509.02510.

    Args:
        scores: float32 [V].
        temperature: which divides the scores before.
        share: the setting.

    Returns:
        The scores with -inf for the others.
    """
    order = np.argsort(-scores, kind="stable")[:TOP_H_TOKENS]
    logs = log_softmax(scores[order] / np.float32(temperature)).astype(np.float64)
    terms = -np.exp(logs) * np.where(np.isfinite(logs), logs, 0.0)
    kept = np.cumsum(terms) <= terms.sum() * share
    kept[0] = True
    out = np.full_like(scores, -np.inf)
    out[order[kept]] = scores[order[kept]]
    return out


def apply_cutoffs(scores: np.ndarray, epsilon: float, eta: float, keep: int) -> np.ndarray:
    """Exclude tokens below a probability, but never the `keep` likeliest (Hewitt et al., 2022, arXiv:2210.15191).

    Args:
        scores: float32 [V].
        epsilon: the least probability; 0 excludes none.
        eta: of the rule that lowers it where the distribution is flat; 0 excludes none.
        keep: how many stay in any case.

    Returns:
        The scores with -inf for the others.
    """
    if epsilon:
        scores = _at_least(scores, epsilon, keep)
    if eta:
        logs = log_softmax(scores).astype(np.float64)
        entropy = -np.sum(np.exp(logs) * np.where(np.isfinite(logs), logs, 0.0))
        scores = _at_least(scores, min(eta, np.sqrt(eta) * np.exp(-entropy)), keep)
    return scores


def _at_least(scores: np.ndarray, least: float, keep: int) -> np.ndarray:
    held = min(keep, len(scores))
    highest = np.partition(scores, len(scores) - held)[len(scores) - held]
    return np.where((np.exp(log_softmax(scores)) < least) & (scores < highest), np.float32(-np.inf), scores)
