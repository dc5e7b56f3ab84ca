"""Cuts a tensor into blocks of rows, so that no tensor is ever whole in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from numpy.typing import NDArray

from .base import Checkpoint

Piece = Callable[[], NDArray[Any]]  # makes some rows of a tensor

PIECE_BYTES = 32 << 20  # size of a block of float32 rows, before they are packed


def row_blocks(rows: int, row_bytes: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of the blocks that cover `rows` rows.

    A block has a multiple of `multiple` rows; the last has the rest. A block has at most PIECE_BYTES, unless `multiple`
    rows exceed that.
    """
    step = max(1, PIECE_BYTES // (row_bytes * multiple)) * multiple
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def tensor_pieces(name: str, checkpoint: Checkpoint) -> Iterator[Piece]:
    """Yield the pieces of a checkpoint's tensor, unchanged, as float32."""
    rows, *rest = checkpoint.shape(name)
    for first, count in row_blocks(rows, 4 * math.prod(rest)):
        yield partial(checkpoint.rows, name, first, count)
