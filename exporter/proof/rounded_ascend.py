"""Read the packed weights of an artifact of an Ascend target back, as rounded_checkpoint.py does for the cpu target."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellama.artifact.manifest import Artifact
from edgellama.kernels.ascend_format import unpack
from edgellama.kernels.weight_format import PANEL

from ..checkpoint.base import Checkpoint, DerivedCheckpoint, RawBlocks
from ..checkpoint.folded import folded
from ..mindir.graph import read
from ..opsets.ascend_weights import QUANTIZED, packed_rows
from .rounded_checkpoint import ROUNDING, check_rounding


class RoundedAscend(DerivedCheckpoint):
    """`checkpoint` with the packed matrices of an artifact. Its other weights are those of the checkpoint.

    CANN keeps the matrices of a converted graph in its own form, so they are made again from the checkpoint.

    Reading raises UserError if a matrix differs from the checkpoint's by more than its format explains.
    """

    def __init__(self, artifact: Artifact, checkpoint: Checkpoint) -> None:
        checkpoint = folded(checkpoint)
        self.path, self.config, self.is_folded = artifact.path, checkpoint.config, checkpoint.is_folded
        self._checkpoint, self._weights_format = checkpoint, artifact.manifest.weights_format
        graph = artifact.file(artifact.manifest.graphs[0].file)
        self._converted = artifact.manifest.converted is not None
        self._stored = {
            p.name: np.memmap(graph.parent / p.location, np.uint8, mode="r", offset=p.offset, shape=p.shape)
            for p in (() if self._converted else read(graph).parameters)
            if p.dtype == "uint8"
        }

    def dtype(self, name: str) -> str:
        return self._weights_format if name.endswith("_proj.weight") else self._checkpoint.dtype(name)

    def rows(self, name: str, first: int, count: int) -> NDArray[np.float32]:
        exact = self._checkpoint.rows(name, first, count)
        if not name.endswith("_proj.weight"):
            return exact
        packed, before = ("", 0) if self._converted else self._place(name)
        begin = before + first
        low, high = begin // PANEL, -(-(begin + len(exact)) // PANEL)
        if self._converted:
            panels = packed_rows(self._checkpoint, name, self._weights_format, low * PANEL, (high - low) * PANEL)
        else:
            panels = self._stored[packed][low:high]
        rows = unpack(panels, *QUANTIZED[self._weights_format], exact.shape[1])
        rows = rows[begin - low * PANEL :][: len(exact)]
        fmt = self._weights_format
        check_rounding(name, first, rows, exact, fmt, ROUNDING[fmt])
        return rows

    def raw(self, name: str, first: int = 0, count: int | None = None) -> RawBlocks | None:
        return None

    def _place(self, name: str) -> tuple[str, int]:
        """Return the graph's weight that holds the checkpoint's weight `name`, and the rows before it there."""
        layer, _, part = name.rpartition("self_attn.")
        if part not in ("q_proj.weight", "k_proj.weight", "v_proj.weight"):
            return name, 0
        before = [f"{layer}self_attn.{x}_proj.weight" for x in "qkv"[: "qkv".index(part[0])]]
        return f"{layer}self_attn.qkv_proj.weight", sum(self._checkpoint.shape(other)[0] for other in before)
