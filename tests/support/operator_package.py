"""The definitions of the Ascend operator package, read from its sources."""

from __future__ import annotations

import re

from support.child import REPOSITORY

PACKAGE = REPOSITORY / "kernels" / "ascend"


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def declared(operator: str, kind: str) -> list[str]:
    """Names of the Inputs, Outputs or Attrs of an operator's definition, in order."""
    return re.findall(rf'\b{kind}\("(\w+)"\)', (PACKAGE / f"op_host/{snake(operator)}.cpp").read_text())
