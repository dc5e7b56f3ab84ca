"""The messages of exceptions that a test expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def refusal(call: Callable[[], Any], kind: type[Exception] = ValueError) -> str:
    """Returns the message of the exception that `call` raises; empty if it raises none."""
    try:
        call()
    except kind as error:
        return str(error)
    return ""
