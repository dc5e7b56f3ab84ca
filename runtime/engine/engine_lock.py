"""The lock of an engine, with a queue, and the means to cancel the generation that holds it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from ..backend.after_fork import refuse, tell_when_forked
from ..errors import UserError

PATIENCE = 300.0  # seconds


class Cancelled(Exception):  # noqa: N818 - no error: the caller wanted it
    """Raised between two passes of an engine when their caller was told to stop."""


class Cancellation:
    """Tells a generation to stop: a running one before its next pass, a waiting one at once."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: threading.Lock | None = None  # released to wake the thread that waits

    def is_set(self) -> bool:
        """Whether `set` has been called."""
        return self._set

    def set(self) -> None:
        """Cancel; from any thread, or a signal handler, at any time."""
        self._set = True
        waiting = self._waiting
        if waiting is not None:
            _wake(waiting)

    @contextmanager
    def waking(self, waiting: threading.Lock) -> Iterator[None]:
        """During the block `set` releases `waiting`; an earlier call of `set` releases it at once."""
        self._waiting = waiting
        try:
            if self._set:
                _wake(waiting)
            yield
        finally:
            self._waiting = None


class EngineLock:
    """The right to call Engine.forward, for one holder at a time, since the KV cache is the engine's state.

    A generation holds it from its first token to its last, a server as long as requests are running. Others wait in a
    queue, first come, first served.

    Attributes:
        closed: the engine is closed, so nobody gets the lock any more. Its holder sets it.
    """

    def __init__(self) -> None:
        # The first entry holds the lock; the entry of each other thread is locked while it waits.
        self._queue: deque[threading.Lock] = deque()
        # Reentrant: a stream may be dropped, and so release the lock, wherever Python allocates memory.
        self._changing = threading.RLock()
        self._thread: int | None = None  # the holder's thread
        self._cancelled: Cancellation | None = None
        self._loaded_in = os.getpid()
        self._forked = False
        self.closed = False
        tell_when_forked(self)

    def forked(self) -> None:
        """Refuse all takers in a forked child. A thread that held a lock does not exist there."""
        self._changing = threading.RLock()
        self._forked = True

    def check_process(self) -> None:
        """Raise UserError in a forked child of the process that loaded the model: the model cannot run there."""
        if self._forked:
            refuse(self._loaded_in)

    @property
    def waiting(self) -> int:
        """How many wait for the lock."""
        return max(0, len(self._queue) - 1)

    @contextmanager
    def take(self, cancelled: Cancellation | None = None) -> Iterator[None]:
        """Wait for the lock and hold it during the block.

        Args:
            cancelled: `cancel` sets it while the lock is held.

        Raises:
            Cancelled: `cancelled` was set before the lock was free.
            UserError: this thread has begun the stream that holds the lock, so it might wait for itself. In the main
                thread the error comes at once. Another thread may have begun a stream that others finish, as web
                frameworks do, so there the error comes only after PATIENCE. Or this process is a forked child of the
                one that loaded the model. Or the model is closed.
        """
        self.check_process()
        self._check_open()
        me = threading.get_ident()
        patience = -1.0  # for ever
        if self._thread == me:
            patience = 0.0 if threading.current_thread() is threading.main_thread() else PATIENCE
        place = threading.Lock()
        place.acquire()
        try:
            self._wait(place, cancelled or Cancellation(), patience)
            self._check_open()
            self._thread, self._cancelled = me, cancelled
            yield
        finally:
            self._leave(place)

    def cancel(self) -> None:
        """Tell the holder to stop, if there is one; from any thread, or a signal handler."""
        cancelled = self._cancelled
        if cancelled is not None:
            cancelled.set()

    def _check_open(self) -> None:
        if self.closed:
            raise UserError("the model is closed. Load it again with from_pretrained()")

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
