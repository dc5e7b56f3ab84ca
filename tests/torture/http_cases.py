"""Hostile HTTP: raw bytes to the endpoint of a real model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from support.json_mutations import damaged, mutated
from torture.case import Case, FaultClass
from torture.endpoint import ANSWER_SECONDS, Endpoint, Response, endpoint, events, fault_of, posted
from torture.fixtures import fixture
from torture.http_values import BODIES, CHUNKS, FIELDS, HEADERS, METHODS, TARGETS, VALUES, VERSIONS
from torture.outcomes import Outcome

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
GET = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
CHECK_EVERY = 20  # cases, after which the endpoint must still give the answer that it gave at first


class Sent(NamedTuple):
    """What a case sends.

    Attributes:
        data: the bytes.
        path, body: of a POST request with this JSON, whose validity the description decides; body None: another one.
        complete: how many valid requests the bytes begin with; each must be answered with status 200.
    """

    data: bytes
    path: str = ""
    body: Any = None
    complete: int = 0


def valid_body(path: str, model: str, rng: random.Random) -> dict[str, Any]:
    """A body that must be answered."""
    text = rng.choice(["hello", "a", "\u00e9\U0001f642", "x" * 10])
    asked: dict[str, Any] = {"model": model, "max_tokens": rng.randrange(1, 4), "seed": rng.randrange(9)}
    asked |= rng.choice([{}, {"temperature": 0.7, "top_p": 0.9}, {"stop": ["z"]}, {"logit_bias": {"5": -3}}])
    if rng.random() < 0.3:
        asked["stream"] = True
    return asked | ({"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text})


def request_line(rng: random.Random, model: str) -> Sent:
    """Wrong methods, targets, versions and separators."""
    separator = rng.choice([b" ", b" ", b" ", b"  ", b"\t", b"", b"\x0b"])
    parts = [rng.choice(METHODS), rng.choice(TARGETS), rng.choice(VERSIONS)]
    line = separator.join(parts[: rng.choice([3, 3, 3, 2, 1])])
    end = rng.choice([b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n\r\n"])
    before = rng.choice([b"", b"", b"", b"\r\n", b"\r\n" * 50, b"\x00", b"\x16\x03\x01\x02\x00\x01"])
    return Sent(before + line + end + b"host: 127.0.0.1\r\n\r\n")


def headers(rng: random.Random, model: str) -> Sent:
    """Wrong, repeated, large and contradicting headers, before a small body."""
    chosen = rng.sample(HEADERS, rng.randrange(1, 4))
    if rng.random() < 0.7:
        chosen.append(b"host: 127.0.0.1")
    path = rng.choice([b"/health", CHAT.encode(), COMPLETIONS.encode()])
    method = b"GET" if path == b"/health" else b"POST"
    return Sent(
        b"\r\n".join([method + b" " + path + b" HTTP/1.1", *chosen, b"", b""]) + rng.choice([b"", b"{}", b"hello"])
    )


def chunked(rng: random.Random, model: str) -> Sent:
    """Bodies in chunks with wrong sizes, ends, extensions and trailers."""
    head = f"POST {rng.choice([CHAT, COMPLETIONS])} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    chunk = rng.choice(CHUNKS)
    if chunk and rng.random() < 0.3:
        chunk = damaged(chunk, rng)
    return Sent(head.encode() + b"transfer-encoding: chunked\r\n\r\n" + chunk)


def sizes(rng: random.Random, model: str) -> Sent:
    """A body that is longer or shorter than it says, and requests that end anywhere."""
    body = json.dumps(valid_body(COMPLETIONS, model, rng)).encode()
    whole = posted(COMPLETIONS, body)
    kind = rng.randrange(3)
    if kind == 0:
        return Sent(whole[: rng.randrange(1, len(whole))])
    if kind == 1:
        length = rng.choice([0, 1, len(body) - 1, len(body) + 1, len(body) + 1000, 8 << 20, (8 << 20) + 1, 10**12])
        return Sent(whole.replace(f"content-length: {len(body)}".encode(), f"content-length: {length}".encode()))
    return Sent(whole + rng.choice([b"garbage", b"\r\n\r\n", b"\x00" * 100, body]), complete=1)


def pipelined(rng: random.Random, model: str) -> Sent:
    """Several requests at once, and then something else."""
    count = rng.randrange(1, 20)
    body = posted(COMPLETIONS, json.dumps({"model": model, "prompt": "a", "max_tokens": 1}).encode())
    whole = b"".join(rng.choice([GET, GET, body]) for _ in range(count))
    return Sent(whole + rng.choice([b"", b"GARBAGE\r\n\r\n", GET[:20], b"\r\n", b"\x00"]), complete=count)


def raw_body(rng: random.Random, model: str) -> Sent:
    """Bodies that are no JSON, deep, huge, or JSON of another kind."""
    path = rng.choice([CHAT, COMPLETIONS])
    kind = rng.random()
    if kind < 0.4:
        return Sent(posted(path, rng.choice(BODIES)))
    good = json.dumps(valid_body(path, model, rng)).encode()
    return Sent(posted(path, damaged(good, rng)))


def wrong_fields(rng: random.Random, model: str) -> Sent:
    """A wrong value in one or two fields, or values mutated anywhere."""
    path = rng.choice([CHAT, COMPLETIONS])
    body: Any = valid_body(path, model, rng)
    if rng.random() < 0.25:
        body = mutated(body, rng)
    else:
        for name in rng.sample(FIELDS.split(), rng.choice([1, 1, 2])):
            body[name] = rng.choice(VALUES)
    return Sent(posted(path, json.dumps(body).encode()), path, body)


def damaged_request(rng: random.Random, model: str) -> Sent:
    """Bytes of a valid request changed, removed or inserted."""
    path = rng.choice([CHAT, COMPLETIONS])
    return Sent(damaged(posted(path, json.dumps(valid_body(path, model, rng)).encode()), rng))


KINDS: tuple[Callable[[random.Random, str], Sent], ...] = (
    wrong_fields,
    request_line,
    headers,
    wrong_fields,
    chunked,
    sizes,
    wrong_fields,
    pipelined,
    raw_body,
    damaged_request,
)


class Judge:
    """Decides how a request ended.

    A body that the description (/openapi.json) calls invalid must be refused. Every success must be as described.
    """

    def __init__(self, server: Endpoint) -> None:
        import jsonschema

        self._components = server.description["components"]
        self._validator = jsonschema.Draft202012Validator

    def conforms(self, value: Any, schema: str) -> bool:
        """Whether a value fits a schema of the description."""
        reference = {"$ref": f"#/components/schemas/{schema}", "components": self._components}
        return self._validator(reference).is_valid(value)

    def outcome(self, sent: Sent, responses: list[Response]) -> Outcome:
        """The outcome of a case."""
        if len(responses) < max(1, sent.complete):
            return Outcome("unclear", f"{len(responses)} responses to {sent.complete or 1} requests")
        for number, response in enumerate(responses):
            if number < sent.complete and response.status != 200:
                return Outcome(
                    "silent", f"request {number} of {sent.complete} is valid, and its status is {response.status}"
                )
            if (fault := fault_of(response)) is not None:
                return fault
        refused = [
            response.json["error"]["message"] for response in responses if response.status >= 400 and response.body
        ]
        if sent.body is None:
            return Outcome("clear", refused[0]) if refused else Outcome("harmless")
        kind = "Chat" if sent.path == CHAT else ""
        if refused:
            return Outcome("clear", refused[0])
        if not self.conforms(sent.body, f"{kind or 'Completion'}Request"):
            return Outcome(
                "silent", f"the description calls it invalid, and the status is 200: {json.dumps(sent.body)[:500]}"
            )
        (response,) = responses
        if response.headers["content-type"].startswith("text/event-stream"):
            values, schema = events(response.body), f"{kind}CompletionChunk"
            if "error" in values[-1]:
                return Outcome("clear", values[-1]["error"]["message"])
        else:
            values, schema = [response.json], f"{kind}Completion"
        wrong = [value for value in values if not self.conforms(value, schema)]
        return Outcome("silent", f"not a {schema}: {wrong[0]}") if wrong else Outcome("harmless")


def run(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """Send the requests of the cases to one endpoint."""
    with endpoint(fixture(shared, "artifact"), shared) as server:
        judge, known = Judge(server), good_answer(server)
        for number, case in enumerate(cases):
            sent = KINDS[case.number % len(KINDS)](case.rng, server.model)
            (case.folder / "request.bin").write_bytes(sent.data)
            try:
                outcome = judge.outcome(sent, server.exchange(sent.data, patience(sent.data), max(1, sent.complete)))
            except TimeoutError:
                outcome = Outcome("hang", "no response")
            except (ValueError, OSError) as error:
                outcome = Outcome("unclear", f"{type(error).__name__}: {error}")
            outcome = server.fault() or outcome
            if number % CHECK_EVERY == 0 and (answer := good_answer(server)) != known:
                outcome = Outcome("silent", f"after this request the endpoint answers {answer}, not {known}")
            yield outcome


def patience(data: bytes) -> float:
    """How long to wait for a response before the connection is half closed, which tells that there is no more to come.

    By h11, another parser than the endpoint's: the data are a complete request, an incomplete one, or none.
    """
    import h11

    parser = h11.Connection(h11.SERVER)
    try:
        parser.receive_data(data)
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                return 0.1
    except h11.RemoteProtocolError:
        return 3.0
    return ANSWER_SECONDS


def good_answer(server: Endpoint) -> str:
    """The text that the endpoint gives to a fixed request."""
    asked = {"model": server.model, "prompt": "hello", "max_tokens": 8, "temperature": 0, "seed": 1}
    return server.post(COMPLETIONS, asked).json["choices"][0]["text"]


CLASSES = (
    FaultClass(
        "http",
        "raw requests to `edgellama serve`: request lines, headers, chunks, sizes, pipelining, JSON, values of fields",
        "each response is as /openapi.json describes it, no body that it calls invalid is answered, every complete "
        "request before the fault is answered, and the endpoint gives others the same answer as before",
        2400,
        500,
        run,
    ),
)
