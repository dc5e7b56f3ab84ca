"""Runs a service with uvicorn until SIGINT or SIGTERM ends it."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import signal
import socket
import sys
import threading
import time
from functools import partial
from typing import Any

import uvicorn

from . import connection
from .app import Service

UNREAD_SECONDS = 5  # how long a shutdown waits for a client that does not read the end of its answer
BACKLOG = 2048  # connections that the kernel holds until they are accepted
QUIET_SECONDS = 60  # between two equal lines in the log
NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger(__name__)


def server_config(service: Service, grace: float, connections: int) -> uvicorn.Config:
    """The settings of uvicorn for a service.

    Args:
        service: the application.
        grace: seconds that open responses may take to end at a shutdown.
        connections: limit of open connections.
    """
    return uvicorn.Config(
        service.app,
        loop="asyncio",
        http=partial(connection.LimitedProtocol, most=connections),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=connection.IDLE_SECONDS,
        timeout_graceful_shutdown=int(grace) + UNREAD_SECONDS,
        # asyncio accepts that many connections at once. When there are no descriptors it reports an error for each of
        # them, and starts a timer for each. `startup` sets the kernel's backlog afterwards.
        backlog=1,
    )


class QuietFilter(logging.Filter):
    """Lets a message through once in QUIET_SECONDS, so that clients cannot fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this record is written."""
        now = time.monotonic()
        if now < self._next.get(str(record.msg), 0.0):
            return False
        self._next = {message: at for message, at in self._next.items() if at > now}
        self._next[str(record.msg)] = now + QUIET_SECONDS
        return True


class EndpointServer(uvicorn.Server):
    """A uvicorn server that writes one line when no connection can be accepted, and tries again each second."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_loop_error)
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(BACKLOG)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in NO_RESOURCES:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        log.error(
            "no new connection can be accepted (%s; this process may have %d open files). It is tried again each "
            "second. Raise the limit (ulimit -n) if there are that many clients",
            error.strerror,
            limit,
        )
    else:
        loop.default_exception_handler(context)


class SignalledServer(EndpointServer):
    """A uvicorn server that ends the scheduler `grace` seconds after the first signal, and at once on the second.

    uvicorn itself only waits for the open responses. Their sequences end with the scheduler.
    """

    def __init__(self, service: Service, grace: float, connections: int, started_message: str) -> None:
        super().__init__(server_config(service, grace, connections))
        self.service = service
        self.grace = grace
        self.started_message = started_message

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin the shutdown. uvicorn calls this for each signal."""
        grace = 0.0 if self.should_exit else self.grace
        self.should_exit = True
        threading.Thread(target=self.service.scheduler.close, args=(grace,), daemon=True).start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept requests, and print the message."""
        await super().startup(sockets)
        if self.started:
            print(self.started_message, file=sys.stderr)


def run_until_signal(
    service: Service, listening: socket.socket, grace: float, connections: int, started_message: str
) -> None:
    """Serve until a signal ends it.

    Args:
        service: the application
        listening: an open socket
        grace: seconds that running answers may take to end after the first signal
        connections: limit of open connections
        started_message: printed to standard error when the server accepts requests
    """
    quiet = QuietFilter()
    for name in ("uvicorn.error", "asyncio", connection.__name__, __name__):
        logging.getLogger(name).addFilter(quiet)
    # uvicorn raises the signals again at its end. These handlers ignore them.
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        SignalledServer(service, grace, connections, started_message).run(sockets=[listening])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
