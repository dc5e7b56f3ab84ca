"""The chips that the Ascend targets are for, by the names that CANN and npu-smi give them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """soc: what CANN's socVersion ("Ascend" + the name that npu-smi prints) begins with; a digit follows. example: one
    of them. shares_memory: the NPU has no memory of its own; what is free is the board's."""

    target: str
    soc: str
    example: str
    boards: str
    shares_memory: bool


# "910B" without a digit is the first generation (Ascend 910), which no target is for.
CHIPS = (
    Chip("ascend310p", "Ascend310P", "Ascend310P3", "Atlas 300I Duo, 300I Pro, 300V", shares_memory=False),
    Chip(
        "ascend310b", "Ascend310B", "Ascend310B4", "OrangePi AIpro, Atlas 200I A2, Atlas 200I DK A2", shares_memory=True
    ),
    Chip("ascend910b", "Ascend910B", "Ascend910B3", "Atlas 800I A2, 300T A2", shares_memory=False),
)


def chip_of_target(target: str) -> Chip | None:
    """The chip that TARGET=... of `make export` names."""
    return next((chip for chip in CHIPS if chip.target == target), None)


def chip_of_soc(soc: str) -> Chip | None:
    """The chip of a socVersion such as Ascend310B4; None for one that no target is for."""
    return next((chip for chip in CHIPS if re.fullmatch(chip.soc + r"\d\w*", soc)), None)
