"""Limits of connections: how many there are, and how long a client may take for headers, bodies and reading.

A client that is refused gets OpenAI's error object, if HTTP allows a response at that moment.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import ApiError
from .responses import to_json

HEADER_SECONDS = 10  # from the connection, or from the first byte of a later request, to the end of its headers
BODY_SECONDS = 30  # from the headers to the end of the body
IDLE_SECONDS = 10  # between two requests of a connection
MAX_HEADERS = 1 << 16  # bytes
READ_SECONDS = 60  # in which a client must read something of its response
LINGER_SECONDS = 1  # for a refused client to read why; a reset of the connection would discard the response
SPARE = 64  # connections above the limit that get a response; more are closed without one

log = logging.getLogger(__name__)


class LimitedProtocol(HttpToolsProtocol):
    """A connection with a time for each phase. A client that is too slow, or one too many, is refused."""

    def __init__(self, *arguments: Any, most: int, **options: Any) -> None:
        """Args:
        arguments, options: uvicorn's.
        most: connections that may be open.
        """
        super().__init__(*arguments, **options)
        self.most = most
        self._receiving: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._unparsed = 0  # bytes received while headers are incomplete
        self._head = 0  # bytes of the URL and the headers of the current request
        self._in_headers = True  # no body is awaited
        self._begun = False  # a request has begun and is not complete
        self._refused = False  # what the client still sends is ignored

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for headers, or refuse the connection."""
        super().connection_made(transport)
        if len(self.connections) > self.most + SPARE:
            transport.abort()
        elif sum(not getattr(one, "_refused", False) for one in self.connections) > self.most:
            log.warning("%d connections are open, which is the limit (--connections). New ones are refused", self.most)
            message = f"the server has {self.most} open connections, its limit. Try again later"
            self._refuse(503, message, {"retry-after": "1"})
        else:
            self._receive_within(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._receive_within(None)
        self._stop_reading_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data. Refuses headers that are too long."""
        if self._refused:
            return
        super().data_received(data)
        if self.cycle is not None and self.parser is not None and self.parser.should_upgrade():
            self.cycle.keep_alive = False  # the parser reads nothing after such a request
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if self._refused or self.transport.is_closing() or not self._in_headers or is_answering:
            self._unparsed = 0
            return
        self._unparsed += len(data)
        if self._unparsed > MAX_HEADERS:
            self._refuse_head()
        elif self._receiving is None and self.timeout_keep_alive_task is None:  # empty lines before a request
            self._receive_within(HEADER_SECONDS)

    def eof_received(self) -> None:
        """The client sends no more: refuse a request that is not complete."""
        if self._begun or self._unparsed:
            self._refuse(400, "the connection ended before the request. Send all of it")

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that cannot be parsed. uvicorn calls this."""
        if self._head > MAX_HEADERS:
            self._refuse_head()
        else:
            self._refuse(
                400,
                "this is not a valid HTTP/1.1 request. Send one, with a correct request line, headers and body length",
            )

    def on_url(self, url: bytes) -> None:
        """Add a part of the URL."""
        self._add_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header."""
        self._add_head(len(name) + len(value))
        super().on_header(name, value)

    def on_message_begin(self) -> None:
        """Wait for headers."""
        super().on_message_begin()
        self._begun = True
        self._head = 0
        self._in_headers = True
        self._receive_within(HEADER_SECONDS)

    def on_headers_complete(self) -> None:
        """Wait for the body."""
        super().on_headers_complete()  # may fail: then no body is awaited
        self._in_headers = False
        self._receive_within(BODY_SECONDS)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._in_headers = True
        self._begun = False
        self._receive_within(None)
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection without a request. uvicorn calls this."""
        self._refuse(408, f"no request arrived within {IDLE_SECONDS} seconds. Open a new connection to send one")

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._stop_reading_timer()
        self._reading = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        self._stop_reading_timer()

    def _add_head(self, size: int) -> None:
        self._head += size
        if self._head > MAX_HEADERS:
            raise ValueError("the headers are too long")  # ends the parser, which calls send_400_response

    def _refuse_head(self) -> None:
        self._refuse(431, f"the URL and headers have more than {MAX_HEADERS:,} bytes. Send less")

    def _receive_within(self, seconds: float | None) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
        self._receiving = None if seconds is None else self.loop.call_later(seconds, self._too_slow, seconds)

    def _too_slow(self, seconds: float) -> None:
        part = "headers" if self._in_headers else "body"
        self._refuse(408, f"the {part} of the request did not arrive within {seconds:g} seconds. Send it faster")

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """Send an error if no other response is due, then close the connection."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._receive_within(None)
        self._unset_keepalive_if_required()
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if self._in_headers and is_answering:  # requests before this one are complete, and get their responses
            cycle.keep_alive = False
            return
        if not self._in_headers:
            if cycle.response_started or self.pipeline:
                self._end()
                return
            cycle.disconnected = True  # its endpoint waits for the body
            cycle.message_event.set()
        body = to_json(ApiError(status, message).body)
        fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in {**fields, **(headers or {})}.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self._end()

    def _end(self) -> None:
        """Close this side of the connection now, and the other one when the client has closed it or time is up."""
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)
