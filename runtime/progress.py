"""A progress line on standard error for longer work: a running clock on a terminal, plain text elsewhere.

It is written here, without a progress library, to keep the runtime's dependencies few.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FRAMES = "|/-\\"
PERIOD = 0.2  # seconds
DELAY = 0.5  # seconds before the line first shows, so that quick work shows none


@contextmanager
def progress(what: str | Callable[[], str], *, plain: bool = True, delay: float = 0.0) -> Iterator[None]:
    """Show `what` and the elapsed seconds until the block ends.

    Args:
        what: the work, or a function that says how far it is.
        plain: if standard error is no terminal, print `what` once.
        delay: seconds before that; nothing is printed if the block ends earlier.
    """
    text = what if callable(what) else lambda: what
    if not sys.stderr.isatty():
        timer = threading.Timer(delay, lambda: print(f"{text()} ...", file=sys.stderr, flush=True))
        timer.daemon = True
        if plain and delay:
            timer.start()
        elif plain:
            timer.function()
        try:
            yield
        finally:
            timer.cancel()
        return
    began = time.monotonic()
    done = threading.Event()

    def show() -> None:
        if done.wait(max(DELAY, delay)):
            return
        for turn in range(1 << 30):
            frame = FRAMES[turn % len(FRAMES)]
            print(f"\r{frame} {text()} {time.monotonic() - began:.0f} s ", end="", file=sys.stderr, flush=True)
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
