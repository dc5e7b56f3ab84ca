"""The option that names an NPU, for every command that loads an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_device(command: argparse.ArgumentParser) -> None:
    """Declare --device-id."""
    command.add_argument("--device-id", type=int, metavar="N", help="NPU, for artifacts of Ascend targets; default: 0")
