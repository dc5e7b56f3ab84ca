"""A checkpoint whose layers are rounded to 4 bits for the inputs that a text gives to them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edgellama.backend.resources import available_threads
from edgellama.errors import UserError
from edgellama.kernels.weight_format import GROUP, round_up

from ..checkpoint.base import Checkpoint, DerivedCheckpoint, RawBlocks
from ..checkpoint.row_blocks import row_blocks
from ..float_layer import decoder_layer
from .rounding import Rounded, factor, round_rows

Floats = NDArray[np.float32]
ROWS = 1024  # rows of a matrix that are rounded together


class CalibratedCheckpoint(DerivedCheckpoint):
    """`checkpoint` with layers that can also be read as 4-bit integers (`rounded`).

    The text goes through the network layer by layer. Each matrix is rounded for the inputs that it has after the
    rounding of everything before it, so that later matrices make up for the errors of earlier ones. The first
    call of `rounded` for a layer computes it. The second layer after it replaces it. So memory holds the hidden states
    of the text, and the integers of two layers.
    """

    def __init__(self, checkpoint: Checkpoint, tokens: NDArray[np.int32], fmt: str) -> None:
        """Begin with the embeddings.

        Args:
            checkpoint: folded.
            tokens: [sequences, length], the text.
            fmt: "int4" or "w4gN".
        """
        self.path, self.config, self.is_folded = checkpoint.path, checkpoint.config, checkpoint.is_folded
        self._checkpoint, self._fmt, self._length = checkpoint, fmt, tokens.shape[1]
        table, flat = "model.embed_tokens.weight", tokens.reshape(-1).tolist()
        self._hidden = np.concatenate([checkpoint.rows(table, token, 1) for token in flat])
        self._layers: dict[int, dict[str, Rounded]] = {}
        self._next, self._lock = 0, threading.Lock()

    def dtype(self, name: str) -> str:
        return self._checkpoint.dtype(name)

    def rows(self, name: str, first: int, count: int) -> Floats:
        return self._checkpoint.rows(name, first, count)

    def raw(self, name: str, first: int = 0, count: int | None = None) -> RawBlocks | None:
        return None

    def rounded(self, name: str, first: int, count: int) -> Rounded:
        """Return rows of a layer's matrix. The layers must be read in order; several threads may call this."""
        layer = int(name.split(".")[2])
        with self._lock:
            while self._next <= layer:
                self._advance()
            whole = self._layers[layer][name]
        return whole.rows(first, first + count)

    def _advance(self) -> None:
        """Round the next layer, and compute its output."""
        layer, made = self._next, dict[str, Rounded]()

        def blocks(name: str) -> Iterator[Floats]:
            count, depth = self.shape(name)
            for first, rows in row_blocks(count, 4 * depth):
                yield made[name].rows(first, first + rows).values(self._fmt)[:, :depth]

        def before(names: Sequence[str], x: Floats) -> None:
            root = self._factor(names, x)
            for name in names:
                made[name] = self._round(name, root)

        self._hidden = decoder_layer(self._checkpoint, layer, self._hidden, self._length, blocks, before)
        self._layers = {layer: made, **({layer - 1: self._layers[layer - 1]} if layer else {})}
        self._next += 1

    def _factor(self, names: Sequence[str], x: Floats) -> Floats:
        depth = x.shape[1]
        size = round_up(depth, GROUP)  # whole groups of the kernels
        root = np.zeros((size, size), np.float32)
        np.matmul(x.T, x, out=root[:depth, :depth])
        try:
            factor(root)
        except FloatingPointError as error:
            raise UserError(
                f"CALIBRATION: {error} ({names[0]}); the network overflows on this text. Choose another text"
            ) from error
        return root

    def _round(self, name: str, root: Floats) -> Rounded:
        def one(first: int) -> Rounded:
            rows = self._checkpoint.rows(name, first, min(ROWS, count - first))
            return round_rows(rows, root, self._fmt)

        count = self.shape(name)[0]
        with ThreadPoolExecutor(available_threads()) as pool:
            return Rounded.concatenated(list(pool.map(one, range(0, count, ROWS))))
