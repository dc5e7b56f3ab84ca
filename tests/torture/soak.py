"""Many requests of all kinds to one endpoint: memory, descriptors and threads stay the same."""

from __future__ import annotations

import http.client
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from torture.case import Case, FaultClass
from torture.endpoint import ANSWER_SECONDS, Endpoint, Response, endpoint, events, family, fault_of, resident
from torture.fixtures import fixture
from torture.http_cases import CHAT, COMPLETIONS
from torture.outcomes import Outcome

BLOCK = 100  # cases between two measurements
WARM_UP = 0.4  # the part of a run after which nothing may grow
GROWTH = 0.01  # of memory
SCHEMAS: tuple[Any, ...] = ({"type": "integer"}, {"enum": ["a", "b"]}, {"type": "array", "items": {"type": "boolean"}})


class Usage(NamedTuple):
    """What the endpoint's process uses, and how many processes it has with its children."""

    memory: int
    descriptors: int
    threads: int
    processes: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Measure a process."""
        proc = Path(f"/proc/{pid}")
        threads = len(list((proc / "task").iterdir()))
        return cls(resident(pid), len(list((proc / "fd").iterdir())), threads, len(family(pid)))


def request(rng: random.Random, model: str) -> tuple[str, str, Any, int]:
    """A request: method, path, body and the status that it must get."""
    kind = rng.random()
    if kind < 0.1:
        return "GET", rng.choice(["/health", "/metrics", "/v1/models", "/", "/docs", "/openapi.json"]), None, 200
    if kind < 0.15:
        return "GET", f"/nothing/{rng.randrange(10**9)}", None, 404
    path = rng.choice([CHAT, COMPLETIONS])
    text = "".join(rng.choice("abcdefgh ") for _ in range(rng.randrange(1, 12)))
    body: dict[str, Any] = {"model": model, "max_tokens": rng.randrange(1, 5)}
    body |= {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": "a" + text}
    if kind < 0.25:
        wrong = rng.choice([{"temperature": "x"}, {f"field{rng.randrange(10**9)}": 1}, {"n": 0}, {"stop": [1]}])
        return "POST", path, body | wrong, 400
    if kind < 0.3:
        form = {"type": "json_schema", "json_schema": {"schema": {"not": {"const": rng.randrange(10**9)}}}}
        return "POST", path, body | {"response_format": form}, 400
    more: list[dict[str, Any]] = [
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"n": 2, "temperature": 1},
        {"seed": rng.randrange(10**9), "top_p": 0.5},
        {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2},
        {"stop": [text[0]], "frequency_penalty": 1},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": rng.choice(SCHEMAS)}}},
    ]
    return "POST", path, body | rng.choice(more), 200


class Client:
    """A client that keeps its connection, and leaves some responses in the middle."""

    def __init__(self, server: Endpoint) -> None:
        self._server = server
        self._connection: http.client.HTTPConnection | None = None

    def outcome(self, rng: random.Random) -> Outcome:
        """Send a request and judge the response."""
        method, path, body, status = request(rng, self._server.model)
        if self._connection is None or rng.random() < 0.05:
            self._close()
            self._connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=ANSWER_SECONDS)
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, {} if data is None else {"content-type": "application/json"})
        if rng.random() < 0.05:
            self._close()
            return Outcome("harmless")
        raw = self._connection.getresponse()
        response = Response(raw.status, {name.lower(): value for name, value in raw.getheaders()}, raw.read())
        if response.status != status:
            return Outcome("silent", f"status {response.status}, not {status}: {body} {response.body[:300]!r}")
        if response.headers["content-type"].startswith("text/event-stream") and "error" in events(response.body)[-1]:
            return Outcome("unclear", f"an error in the stream: {response.body[-300:]!r}")
        return fault_of(response) or Outcome("harmless" if status == 200 else "clear")

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def run(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """Send one request for each case. The last outcome also tells whether the process has grown."""
    # A cache memory of 1 MB is full early; the default one would grow for longer than this runs.
    with endpoint(fixture(shared, "artifact"), shared, "--threads", "1", "--cache-memory", "1") as server:
        client, measured = Client(server), []
        waiting: Outcome | None = None
        for number, case in enumerate(cases):
            if waiting is not None:
                yield waiting
            try:
                waiting = client.outcome(case.rng)
            except TimeoutError:
                waiting = Outcome("hang", "no response")
            except (OSError, ValueError, http.client.HTTPException) as error:
                waiting = Outcome("unclear", f"{type(error).__name__}: {error}")
            waiting = server.fault() or waiting
            if number % BLOCK == BLOCK - 1:
                measured.append(Usage.of(server.pid))
        if waiting is not None:
            yield growth(measured) or waiting


def growth(measured: list[Usage]) -> Outcome | None:
    """The outcome if the process has grown after the warm-up; None if it has not."""
    rest = measured[int(len(measured) * WARM_UP) :]
    half = len(rest) // 2
    if half == 0:
        return None
    earlier, later = rest[:half], rest[half:]
    faults, told = [], []
    for name in Usage._fields:
        before, after = (median(getattr(usage, name) for usage in part) for part in (earlier, later))
        told.append(f"{name} {before:,.0f} and {after:,.0f}")
        if after > before * (1 + GROWTH if name == "memory" else 1):
            faults.append(f"{name} grew from {before:,.0f} to {after:,.0f}")
    print(f"soak, medians of the two halves after the warm-up: {', '.join(told)}", file=sys.stderr)
    return Outcome("silent", "; ".join(faults)) if faults else None


CLASSES = (
    FaultClass(
        "soak",
        f"requests of all kinds to one `edgellama serve`. After a warm-up of {WARM_UP:.0%}, memory may grow by "
        f"{GROWTH:.0%}, and descriptors, threads and processes not at all",
        "the status is the expected one",
        10_000,
        600,
        run,
    ),
)
