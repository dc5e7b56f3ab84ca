"""Slow clients, missing file descriptors, invalid headers and large schemas: other clients are served all the time."""

from __future__ import annotations

import logging
import os
import resource
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
    for name in ("HEADER_SECONDS", "BODY_SECONDS", "READ_SECONDS"):
        monkeypatch.setattr(connection, name, 0.5)
    with serving(model, hosts={"127.0.0.1", "::1"}) as running:
        yield running


def connect(address: str) -> socket.socket:
    parts = urlsplit(address)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HTT",
        b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n",
        POST + b"content-length: 100\r\n\r\n{",
        POST + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
        b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\nGET /hea",
        b"GET / HTTP/1.1\r\nhost: evil\r\ncontent-length: 9\r\n\r\n",
    ],
)
def test_a_connection_that_sends_too_slowly_is_closed(server: tuple[Service, str], sent: bytes) -> None:
    with connect(server[1]) as client:
        client.sendall(sent)
        start = time.monotonic()
        try:
            while client.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        assert time.monotonic() - start < 5
    assert httpx.get(f"{server[1]}/health").status_code == 200


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
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 400")


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
