"""Runs a service with uvicorn until SIGINT or SIGTERM ends it."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from typing import Any

import uvicorn

from .app import Service

UNREAD_SECONDS = 5  # how long a shutdown waits for a client that does not read the end of its answer


class SignalledServer(uvicorn.Server):
    """A uvicorn server that ends the scheduler `grace` seconds after the first signal, and at once on the second.

    uvicorn itself only waits for the open responses. Their sequences end with the scheduler.
    """

    def __init__(self, service: Service, grace: float, started_message: str) -> None:
        super().__init__(
            uvicorn.Config(
                service.app,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(grace) + UNREAD_SECONDS,
            )
        )
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


def run_until_signal(service: Service, listening: socket.socket, grace: float, started_message: str) -> None:
    """Serve until a signal ends it.

    Args:
        service: the application
        listening: an open socket
        grace: seconds that running answers may take to end after the first signal
        started_message: printed to standard error when the server accepts requests
    """
    # uvicorn raises the signals again at its end. These handlers ignore them.
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        SignalledServer(service, grace, started_message).run(sockets=[listening])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
