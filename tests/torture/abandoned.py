"""Streams and connections that are left in the middle: in Python, and over HTTP."""

from __future__ import annotations

import contextlib
import gc
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torture.case import Case, FaultClass
from torture.endpoint import Endpoint, endpoint, posted
from torture.fixtures import fixture
from torture.http_cases import CHAT, COMPLETIONS, good_answer
from torture.outcomes import Outcome

SECONDS = 30.0  # for a case; a hang
RELEASE_SECONDS = 10.0  # in which the endpoint must be idle again
TOKENS = 40


def leave_by_break(stream: Any, pieces: int) -> None:
    """End the loop."""
    for number, _ in enumerate(stream):
        if number == pieces:
            break


def leave_by_exception(stream: Any, pieces: int) -> None:
    """Raise in the loop."""
    with contextlib.suppress(ZeroDivisionError):
        for number, _ in enumerate(stream):
            if number == pieces:
                raise ZeroDivisionError


def leave_by_close(stream: Any, pieces: int) -> None:
    """Call close(), twice."""
    take(stream, pieces)
    stream.close()
    stream.close()


def leave_by_cancel(stream: Any, pieces: int) -> None:
    """Call cancel() and drop the stream."""
    take(stream, pieces)
    stream.cancel()


def leave_by_with(stream: Any, pieces: int) -> None:
    """Leave a `with` block by an exception."""
    with contextlib.suppress(ZeroDivisionError), stream:
        take(stream, pieces)
        raise ZeroDivisionError


def leave_by_listener(stream: Any, pieces: int) -> None:
    """Raise in a listener."""

    def listener(piece: Any) -> None:
        raise ZeroDivisionError

    with contextlib.suppress(ZeroDivisionError):
        take(stream, pieces)
        stream.listeners.append(listener)
        next(stream)


def leave_by_generator(stream: Any, pieces: int) -> None:
    """Drop a generator that reads the stream."""
    texts = (piece.text for piece in stream)
    del stream
    take(texts, pieces)


def leave_in_thread(stream: Any, pieces: int) -> None:
    """Begin here, and drop the stream in another thread."""
    take(stream, pieces)
    held = [stream]
    del stream
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()


def take(stream: Any, pieces: int) -> None:
    """Read some pieces."""
    for _ in range(pieces):
        next(stream, None)


LEAVE: tuple[Callable[[Any, int], None], ...] = (
    leave_by_break,
    leave_by_exception,
    leave_by_close,
    leave_by_cancel,
    leave_by_with,
    leave_by_listener,
    leave_by_generator,
    leave_in_thread,
)


def in_python(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """Leave streams of one model. No garbage is collected in between."""
    from edgellama.conversation.chat import Chat
    from edgellama.model import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(fixture(shared, "artifact"), threads=1)

    def answer() -> list[int]:
        return model.generate([[5, 6, 7]], max_new_tokens=6, do_sample=False, eos_token_id=[]).tolist()

    expected = answer()
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "eos_token_id": []}
    streams: tuple[Callable[[], Any], ...] = (
        lambda: model.stream([5, 6], **options),
        lambda: model.stream([5, 6], stop_strings=["\x00never"], repetition_penalty=1.5, **options),
        lambda: model.stream_chat("hello", **options),
        lambda: model.session().stream([5, 6], **options),
        lambda: Chat(model).ask("hello", **options),
    )

    def outcome(rng: random.Random) -> Outcome:
        leave, make = rng.choice(LEAVE), rng.choice(streams)
        leave(make(), rng.randrange(12))
        what = f"{leave.__name__}, stream {streams.index(make)}"
        if model.engine.engine_lock._queue:
            return Outcome("hang", f"{what}: the engine is still locked")
        found = answer()
        return Outcome("harmless") if found == expected else Outcome("silent", f"{what}: {found}, not {expected}")

    gc.disable()
    for case in cases:
        yield limited(lambda case=case: outcome(case.rng))  # type: ignore[misc]


def limited(function: Callable[[], Outcome]) -> Outcome:
    """Run a case in a thread, whose end is awaited for SECONDS."""
    import traceback

    found = [Outcome("hang", f"no end within {SECONDS} s")]

    def work() -> None:
        try:
            found[0] = function()
        except Exception as error:
            found[0] = Outcome("traceback", "".join(traceback.format_exception(error)))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return found[0]


def over_http(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """Leave requests of one endpoint."""
    with endpoint(fixture(shared, "artifact"), shared) as server:
        known = good_answer(server)
        for case in cases:
            leave_requests(server, case.rng)
            outcome = server.fault() or released(server)
            if outcome is None:
                answer = good_answer(server)
                outcome = Outcome("harmless")
                if answer != known:
                    outcome = Outcome("silent", f"afterwards the endpoint answers {answer}, not {known}")
            yield outcome


def leave_requests(server: Endpoint, rng: random.Random) -> None:
    """Begin one to four requests, and leave them at some moment, in some way."""
    connections = []
    for _ in range(rng.randrange(1, 5)):
        path = rng.choice([CHAT, COMPLETIONS])
        body: dict[str, Any] = {"model": server.model, "max_tokens": TOKENS, "stream": rng.random() < 0.7}
        body |= {"n": rng.randrange(1, 4), "ignore_eos": True, "temperature": 1}
        body |= {"messages": [{"role": "user", "content": "a"}]} if path == CHAT else {"prompt": "a"}
        data = posted(path, json.dumps(body).encode())
        connection = server.connect()
        connections.append(connection)
        connection.sendall(data if rng.random() < 0.8 else data[: rng.randrange(len(data))])
    for connection in connections:
        connection.settimeout(rng.choice([0.001, 0.02, 0.2]))
        with contextlib.suppress(OSError):
            for _ in range(rng.randrange(4)):
                connection.recv(rng.choice([1, 100, 10_000]))
        kind = rng.randrange(3)
        if kind == 0:  # a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif kind == 1:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def released(server: Endpoint) -> Outcome | None:
    """None if the endpoint becomes idle within RELEASE_SECONDS."""
    end = time.monotonic() + RELEASE_SECONDS
    while True:
        state = server.get("/health").json
        if state["running"] == state["waiting"] == 0:
            return None
        if time.monotonic() > end:
            return Outcome("hang", f"{RELEASE_SECONDS} s after the clients have left: {state}")
        time.sleep(0.01)


CLASSES = (
    FaultClass(
        "abandoned-streams",
        "stream(), stream_chat(), sessions and chats left by break, exception, close, del, a listener, another thread",
        "the engine is free at once without garbage collection, and the next answer is that of an undisturbed model",
        200,
        60,
        in_python,
    ),
    FaultClass(
        "abandoned-requests",
        "one to four requests to `edgellama serve`, whole or not, streamed or not, left by reset, shutdown or close",
        "the endpoint is idle soon after, and its next answer is the one that it gave at first",
        200,
        60,
        over_http,
    ),
)
