"""Whose turn it is to use an engine, and how a generation that has the turn is told to stop."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UserError

PATIENCE = 300.0  # seconds


class Cancelled(Exception):  # noqa: N818 - no error: it was asked for
    """Raised between two passes of an engine: whoever asked for them was told to stop."""


class Cancellation:
    """Tells a generation to stop: one that runs does so before its next pass, one that waits its turn at once. `set`
    may be called from any thread, or a signal handler; at any time."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: threading.Lock | None = None  # released to wake the one that waits

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        waiting = self._waiting
        if waiting is not None:
            _wake(waiting)

    @contextmanager
    def waking(self, waiting: threading.Lock) -> Iterator[None]:
        """`set` releases `waiting` meanwhile, also where it has been called before."""
        self._waiting = waiting
        try:
            if self._set:
                _wake(waiting)
            yield
        finally:
            self._waiting = None


class Turn:
    """The right to call Engine.forward. The KV cache is the engine's state, so one at a time has it: a generation from
    its first token to its last, or a server for as long as requests of its are running. Others wait in a queue."""

    def __init__(self) -> None:
        self._queue: deque[threading.Lock] = deque()  # the first has the turn; each other's is locked while it waits
        self._changing = threading.RLock()  # a stream may be dropped, and so end, wherever memory is taken
        self._thread: int | None = None  # whose generation is running
        self._cancelled: Cancellation | None = None

    @property
    def waiting(self) -> int:
        """How many wait for it."""
        return max(0, len(self._queue) - 1)

    @contextmanager
    def take(self, cancelled: Cancellation | None = None) -> Iterator[None]:
        """Wait for the turn and hold it. cancelled: what `cancel` sets meanwhile.

        Raises Cancelled where `cancelled` is set before the turn comes. Raises UserError where this very thread has
        begun the stream that is running, since it might wait for itself: at once in the main thread. A pool's thread
        may have begun a stream that others go on with, as web frameworks do, so there only after PATIENCE.
        """
        me = threading.get_ident()
        patience = -1.0  # for ever
        if self._thread == me:
            patience = 0.0 if threading.current_thread() is threading.main_thread() else PATIENCE
        place = threading.Lock()
        place.acquire()
        try:
            self._wait(place, cancelled or Cancellation(), patience)
            self._thread, self._cancelled = me, cancelled
            yield
        finally:
            self._leave(place)

    def cancel(self) -> None:
        """Tell whoever has the turn to stop; nothing where nobody has it. From any thread, or a signal handler."""
        cancelled = self._cancelled
        if cancelled is not None:
            cancelled.set()

    def _wait(self, place: threading.Lock, cancelled: Cancellation, patience: float) -> None:
        with self._changing:
            self._queue.append(place)
            if self._queue[0] is place:
                return
        with cancelled.waking(place):
            place.acquire(timeout=patience)
        if self._queue[0] is not place:
            if cancelled.is_set():
                raise Cancelled
            raise UserError("another stream() of this thread is not finished. Finish it, or close() it")

    def _leave(self, place: threading.Lock) -> None:
        with self._changing:
            if place not in self._queue:
                return
            if self._queue[0] is place:
                self._thread = self._cancelled = None
            self._queue.remove(place)
            if self._queue:
                _wake(self._queue[0])


def _wake(waiting: threading.Lock) -> None:
    with contextlib.suppress(RuntimeError):  # it has been woken already
        waiting.release()
