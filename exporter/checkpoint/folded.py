"""Folds what differs from Llama into the weights, where that is exact, so that graphs and kernels need fewer variants.

- Multipliers (m_e of embeddings, m_r of residuals, m_l of logits): the graph's residual stream is the network's divided
  by m_e. Its norms have eps / m_e^2 (LlamaConfig.stream_norm_eps). What a layer adds is multiplied by m_r / m_e: in
  the weights and the bias of o_proj and down_proj, or in the norm that follows them. m_l is in the weights of the last
  norm.
- Norms that add an offset to their weights: the sum is the weight.
- Heads of which a part is rotated: the kernels pair element i with i + D/2. The rows of q and k, and the weights of
  their norms, are arranged so that the pairs of the rotated part come first in both halves. Scores do not change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellama.kernels import weight_format

from ..network.config import LlamaConfig
from ..network.family import POST_ATTENTION, POST_MLP
from .base import Checkpoint, DerivedCheckpoint, RawBlocks
from .quantized.grid import FourBits, Grid

LAST_NORM = "model.norm.weight"
_ADDED = (("self_attn.o_proj", POST_ATTENTION), ("mlp.down_proj", POST_MLP))


def folded(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the weights that the graphs take; the same one if nothing differs from Llama."""
    config = checkpoint.config
    plain = config.family.norm_offset == 0 and config.rotary_dim == config.head_dim
    multipliers = (config.embedding_multiplier, config.residual_multiplier, config.logits_multiplier)
    if checkpoint.is_folded or (plain and multipliers == (1.0, 1.0, 1.0)):
        return checkpoint
    return FoldedCheckpoint(checkpoint)


class FoldedCheckpoint(DerivedCheckpoint):
    """`checkpoint` with folded weights."""

    is_folded = True

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path, self.config = checkpoint.path, checkpoint.config
        self._checkpoint = checkpoint
        self._order = head_order(self.config)

    def dtype(self, name: str) -> str:
        return self._checkpoint.dtype(name)

    def rows(self, name: str, first: int, count: int) -> NDArray[np.float32]:
        values = self._arranged(name, first, count)
        if name.endswith("norm.weight"):
            values = values + np.float32(self.config.family.norm_offset)
        if (multiplier := weight_multiplier(self.config, name)) != 1:
            values = values * np.float32(multiplier)
        return values

    def raw(self, name: str, first: int = 0, count: int | None = None) -> RawBlocks | None:
        if weight_multiplier(self.config, name) != 1 or self._is_arranged(name):
            return None
        return self._checkpoint.raw(name, first, count)

    def four_bits(self, name: str) -> FourBits | None:
        return None if weight_multiplier(self.config, name) != 1 else self._checkpoint.four_bits(name)

    def grid(self, name: str, first: int, count: int) -> Grid:
        order = self._whole_heads(name, first, count)
        if order is None:
            return self._checkpoint.grid(name, first, count)
        begin, rows = order
        heads = self._checkpoint.grid(name, begin, len(rows))
        kept = rows[first - begin :][:count]
        return Grid(heads.q[kept], heads.scales[kept], heads.zeros[kept], heads.order)

    def _is_arranged(self, name: str) -> bool:
        norm = self.config.family.qk_norm
        names = ["q_proj", "k_proj", *((norm.q, norm.k) if norm is not None else ())]
        return self._order is not None and name.split(".")[-2] in names

    def _arranged(self, name: str, first: int, count: int) -> NDArray[np.float32]:
        """Return rows of the weight, in the order that the kernels expect."""
        order = self._whole_heads(name, first, count)
        if order is None:
            return self._checkpoint.rows(name, first, count)
        begin, rows = order
        return self._checkpoint.rows(name, begin, len(rows))[rows[first - begin :][:count]]

    def _whole_heads(self, name: str, first: int, count: int) -> tuple[int, NDArray[np.int64]] | None:
        """Return the first row of the heads that contain these rows, and the order of the heads' rows, from it on.

        None: the rows of the weight stay in their order.
        """
        if self._order is None or not self._is_arranged(name):
            return None
        dim, total = self.config.head_dim, self.shape(name)[0]
        begin, end = first // dim * dim, min(-(-(first + count) // dim) * dim, total)
        return begin, (np.arange(0, end - begin, dim)[:, None] + self._order).reshape(-1)


def weight_multiplier(config: LlamaConfig, name: str) -> float:
    """Return what a weight or bias is multiplied by."""
    if name == LAST_NORM:
        return config.logits_multiplier
    norms = config.family.norms
    for linear, norm in _ADDED:
        last = norms.get(norm, linear)  # the last operation before the residual stream
        if name.startswith("model.layers.") and name.rpartition(".")[0].endswith(last):
            return config.residual_multiplier / config.embedding_multiplier
    return 1.0


def head_order(config: LlamaConfig) -> NDArray[np.int64] | None:
    """Return the checkpoint's element for each element of a head; None if all elements are rotated."""
    return weight_format.head_order(config.head_dim, config.rotary_dim)
