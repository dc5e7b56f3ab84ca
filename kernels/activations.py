"""The rounding of activations in prefill, in numpy: the definition for the CPU kernels with integer weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FINE_TOKENS = 16  # rows with more tokens in a call (prefill) have coarse groups of activations
HEAVY = 3.0  # a group is fine if its largest magnitude exceeds the mean of the other groups' so many times
FINE_STEPS, COARSE_STEPS = 127 * 256, 127  # of the largest magnitude in a group


def round_activations(x: NDArray[Any]) -> NDArray[Any]:
    """Round rows x [..., K] as the CPU kernels do in prefill, where activations are integers of 8 or 16 bits.

    32 elements along K are a group; the last one may have fewer. Of G groups, those are fine whose largest magnitude p
    exceeds HEAVY times the mean of the other groups': p > HEAVY / (G - 1 + HEAVY) * (the sum of all p). The few groups
    with outliers cause most of the rounding error, so these keep 16 bits. An element is rounded to the nearest multiple
    of p / FINE_STEPS in a fine group, and of p / COARSE_STEPS in the others (ties to even). A group whose p is at most
    1e-30 becomes zero. A row with a NaN or an infinity becomes NaN. Returns float64.
    """
    k = x.shape[-1]
    groups = np.pad(x.astype(np.float32), [(0, 0)] * (x.ndim - 1) + [(0, -k % 32)]).reshape(*x.shape[:-1], -1, 32)
    peak = np.abs(groups).max(axis=-1, keepdims=True)
    finite = np.isfinite(peak)
    groups, peak = np.where(finite, groups, np.float32(0)), np.where(finite, peak, np.float32(0))
    limit = HEAVY / (peak.shape[-2] - 1 + HEAVY) * peak.sum(axis=-2, keepdims=True)
    all_steps = np.where(peak > limit, np.float32(FINE_STEPS), np.float32(COARSE_STEPS))
    steps = np.divide(all_steps, peak, out=np.zeros_like(peak), where=peak > np.float32(1e-30))
    rounded = np.rint(groups.astype(np.float64) * steps) * (peak.astype(np.float64) / all_steps)
    rounded = np.where(finite.all(axis=-2, keepdims=True), rounded, np.nan)
    return np.asarray(rounded.reshape(*x.shape[:-1], -1)[..., :k])
