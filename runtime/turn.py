"""Whose turn it is to use an engine, and how a generation that has the turn is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import UserError


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

        Raises UserError where this very thread has it already, since it would wait for itself.
        """
        me = threading.get_ident()
        if self._thread == me:
            raise UserError("another stream() of this thread is not finished. Finish it, or close() it")
        with self._lock:
            self._thread, self._cancelled = me, cancelled
            try:
                yield
            finally:
                self._thread = self._cancelled = None

    def cancel(self) -> None:
        """Tell whoever has the turn to stop; nothing where nobody has it. From any thread, or a signal handler."""
        cancelled = self._cancelled
        if cancelled is not None:
            cancelled.set()
