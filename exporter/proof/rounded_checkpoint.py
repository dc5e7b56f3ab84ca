"""Read the rounded weights of a cpu artifact back, through the definition of the format and not through its kernels.

Rounding may change a model; graphs and kernels must not. So verification compares the artifact closely with a reference
over the rounded weights, and each rounded matrix with the checkpoint's, within the error of its format.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellama.artifact.manifest import Manifest
from edgellama.artifact.private_copy import mapped
from edgellama.artifact.safetensors import TensorFile
from edgellama.errors import UserError
from edgellama.kernels.weight_format import PANEL, W4_GROUPS, panel_count, unpack

from ..checkpoint.base import Checkpoint, DerivedCheckpoint, RawBlocks
from ..checkpoint.folded import folded
from ..opsets.cpu_weights import TABLES, format_of, merged_place

# The largest allowed relative error of a block of rows: root mean square of the error / that of the weights. For a
# group of 32 with a single dominant value, int8 loses 0.013 and int4 0.22; for normally distributed numbers 0.005 and
# 0.075.
ROUNDING = {"f32": 0.0, "bf16": 0.004, "int8": 0.02, "int4": 0.25, "q4_0": 0.0, **dict.fromkeys(W4_GROUPS, 0.0)}
# The same for weights that were rounded for a text, where a weight makes up for the errors of others.
CALIBRATED = 0.5


def check_rounding(
    name: str, first: int, rows: NDArray[np.float32], exact: NDArray[np.float32], fmt: str, limit: float
) -> None:
    """Raise UserError if rows of a matrix, from `first` on, differ from the checkpoint's by more than `limit`."""
    lost = float(np.linalg.norm(rows - exact)) / (float(np.linalg.norm(exact)) or 1.0)
    if not lost <= limit:
        raise UserError(
            f"{name} (rows {first}..{first + len(exact) - 1}) differs in the artifact by {lost:.1e} of the "
            f"checkpoint's values; {fmt} explains {limit}. This is a defect of the exporter: please report the model"
        )


class RoundedCheckpoint(DerivedCheckpoint):
    """`checkpoint` with its matrices replaced by those of the artifact in `folder`.

    Reading raises UserError if a matrix differs from the checkpoint's by more than its format explains.
    """

    def __init__(self, folder: Path, manifest: Manifest, checkpoint: Checkpoint) -> None:
        if manifest.weights is None:
            raise UserError(f"{folder} has no weights file; its weights are those of the checkpoint")
        checkpoint = folded(checkpoint)
        self.path, self.config, self.is_folded = folder, checkpoint.config, checkpoint.is_folded
        self._checkpoint, self._weights_format = checkpoint, manifest.weights_format
        self._calibrated = manifest.source.calibration is not None
        path = folder / manifest.weights.file
        self._stored = TensorFile(path, data=mapped(path))

    def dtype(self, name: str) -> str:
        return format_of(name, self._weights_format)

    def rows(self, name: str, first: int, count: int) -> NDArray[np.float32]:
        exact = self._checkpoint.rows(name, first, count)
        if exact.ndim == 1:
            return exact
        place, fmt = merged_place(name, self._checkpoint), self.dtype(name)
        begin = place.first_row + first
        low, high = begin // PANEL, panel_count(begin + len(exact))
        panels = self._stored.array(place.name)[place.first_panel :: place.panel_step][low:high]
        rows = unpack(panels.reshape(-1), fmt, len(panels) * PANEL, exact.shape[1])
        rows = rows[begin - low * PANEL :][: len(exact)]
        limit = CALIBRATED if self._calibrated and name not in TABLES else ROUNDING[fmt]
        check_rounding(name, first, rows, exact, fmt, limit)
        return rows

    def raw(self, name: str, first: int = 0, count: int | None = None) -> RawBlocks | None:
        return None
