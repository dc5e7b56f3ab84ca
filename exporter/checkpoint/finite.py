"""Refuses weights that are NaN or infinite, by the tensor's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellama.errors import UserError


def check_finite(where: Path, name: str, first: int, values: NDArray[Any]) -> None:
    """Raise UserError, which names the weight, if some of its values or of its blocks' scales are NaN or infinite.

    Args:
        where: the checkpoint, for the message.
        name: the weight.
        first: the number of the first row in `values`.
        values: float [rows, ...].
    """
    finite = np.isfinite(values)
    if finite.all():
        return
    rows = first + np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))
    raise UserError(
        f"{where}: the weight {name} is damaged: it has NaN or infinite values (the first of them in row {rows[0]:,}). "
        "Download the checkpoint again. If its publisher has the same file, use another checkpoint"
    )
