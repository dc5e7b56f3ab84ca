"""What TARGET names: the op set that a graph is written in, and the chip that it is written for."""

from __future__ import annotations

from dataclasses import dataclass

from edgellama.kernels.ascend.chips import CHIPS

from .opsets.specs import ASCEND, CPU, PORTABLE, OpSetSpec


@dataclass(frozen=True)
class Target:
    """A target.

    Attributes:
        opset: the op set of its graphs.
        chip: the chip that they are written for, a key of kernels.ascend.chips.CHIPS; None for a host CPU.
    """

    opset: OpSetSpec
    chip: str | None = None


TARGETS = {  # the first is the default
    "cpu": Target(CPU),
    "portable": Target(PORTABLE),
    **{target: Target(ASCEND, target) for target in CHIPS},
}
