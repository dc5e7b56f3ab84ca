"""The integers, scales and zero points of a quantized matrix, as its file has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Grid(NamedTuple):
    """Rows of a matrix of integers.

    Attributes:
        q: uint8 [n, K].
        scales: float32 [n, groups].
        zeros: int16 [n, groups].
        order: int [K], the group of each input; None: groups are equal runs of inputs.
    """

    q: NDArray[np.uint8]
    scales: Floats
    zeros: NDArray[np.int16]
    order: NDArray[np.int64] | None

    def values(self) -> Floats:
        """Return the weights, float32 [n, K]."""
        if self.order is not None:
            zeros, scales = self.zeros.astype(np.float32), self.scales
            return (self.q - zeros[:, self.order]) * scales[:, self.order]
        q = self.q.reshape(*self.scales.shape, -1).astype(np.float32)
        return ((q - self.zeros[..., None].astype(np.float32)) * self.scales[..., None]).reshape(self.q.shape)


@dataclass(frozen=True)
class FourBits:
    """What the grid of a matrix with 4 bits is.

    Attributes:
        group: inputs that share a scale and a zero point; None: groups are no equal runs of inputs (act-order).
        scales: reads all scales, of any shape; None: they are stored as float16.
    """

    group: int | None
    scales: Callable[[], Floats] | None = None

    def other_scale(self) -> float | None:
        """Read scales of other types, and return the first that no float16 holds, or None."""
        if self.scales is None:
            return None
        scales = self.scales()
        with np.errstate(over="ignore"):
            other = scales[scales.astype(np.float16).astype(np.float32) != scales]
        return float(other[0]) if other.size else None
