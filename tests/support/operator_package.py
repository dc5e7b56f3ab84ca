"""Reads the definitions of the Ascend operators from the sources of the operator package."""

from __future__ import annotations

import re

from support.child import REPOSITORY

PACKAGE = REPOSITORY / "kernels" / "ascend"


def snake(name: str) -> str:
    """Returns FusedAttention as fused_attention."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def declared(operator: str, kind: str) -> list[str]:
    """Returns the names of an operator's Inputs, Outputs or Attrs, in the order of its definition."""
    return re.findall(rf'\b{kind}\("(\w+)"\)', (PACKAGE / f"op_host/{snake(operator)}.cpp").read_text())
