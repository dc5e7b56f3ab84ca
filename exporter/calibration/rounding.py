"""Round a matrix to 4 bits so that its products with typical inputs change least.

The error of a row w that is rounded to r, over inputs X [T, K], is |X (w - r)|^2 = e G e' with the Gram matrix G = X'X
and e = w - r. With the factor G = R R', R upper triangular, it is the sum over the columns j of (sum over i <= j of
e_i R_ij)^2. Each column in turn is rounded to the value that makes its term smallest, given the errors of the columns
before it: this is GPTQ (arXiv:2210.17323) in the form of LDLQ (arXiv:2307.13304). The scale and the zero point of a
group are chosen when its first column is reached, for the values that the feedback has given to the group by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellama.kernels.weight_format import GROUP, LEAST_CODE, MOST_CODE, QUARTERS, W4_GROUPS, scale_count

Floats = NDArray[np.float32]

DAMPING = 0.01  # is added to the diagonal of the Gram matrix, times its mean
CANDIDATES = 16  # scales that are tried for a group
NARROWER = 0.03  # step between the scales that are tried for w4gN, as a share of the widest
_TILE = 512  # columns that the factorization takes at a time


class Rounded(NamedTuple):
    """Rows of a matrix as 4-bit integers, for kernels.weight_format.pack_groups; K is padded to a multiple of 32.

    Attributes:
        cells: uint16 [n, groups], the scales as the format stores them (int4: with the zero points).
        q: uint8 [n, K], 0..15.
        quarters: int8 [n, groups], the zero points of w4gN; None for int4.
    """

    cells: NDArray[np.uint16]
    q: NDArray[np.uint8]
    quarters: NDArray[np.int8] | None

    def values(self, fmt: str) -> Floats:
        """Return the weights, float32 [n, K]."""
        if self.quarters is None:
            scales, zeros = _scale_of_code(self.cells >> 6), (self.cells & 63) / np.float32(4)
        else:
            scales, zeros = self.cells.view(np.float16).astype(np.float32), self.quarters / np.float32(4)
        k = self.q.shape[1]
        scales, zeros = (np.repeat(x.astype(np.float32), group_size(fmt), axis=1)[:, :k] for x in (scales, zeros))
        return np.asarray(scales * (self.q - zeros), np.float32)

    def rows(self, first: int, end: int) -> Rounded:
        """Return rows first .. end - 1."""
        quarters = None if self.quarters is None else self.quarters[first:end]
        return Rounded(self.cells[first:end], self.q[first:end], quarters)

    @classmethod
    def concatenated(cls, parts: Sequence[Rounded]) -> Rounded:
        """Return the rows of all parts, of one format, in order."""
        quarters = [part.quarters for part in parts if part.quarters is not None]
        return cls(
            np.concatenate([part.cells for part in parts]),
            np.concatenate([part.q for part in parts]),
            np.concatenate(quarters) if quarters else None,
        )

    def joined(self) -> NDArray[np.uint8]:
        """Return the bytes of each row in one array, [n, bytes]; `parted` is the inverse."""
        parts = (self.cells.view(np.uint8), self.q, *(() if self.quarters is None else (self.quarters.view(np.uint8),)))
        return np.concatenate(parts, axis=1)

    @classmethod
    def parted(cls, rows: NDArray[np.uint8], fmt: str, depth: int) -> Rounded:
        """Return the rows that `joined` joined. depth: the columns of q."""
        groups = scale_count(fmt, depth)
        cells, q, quarters = np.split(rows, [2 * groups, 2 * groups + depth], axis=1)
        signed = None if fmt == "int4" else np.ascontiguousarray(quarters).view(np.int8)
        return cls(np.ascontiguousarray(cells).view(np.uint16), q, signed)


def group_size(fmt: str) -> int:
    """Return the weights along K that share a scale, in "int4" or "w4gN"."""
    return W4_GROUPS.get(fmt, GROUP)


def factor(gram: Floats) -> None:
    """Replace a Gram matrix [K, K] by R: upper triangular, R R' = the damped Gram matrix. Works in place.

    Columns that are always zero get the factor of the damping alone, so that the matrix is never singular. Raises
    FloatingPointError if the matrix is not finite.
    """
    diagonal = np.einsum("ii->i", gram)
    mean = float(diagonal.mean(dtype=np.float64))
    if not np.isfinite(mean):
        raise FloatingPointError("the inputs of the matrix are not finite")
    diagonal += np.float32(DAMPING * mean if mean > 0 else 1.0)
    # A Cholesky factorization that begins at the last column, in tiles: R R' instead of L L'.
    for end in range(len(gram), 0, -_TILE):
        first = max(0, end - _TILE)
        tile = np.linalg.cholesky(gram[first:end, first:end][::-1, ::-1])[::-1, ::-1]  # upper triangular
        gram[first:end, first:end] = tile
        gram[end:, first:end] = 0
        above = gram[:first, first:end]
        above[:] = np.linalg.solve(tile, above.T).T
        for low in range(0, first, _TILE):  # symmetric: only the part above the diagonal is used
            high = min(low + _TILE, first)
            gram[:high, low:high] -= above[:high] @ above[low:high].T


def round_rows(w: Floats, root: Floats, fmt: str) -> Rounded:
    """Round rows w [n, K] to the grids of `fmt`. root: the factor R [K', K'], K' = K padded to a multiple of 32."""
    n, k = w.shape
    depth, size = len(root), group_size(fmt)
    columns = np.zeros((depth, n), np.float32)
    columns[:k] = w.T
    error = np.empty_like(columns)  # e
    q = np.empty((depth, n), np.uint8)
    cells = np.empty((scale_count(fmt, k), n), np.uint16)
    quarters = np.empty(cells.shape, np.int8)
    weight = np.square(np.diagonal(root))
    for group, first in enumerate(range(0, depth, size)):
        end = min(first + size, depth)
        # The feedback of the columns before the group; what the group's own columns add follows below.
        term = root[:first, first:end].T @ error[:first]  # [columns, n]: sum over i of e_i R_ij
        wanted = columns[first:end] + term / np.diagonal(root)[first:end, None]
        scale, zero, cells[group] = _grid(wanted, weight[first:end], fmt)
        quarters[group] = zero
        inverse, zero = np.float32(1) / scale, zero * np.float32(0.25)
        for i in range(end - first):
            j = first + i
            target = columns[j] + term[i] / root[j, j]
            q[j] = code = np.clip(np.rint(target * inverse + zero), 0, 15)
            error[j] = columns[j] - (code - zero) * scale
            term[i + 1 :] += root[j, j + 1 : end, None] * error[j]
    kept = None if fmt == "int4" else np.ascontiguousarray(quarters.T)
    return Rounded(np.ascontiguousarray(cells.T), np.ascontiguousarray(q.T), kept)


def _grid(wanted: Floats, weight: Floats, fmt: str) -> tuple[Floats, Floats, NDArray[np.uint16]]:
    """Return the scale and the zero point in quarters, both float32 [n], and the cell uint16 [n] of a group.

    wanted [columns, n]; weight [columns]: what the square of a column's error costs. Keeps the first pair of a scale
    and a zero point with the least cost.
    """
    low, high = np.minimum(wanted.min(axis=0), 0), np.maximum(wanted.max(axis=0), 0)
    best = np.full(wanted.shape[1], np.inf, np.float32)
    found = np.ones_like(best), np.zeros_like(best)
    for scale in _scales((high - low) / np.float32(15), fmt):
        inverse = np.float32(1) / scale
        middle = np.rint(np.float32(2) * (np.float32(15) - (high + low) * inverse))  # in quarters
        for shift in range(-2, 3):
            quarters = np.clip(middle + np.float32(shift), 0, QUARTERS - (fmt == "int4"))
            zero = quarters * np.float32(0.25)
            error = (np.clip(np.rint(wanted * inverse + zero), 0, 15) - zero) * scale - wanted
            cost = weight @ np.square(error)
            better = cost < best
            best = np.where(better, cost, best)
            found = np.where(better, scale, found[0]), np.where(better, quarters, found[1])
    scale, quarters = found
    if fmt == "int4":
        code = (scale.view(np.int32) >> 18) - (112 << 5)
        return scale, quarters, ((code << 6) | quarters.astype(np.int32)).astype(np.uint16)
    return scale, quarters, scale.astype(np.float16).view(np.uint16)


def _scales(spanning: Floats, fmt: str) -> Iterator[Floats]:
    """Yield the scales to try, float32 [n], from the one that spans a group in 15 steps downwards."""
    if fmt == "int4":
        widest = np.minimum(((spanning.view(np.int32) + ((1 << 18) - 1)) >> 18) - (112 << 5), MOST_CODE)
        for step in range(CANDIDATES):
            yield _scale_of_code(np.maximum(widest - step, LEAST_CODE))
        return
    for step in range(CANDIDATES):
        narrowed = np.clip(spanning * np.float32(1 - NARROWER * step), 2**-14, 65504)
        yield narrowed.astype(np.float16).astype(np.float32)


def _scale_of_code(code: NDArray[np.integer]) -> Floats:
    """Return the scales of int4's codes, the ten upper bits of a positive float16."""
    return ((code.astype(np.int32) + (112 << 5)) << 18).view(np.float32)
