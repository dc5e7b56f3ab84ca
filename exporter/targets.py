"""What TARGET names: the op set that a graph is written in, and the chip that it is written for."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.ascend.chips import CHIPS


@dataclass(frozen=True)
class Target:
    """opset: a module of exporter.opsets; chip: a key of kernels.ascend.chips.CHIPS, for the ascend op set."""

    opset: str
    chip: str | None = None


TARGETS = {  # the first is the default
    "cpu": Target("cpu"),
    "portable": Target("portable"),
    **{target: Target("ascend", target) for target in CHIPS},
}
