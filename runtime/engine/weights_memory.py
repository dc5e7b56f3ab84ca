"""Where the weights of a loaded artifact are: the choice, and its option for every command that loads an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

# A private copy, or the file itself, mapped. artifact/private_copy.py says what both mean.
WEIGHTS_MEMORY = COPY, MAP = "copy", "map"


def add_weights_memory(command: argparse.ArgumentParser) -> None:
    """Declare --weights-memory."""
    command.add_argument(
        "--weights-memory",
        choices=WEIGHTS_MEMORY,
        default=COPY,
        help="copy: read the weights into memory of this process, on huge pages; map: share the pages of the file, for "
        "models that nearly fill the memory or run in several processes; the file must not change meanwhile. "
        "Default: %(default)s",
    )
