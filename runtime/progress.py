"""One line on standard error for work that takes more than a moment: a running clock on a terminal, else plain text.

The runtime's dependencies are kept to four packages, so this stands in for a progress library.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

FRAMES = "|/-\\"
PERIOD = 0.2  # seconds
DELAY = 0.5  # before the line first shows: what is quicker needs none


@contextmanager
def progress(what: str, *, plain: bool = True) -> Iterator[None]:
    """Show `what` and the seconds it has taken until the block ends. `plain`: where standard error is no terminal, say
    it once."""
    if not sys.stderr.isatty():
        if plain:
            print(f"{what} ...", file=sys.stderr, flush=True)
        yield
        return
    began = time.monotonic()
    done = threading.Event()

    def show() -> None:
        if done.wait(DELAY):
            return
        for turn in range(1 << 30):
            frame = FRAMES[turn % len(FRAMES)]
            print(f"\r{frame} {what} {time.monotonic() - began:.0f} s ", end="", file=sys.stderr, flush=True)
            if done.wait(PERIOD):
                return

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print("\r\033[K", end="", file=sys.stderr, flush=True)  # clear the line
