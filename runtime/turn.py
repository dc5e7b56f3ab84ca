"""Whose turn it is to use an engine, and how a generation that has the turn is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import UserError

PATIENCE = 300.0  # seconds


class Cancelled(Exception):  # noqa: N818 - no error: it was asked for
    """Raised between two passes of an engine: whoever asked for them was told to stop."""


class Turn:
    """The right to call Engine.forward. The KV cache is the engine's state, so one at a time has it: a generation from
    its first token to its last, or a server for as long as requests of its are running. Others wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None  # whose generation is running
        self._cancelled: threading.Event | None = None

    @contextmanager
    def take(self, cancelled: threading.Event | None = None) -> Iterator[None]:
        """Wait for the turn and hold it. cancelled: what `cancel` sets meanwhile.

        Raises UserError where this very thread has begun the stream that is running, since it might wait for itself:
        at once in the main thread. A pool's thread may have begun a stream that others go on with, as web frameworks
        do, so there only after PATIENCE.
        """
        me = threading.get_ident()
        patience = -1.0  # for ever
        if self._thread == me:
            patience = 0.0 if threading.current_thread() is threading.main_thread() else PATIENCE
        if not self._lock.acquire(timeout=patience):
            raise UserError("another stream() of this thread is not finished. Finish it, or close() it")
        try:
            self._thread, self._cancelled = me, cancelled
            yield
        finally:
            self._thread = self._cancelled = None
            self._lock.release()

    def cancel(self) -> None:
        """Tell whoever has the turn to stop; nothing where nobody has it. From any thread, or a signal handler."""
        cancelled = self._cancelled
        if cancelled is not None:
            cancelled.set()
