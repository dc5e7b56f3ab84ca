"""Slow clients, missing file descriptors, invalid headers and large schemas: other clients are served all the time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import resource
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from edgellama.grammar import GrammarTokenizer
from edgellama.model import LlamaForCausalLM
from edgellama.serve import connection
from edgellama.serve.app import Service
from edgellama.serve.http_server import QuietFilter
from edgellama.serve.preprocess import GRAMMARS
from edgellama.text.tokenizer import Tokenizer
from support.serving import Gate, serving, wait_until, with_template

POST = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def model(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(with_template(tiny_artifact, tmp_path_factory.mktemp("served") / "tiny"))


@pytest.fixture
def server(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Service, str]]:
    for name in ("HEADER_SECONDS", "BODY_SECONDS", "READ_SECONDS", "IDLE_SECONDS"):
        monkeypatch.setattr(connection, name, 0.5)
    with serving(model, hosts={"127.0.0.1", "::1"}) as running:
        yield running


def connect(address: str) -> socket.socket:
    parts = urlsplit(address)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)  # type: ignore[arg-type]


def received(client: socket.socket) -> list[tuple[int, dict[str, Any]]]:
    """Read until the server closes the connection. Returns status and JSON of each response."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while block := client.recv(1 << 16):
            data += block
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        assert b"content-type: application/json" in head
        length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
        found.append((int(head[9:12]), json.loads(data[:length])))
        data = data[length:]
    return found


HEALTH = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "statuses", "message"),
    [
        (b"", [408], "the headers of the request did not arrive within 0.5 seconds"),
        (b"\r\n\r\n", [408], "the headers"),
        (b"GET /health HTT", [408], "the headers"),
        (b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n", [408], "the headers"),
        (POST + b"content-length: 100\r\n\r\n{", [408], "the body of the request did not arrive within 0.5 seconds"),
        (POST + b"transfer-encoding: chunked\r\n\r\n5\r\n{", [408], "the body"),
        (HEALTH + b"GET /hea", [200, 408], "the headers"),
        (HEALTH, [200, 408], "no request arrived within 0.5 seconds"),
        # answered before the body is complete: a second response would belong to no request
        (b"GET / HTTP/1.1\r\nhost: evil\r\ncontent-length: 9\r\n\r\n", [403], "name is not 'evil'"),
    ],
)
def test_a_client_that_sends_too_slowly_is_told_and_closed(
    server: tuple[Service, str], sent: bytes, statuses: list[int], message: str
) -> None:
    with connect(server[1]) as client:
        client.sendall(sent)
        start = time.monotonic()
        found = received(client)
        assert time.monotonic() - start < 5
    assert [status for status, _ in found] == statuses and message in found[-1][1]["error"]["message"]
    assert httpx.get(f"{server[1]}/health").status_code == 200


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (b"GARBAGE\r\n\r\n", [400]),
        (b"GET / HTTP/9.9\r\n\r\n", [400]),
        ("GET /\u00e9 HTTP/1.1\r\n\r\n".encode("latin-1"), [400]),
        (POST + b"content-length: x\r\n\r\n", [400]),
        (POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", [400]),
        (POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", [400]),
        (POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n{", [400]),
        (HEALTH + b"GARBAGE\r\n\r\n", [200]),  # the first request is answered, then the connection is closed
        (b"GET /health/ HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n", [404]),
        (b"DELETE /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n", [405]),
        (HEALTH[:-2] + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n", [200]),
        (b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", [400]),
    ],
)
def test_what_is_not_http_gets_an_error_in_openais_shape(
    server: tuple[Service, str], sent: bytes, statuses: list[int]
) -> None:
    with connect(server[1]) as client:
        client.sendall(sent)
        found = received(client)
    assert [status for status, _ in found] == statuses
    assert all(body["error"]["message"] for status, body in found if status != 200)


@pytest.mark.parametrize("sent", [b"GET /hea", POST + b"content-length: 9\r\n\r\n{", POST, HEALTH + b"GET"])
def test_a_request_that_ends_early_is_refused(server: tuple[Service, str], sent: bytes) -> None:
    with connect(server[1]) as client:
        client.sendall(sent)
        if sent.startswith(HEALTH):
            while b"waiting" not in client.recv(1 << 16):
                pass
        client.shutdown(socket.SHUT_WR)
        ((status, body),) = received(client)
    assert status == 400 and "ended before the request. Send all of it" in body["error"]["message"]


def test_one_connection_too_many_is_refused(model: LlamaForCausalLM) -> None:
    with serving(model, connections=3) as (_, address):
        open_ones = [connect(address) for _ in range(3)]
        with connect(address) as client:
            ((status, body),) = received(client)
        assert status == 503 and "3 open connections, its limit. Try again" in body["error"]["message"]
        open_ones[0].sendall(HEALTH)  # the others are served
        assert open_ones[0].recv(1 << 16).startswith(b"HTTP/1.1 200")
        open_ones.pop().close()
        wait_until(lambda: httpx.get(f"{address}/health").status_code == 200)
        for client in open_ones:
            client.close()


def test_large_bodies_share_a_limit(model: LlamaForCausalLM) -> None:
    with serving(model, max_body=1 << 20) as (service, address):
        head = POST + b"content-length: 1048576\r\n\r\n"
        clients = [connect(address) for _ in range(10)]
        for client in clients:
            client.sendall(head + b" " * ((1 << 20) - 1))
        waiting = [client for client in clients if not select.select([client], [], [], 0.5)[0]]
        refused = [client for client in clients if client not in waiting]
        assert len(waiting) == 8 and all(client.recv(1 << 16).startswith(b"HTTP/1.1 503") for client in refused)
        small = {"model": service.name, "prompt": "hi", "max_tokens": 1}
        assert httpx.post(f"{address}/v1/completions", json=small, timeout=60).status_code == 200
        for client in clients:
            client.close()
        wait_until(lambda: service.bodies.held == 0)


def test_bytes_that_drip_do_not_keep_a_connection(server: tuple[Service, str]) -> None:
    for head in (b"", b"GET / HTTP/1.1\r\nx: ", POST + b"content-length: 1000\r\n\r\n"):
        with connect(server[1]) as client, pytest.raises(OSError, match=r"reset|Broken pipe|aborted"):
            client.sendall(head)
            for _ in range(40):
                time.sleep(0.1)
                client.sendall(b"\r\n" if head == b"" else b"x")


def test_endless_headers_are_refused(server: tuple[Service, str]) -> None:
    with connect(server[1]) as client:
        client.sendall(b"GET / HTTP/1.1\r\nx: " + b"x" * 70_000)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 431")
    answer = httpx.get(f"{server[1]}/health", headers={f"x{i}": "y" * 1000 for i in range(80)})
    assert answer.status_code == 431 and "65,536 bytes" in answer.json()["error"]["message"]


def test_a_client_that_does_not_read_is_closed(model: LlamaForCausalLM, server: tuple[Service, str]) -> None:
    with connect(server[1]) as client:
        try:
            for _ in range(3000):
                client.sendall(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
                time.sleep(0.001)
        except OSError:
            return
        pytest.fail("the connection is still open")


@pytest.mark.parametrize("host", ["[::1", "[", "a]b", "[x]", "\u2100".encode(), "::1", "a b", "127.0.0.1:x"])
def test_an_invalid_host_is_refused(server: tuple[Service, str], host: str | bytes) -> None:
    for path in ("/", "/health", "/v1/models"):
        answer = httpx.get(server[1] + path, headers={"host": host})
        assert answer.status_code in (400, 403) and answer.json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{server[1]}/health", headers={"host": "[::1]:80"}).status_code == 200


@pytest.mark.parametrize("host", ["user@127.0.0.1", "127.0.0.1/x", "127.0.0.1\\x", "127.0.0.1\r\nHost: 127.0.0.1"])
def test_a_host_that_others_may_read_differently_is_refused(server: tuple[Service, str], host: str) -> None:
    for path in ("/", "/health/", "/nowhere"):
        with connect(server[1]) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            status = client.recv(1 << 16)[9:12]
            assert status == b"400" if path == "/" else status < b"500"


def test_without_descriptors_the_log_gets_one_line_and_the_server_recovers(
    server: tuple[Service, str], caplog: pytest.LogCaptureFixture
) -> None:
    quiet = QuietFilter()
    logger = logging.getLogger("edgellama.serve.http_server")
    logger.addFilter(quiet)
    parts = urlsplit(server[1])
    clients = [socket.socket() for _ in range(60)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    taken = occupy_descriptors()
    try:
        for client in clients:
            client.connect((parts.hostname, parts.port))
        time.sleep(2.5)
        for client in clients:
            client.close()
        assert httpx.get(f"{server[1]}/health", timeout=20).status_code == 200
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        logger.removeFilter(quiet)
    lines = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(lines) == 1 and "no new connection can be accepted" in lines[0].getMessage()
    assert lines[0].exc_info is None


def occupy_descriptors() -> list[int]:
    """Take all free descriptors but four."""
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        for _ in range(4):
            os.close(taken.pop())
    return taken


def schema_body(service: Service, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"model": service.name, "prompt": "hi", "max_tokens": 1, "response_format": form, **more}


def test_a_schema_is_compiled_once(server: tuple[Service, str], monkeypatch: pytest.MonkeyPatch) -> None:
    service, address = server
    compiled: list[str] = []
    tried = GrammarTokenizer.try_grammar
    monkeypatch.setattr(
        GrammarTokenizer, "try_grammar", lambda self, *given: (compiled.append(given[0]), tried(self, *given))[1]
    )
    body = schema_body(service, {"enum": ["a", "b"]}, n=8)
    for _ in range(2):
        assert httpx.post(f"{address}/v1/completions", json=body, timeout=60).status_code == 200
    assert len(compiled) == 1
    for index in range(GRAMMARS + 2):
        body = schema_body(service, {"const": index})
        assert httpx.post(f"{address}/v1/completions", json=body, timeout=60).status_code == 200
    assert len(service._preprocessor._grammars) == GRAMMARS


def test_a_full_queue_refuses_before_it_compiles(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(model)
    monkeypatch.setattr(model.engine, "forward", gate)
    with serving(model, gate, queue=0) as (service, address), ThreadPoolExecutor(1) as pool:
        plain = {"model": service.name, "prompt": "hi", "max_tokens": 1, "n": model.engine.batch}
        first = pool.submit(httpx.post, f"{address}/v1/completions", json=plain, timeout=60)
        wait_until(lambda: service.scheduler.running)
        monkeypatch.setattr(service._preprocessor, "sequences", lambda *_: pytest.fail("prepared"))
        body = schema_body(service, {"enum": list(range(30_000))})
        assert httpx.post(f"{address}/v1/completions", json=body, timeout=60).status_code == 429
        gate.open.set()
        assert first.result().status_code == 200
        assert service.scheduler._reserved == 0


def test_a_hostile_template_does_not_stop_the_server(
    model: LlamaForCausalLM, server: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, address = server
    bomb = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer: Tokenizer = model.tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", bomb)
    asked = {"model": service.name, "messages": [{"role": "user", "content": "hi"}]}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{address}/v1/chat/completions", json=asked, timeout=60)
        plain = {"model": service.name, "prompt": "hi", "max_tokens": 1}
        assert httpx.post(f"{address}/v1/completions", json=plain, timeout=60).status_code == 200
        assert answer.result().status_code == 400
        assert "2 seconds of processor time" in answer.result().json()["error"]["message"]
    assert psutil.Process().num_fds() < 200
