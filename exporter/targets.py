"""What TARGET names: the op set a graph is written in, and the chip it is written for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """opset: a module of exporter.opsets; chip: a key of exporter.chips.CHIPS, for the ascend op set."""

    opset: str
    chip: str | None = None


TARGETS = {  # the first is the default
    "cpu": Target("cpu"),
    "portable": Target("portable"),
    "ascend310p": Target("ascend", "ascend310p"),
    "ascend310b": Target("ascend", "ascend310b"),
    "ascend910b": Target("ascend", "ascend910b"),
}
