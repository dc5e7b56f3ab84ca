"""Closes connections of clients that are too slow: headers, bodies, reading the response, and no request at all."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 10  # from the connection, or from the first byte of a later request, to the end of its headers
BODY_SECONDS = 30  # from the headers to the end of the body
IDLE_SECONDS = 10  # between two requests of a connection
MAX_HEADERS = 1 << 16  # bytes
READ_SECONDS = 60  # in which a client must read something of its response


class TimedProtocol(HttpToolsProtocol):
    """A connection with a time for each phase. A connection whose time has passed is closed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._receiving: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._header_bytes = 0  # received while headers are incomplete
        self._in_headers = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for headers."""
        super().connection_made(transport)
        self._receive_within(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._receive_within(None)
        self._stop_reading_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data. Refuses headers that are too long."""
        super().data_received(data)
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if self.transport.is_closing() or not self._in_headers or is_answering:
            self._header_bytes = 0
            return
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADERS:
            self.send_400_response(f"The headers have more than {MAX_HEADERS} bytes.")
        elif self._receiving is None and self.timeout_keep_alive_task is None:  # empty lines before a request
            self._receive_within(HEADER_SECONDS)

    def on_message_begin(self) -> None:
        """Wait for headers."""
        super().on_message_begin()
        self._in_headers = True
        self._receive_within(HEADER_SECONDS)

    def on_headers_complete(self) -> None:
        """Wait for the body."""
        self._in_headers = False
        self._receive_within(BODY_SECONDS)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._in_headers = True
        self._receive_within(None)
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._stop_reading_timer()
        self._reading = self.loop.call_later(READ_SECONDS, self._abort)

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        self._stop_reading_timer()

    def _receive_within(self, seconds: float | None) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
        self._receiving = None if seconds is None else self.loop.call_later(seconds, self._abort)

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()  # without waiting for the client to read what is left
