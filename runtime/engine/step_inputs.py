"""The inputs of one graph call: token ids, start and length, and inputs of portable graphs that follow from these.

The custom attention kernels take `start` and `length` themselves. A graph of built-in operators takes positions, the
index of each row's last token, and two additive masks instead: one over the cache, one over the tokens of this call.
Layers with a sliding window have two masks of their own, because each token sees another part of the cache there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..artifact.manifest import Graph
from ..artifact.step_graph import SELF_MASKS, STEP_INPUTS, shape_at
from ..errors import UserError

MASKED = np.float32(-1e30)  # finite: -inf would give NaN in a row whose columns are all masked


def causal_mask(shape: tuple[int, ...], window: int = 0) -> np.ndarray:
    """Return a self_mask, float32: token s of the call sees tokens 0..s of the call.

    It does not depend on length: the padding is behind the valid tokens, so causality hides it from them.

    Args:
        shape: [B, 1, R*S, S], R query heads per KV head; the row order is r*S + s.
        window: a token sees only the latest `window` tokens; 0 for no window.
    """
    rows, _, grouped, bucket = shape
    causal = np.triu(np.full((bucket, bucket), MASKED, np.float32), k=1)
    if window:
        causal += np.tril(np.full((bucket, bucket), MASKED, np.float32), k=-window)
    return np.ascontiguousarray(np.broadcast_to(np.tile(causal, (grouped // bucket, 1)), (rows, 1, grouped, bucket)))


class StepInputs:
    """The arrays of all per-call inputs of one graph at one bucket, allocated once and filled by `fill`.

    Attributes:
        arrays: by input name.
    """

    def __init__(self, graph: Graph, bucket: int, context: int, window: int = 0) -> None:
        """Allocate the arrays.

        Args:
            graph: gives the inputs and their shapes.
            bucket: tokens per row.
            context: capacity of the cache.
            window: the model's sliding window, which some or all of its layers have; 0 if it has none.

        Raises:
            UserError: the graph has no tokens input.
        """
        self.bucket = bucket
        self.context = context
        self.window = window
        self.arrays: dict[str, np.ndarray] = {}
        for spec in graph.inputs:
            if spec.name in STEP_INPUTS:
                shape = shape_at(spec, graph.bucket, bucket)
                if spec.name in SELF_MASKS:
                    self.arrays[spec.name] = causal_mask(shape, window if spec.name == "window_self_mask" else 0)
                else:
                    self.arrays[spec.name] = np.zeros(shape, np.dtype(spec.dtype))
        self._derives = not self.arrays.keys() <= {"tokens", "tokens_by_step", "start", "length"}
        if "tokens_by_step" in self.arrays:
            self._tokens = self.arrays["tokens_by_step"].T  # a view, [B, S]
        elif "tokens" in self.arrays:
            self._tokens = self.arrays["tokens"]
        else:
            raise UserError(f"{graph.file}: no input called tokens, so it is not a step graph. Export again")

    def fill(self, tokens: np.ndarray, start: Sequence[int], length: Sequence[int]) -> None:
        """Fill the arrays for a call.

        Args:
            tokens: int [B, n], n >= 1.
            start: position of each row's first token, [B].
            length: valid tokens of each row, [B], 0..n and at most the bucket.
        """
        if self.bucket == 1:  # every decode step: cheaper than numpy, whose code is no longer in the processor's caches
            for row, count in enumerate(length):
                self._tokens[row, 0] = tokens.item(row, 0) if count else 0
        else:
            given = min(tokens.shape[1], self.bucket)
            self._tokens[:, :given] = tokens[:, :given]
            self._tokens[:, given:] = 0
            valid = np.arange(self.bucket) < np.array(length)[:, None]
            self._tokens[~valid] = 0  # a valid id, whatever padding the caller used
        for array, values in ((self.arrays.get("start"), start), (self.arrays.get("length"), length)):
            if array is not None:
                for row, value in enumerate(values):
                    array[row] = value
        if self._derives:
            self._derive(np.array(start), np.array(length))

    def _derive(self, start: np.ndarray, length: np.ndarray) -> None:
        """Fill the further inputs of a graph of built-in operators."""
        if "positions" in self.arrays:
            np.minimum(
                start[:, None] + np.arange(self.bucket),
                self.context - 1,
                out=self.arrays["positions"],
                casting="same_kind",
            )
        if "last" in self.arrays:
            rows = np.arange(len(start)) * self.bucket
            self.arrays["last"][:] = (rows + np.maximum(length - 1, 0)).reshape(self.arrays["last"].shape)
        if "cache_mask" in self.arrays:
            self.arrays["cache_mask"][:, 0, 0, :] = np.where(self._cached(start), np.float32(0), MASKED)
        if "window_cache_mask" in self.arrays:
            first = start[:, None] + np.arange(self.bucket) - self.window + 1  # [B, S]: the earliest visible position
            near = self._cached(start)[:, None] & (np.arange(self.context) >= first[..., None])  # [B, S, C]
            mask = self.arrays["window_cache_mask"].reshape(len(start), -1, self.bucket, self.context)
            mask[:] = np.where(near, np.float32(0), MASKED)[:, None]

    def _cached(self, start: np.ndarray) -> np.ndarray:
        """Return which positions the cache holds before this call, boolean [B, C]."""
        return np.arange(self.context) < start[:, None]
