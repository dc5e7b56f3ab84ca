"""Events on their way from the engine's thread to the responses in the event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from itertools import groupby

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtime.errors import UserError
from runtime.serve.answer import Answer, Event
from runtime.serve.errors import ApiError
from runtime.serve.metrics import Metrics
from runtime.serve.responses import Writer, encoded
from runtime.serve.scheduler import Closed

Item = tuple[int, Event] | None  # a choice and what it goes on with; None: the client has gone
HOLD = 0.05  # seconds
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}  # a proxy is not to hold the pieces back


class Outbox:
    """Events of all answers, handed to the event loop together. The engine's thread calls send and flush.

    Tokens that come within HOLD travel as one: a wake-up, a JSON object and a write for each would cost a small model
    a good part of its speed. The first and the last of an answer are not held.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._items: deque[tuple[asyncio.Queue[Item], Item]] = deque()
        self._urgent = self._planned = False

    def send(self, queue: asyncio.Queue[Item], choice: int, event: Event) -> None:
        self._items.append((queue, (choice, event)))
        self._urgent |= event.first or event.finish_reason is not None or event.error is not None

    def flush(self) -> None:
        """After each pass."""
        if not self._items or self.loop is None:
            return
        if self._urgent:
            self._urgent = False
            self.loop.call_soon_threadsafe(self._deliver)
        elif not self._planned:
            self._planned = True
            self.loop.call_soon_threadsafe(self.loop.call_later, HOLD, self._deliver)

    def _deliver(self) -> None:
        self._planned = False  # before: what is sent from here on may need another delivery
        while self._items:
            queue, item = self._items.popleft()
            queue.put_nowait(item)


class Disconnected(Exception):  # noqa: N818
    """The client has gone; nobody reads what would be sent."""


class Running:
    """The answers to one request while they come. `release` frees what is left of them."""

    def __init__(
        self,
        answers: Sequence[Answer],
        queue: asyncio.Queue[Item],
        writer: Writer,
        release: Callable[[Sequence[Answer]], None],
        metrics: Metrics,
        began: float,
    ) -> None:
        self.answers = answers
        self.writer = writer
        self._queue = queue
        self._release = release
        self._metrics = metrics
        self._began = began

    async def whole(self, receive: Receive) -> bytes:
        """All of it. Raises ApiError for an answer that failed, Disconnected where the client has gone."""
        events: list[list[Event]] = [[] for _ in self.answers]
        async with aclosing(self._batches(receive)) as batches:
            async for items in batches:
                for choice, event in items:
                    if event.error is not None:
                        raise told(event.error)
                    events[choice].append(event)
        return self.writer.whole(events, self.answers)

    async def chunks(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        """It as server-sent events, an error among them where an answer failed."""
        begins = [self.writer.first(choice) for choice in range(len(self.answers))]
        if any(begins):
            yield b"".join(sse(begin) for begin in begins if begin is not None)
        async with aclosing(self._batches(receive)) as batches:
            async for items in batches:
                pieces: list[bytes] = []
                for choice, group in groupby(items, key=lambda item: item[0]):
                    events = [event for _, event in group]
                    error = next((event.error for event in events if event.error is not None), None)
                    if error is not None:
                        yield b"".join(pieces) + sse(encoded(told(error).body))
                        return
                    piece = self.writer.next(choice, events)
                    if piece is not None:
                        pieces.append(sse(piece))
                if pieces:
                    yield b"".join(pieces)
        last = self.writer.usage(self.answers) if self.writer.request.stream_options.include_usage else None
        yield (sse(last) if last else b"") + sse(b"[DONE]")

    async def _batches(self, receive: Receive) -> AsyncGenerator[list[tuple[int, Event]], None]:
        """What has come since the last time, until every answer has ended; the rows are free after that, however it
        was left."""
        gone = asyncio.create_task(_disconnect(receive))
        gone.add_done_callback(lambda _: self._queue.put_nowait(None))
        left, first = len(self.answers), True
        try:
            while left:
                items = [await self._queue.get()]
                while not self._queue.empty():
                    items.append(self._queue.get_nowait())
                known = [item for item in items if item is not None]
                if len(known) < len(items):
                    raise Disconnected
                if first:
                    self._metrics.first_token.observe(time.perf_counter() - self._began)
                    first = False
                left -= sum(event.finish_reason is not None or event.error is not None for _, event in known)
                yield known
            self._metrics.duration.observe(time.perf_counter() - self._began)
        finally:
            gone.cancel()
            self._release(self.answers)


class EventStream(Response):
    """A response of server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, running: Running) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self.running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with aclosing(self.running.chunks(receive)) as chunks:
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Disconnected:
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def told(error: Exception) -> ApiError:
    """What ended an answer, as its client is told."""
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    if isinstance(error, Closed):
        return ApiError(503, "the server is shutting down", headers={"retry-after": "10"})
    return ApiError(500, "the model failed on this request; the server's log says why")


def sse(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
