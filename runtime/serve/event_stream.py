"""Events from the engine's thread to the responses in the event loop, and server-sent events to the client."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from itertools import groupby

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import UserError
from .errors import ApiError
from .metrics import Metrics
from .responses import ResponseWriter
from .responses_api.writer import ResponseObjectWriter
from .scheduler import SchedulerClosedError
from .sequence import SequenceEvent, ServedSequence

Item = tuple[int, SequenceEvent] | None  # (choice, event); None: the client has disconnected
HOLD_SECONDS = 0.05
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}  # a proxy must not buffer the stream


class Outbox:
    """Hands the events of all sequences to the event loop, in batches. The engine's thread calls `send` and `flush`.

    Events within HOLD_SECONDS travel together: a wake-up, a JSON object and a write per token would slow a small model
    down noticeably. The first and the last event of a sequence are not held.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._items: deque[tuple[asyncio.Queue[Item], Item]] = deque()
        self._urgent = self._scheduled = False

    def send(self, queue: asyncio.Queue[Item], choice: int, event: SequenceEvent) -> None:
        """Add an event of the request that reads `queue`."""
        self._items.append((queue, (choice, event)))
        self._urgent |= event.first or event.finish_reason is not None or event.error is not None

    def flush(self) -> None:
        """Schedule the delivery of the added events. The scheduler calls this after each pass."""
        if not self._items or self.loop is None:
            return
        if self._urgent:
            self._urgent = False
            self.loop.call_soon_threadsafe(self._deliver)
        elif not self._scheduled:
            self._scheduled = True
            self.loop.call_soon_threadsafe(self.loop.call_later, HOLD_SECONDS, self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False  # first: events that arrive during the delivery may need another one
        while self._items:
            queue, item = self._items.popleft()
            queue.put_nowait(item)


class DisconnectedError(Exception):
    """The client has disconnected, so nobody would read the response."""


class AnswerEvents:
    """The events of sequences that run. Reading them to the end, or not, releases the rows."""

    def __init__(
        self,
        sequences: Sequence[ServedSequence],
        queue: asyncio.Queue[Item],
        release: Callable[[Sequence[ServedSequence]], None],
        metrics: Metrics | None = None,
        start: float = 0.0,
    ) -> None:
        """Args:
        sequences: one per choice
        queue: where the Outbox puts their events
        release: frees the rows of the sequences
        metrics: observes the times of answers
        start: time.perf_counter() when the request arrived
        """
        self.sequences = sequences
        self._queue = queue
        self._release = release
        self._metrics = metrics
        self._start = start

    async def all(self, receive: Receive) -> list[list[SequenceEvent]]:
        """All events of each choice.

        Raises ApiError if a sequence fails, DisconnectedError if the client disconnects.
        """
        events: list[list[SequenceEvent]] = [[] for _ in self.sequences]
        async with aclosing(self._batches(receive)) as batches:
            async for items in batches:
                for choice, event in items:
                    if event.error is not None:
                        raise to_api_error(event.error)
                    events[choice].append(event)
        return events

    async def _batches(self, receive: Receive) -> AsyncGenerator[list[tuple[int, SequenceEvent]], None]:
        """Yields the events that arrived since the last batch, until every sequence has ended. Then frees the rows."""
        watcher = asyncio.create_task(_wait_for_disconnect(receive))
        watcher.add_done_callback(lambda _: self._queue.put_nowait(None))
        unfinished, first = len(self.sequences), True
        try:
            while unfinished:
                items = [await self._queue.get()]
                while not self._queue.empty():
                    items.append(self._queue.get_nowait())
                events = [item for item in items if item is not None]
                if len(events) < len(items):
                    raise DisconnectedError
                if first and self._metrics is not None:
                    self._metrics.first_token.observe(time.perf_counter() - self._start)
                first = False
                unfinished -= sum(event.finish_reason is not None or event.error is not None for _, event in events)
                yield events
            if self._metrics is not None:
                self._metrics.duration.observe(time.perf_counter() - self._start)
        finally:
            watcher.cancel()
            self._release(self.sequences)


class ActiveRequest(AnswerEvents):
    """A request whose sequences are being generated.

    `complete` or `event_chunks` reads it to the end. Both release the rows when they end, for whatever reason.
    """

    def __init__(
        self,
        sequences: Sequence[ServedSequence],
        queue: asyncio.Queue[Item],
        writer: ResponseWriter | ResponseObjectWriter,
        release: Callable[[Sequence[ServedSequence]], None],
        metrics: Metrics,
        start: float,
    ) -> None:
        """Args:
        writer: writes the response's JSON
        sequences, queue, release, metrics, start: of AnswerEvents
        """
        super().__init__(sequences, queue, release, metrics, start)
        self.writer = writer

    async def complete(self, receive: Receive) -> bytes:
        """The complete response; raises as `all`."""
        return self.writer.complete(await self.all(receive), self.sequences)

    async def event_chunks(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        """Yields the response as server-sent events; a failure becomes an error event, which ends the stream.

        Raises DisconnectedError if the client disconnects.
        """
        if first := self.writer.first_frames(len(self.sequences)):
            yield first
        async with aclosing(self._batches(receive)) as batches:
            async for items in batches:
                chunks: list[bytes] = []
                for choice, group in groupby(items, key=lambda item: item[0]):
                    events = [event for _, event in group]
                    error = next((event.error for event in events if event.error is not None), None)
                    if error is not None:
                        yield b"".join(chunks) + self.writer.error_frames(to_api_error(error).body)
                        return
                    chunks.append(self.writer.next_frames(choice, events))
                if added := b"".join(chunks):
                    yield added
        yield self.writer.last_frames(self.sequences)


class EventStreamResponse(Response):
    """An HTTP response of server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, active: ActiveRequest) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self.active = active

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with aclosing(self.active.event_chunks(receive)) as chunks:
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except DisconnectedError:
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def to_api_error(error: Exception) -> ApiError:
    """The error that the client gets for what ended a sequence."""
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    if isinstance(error, SchedulerClosedError):
        return ApiError(503, "the server is shutting down", headers={"retry-after": "10"})
    return ApiError(500, "the model failed on this request; the server's log has the reason")
