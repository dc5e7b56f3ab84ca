"""The endpoint as a process, raw requests to it, and the rules that decide how a request ended."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from support.child import REPOSITORY
from torture.outcomes import Outcome, fault_of_message

START_SECONDS = 120.0
ANSWER_SECONDS = 60.0  # without a byte of the response: a hang
OVERLOAD = (429, 503)


class Response(NamedTuple):
    """One response: its status, its headers in small letters, and its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return json.loads(self.body)


class Endpoint:
    """`edgellama serve` of an artifact. Starts again after it has ended.

    Attributes:
        log: its standard error.
        port: its TCP port.
        description: its /openapi.json.
    """

    def __init__(self, artifact: Path, folder: Path, *options: str) -> None:
        self._artifact, self._options = artifact, options
        self.log = folder / "endpoint.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._seen = 0  # bytes of the log that have been judged
        self.start()

    def start(self) -> None:
        """Start the process and ask it what the judgements need."""
        command = [sys.executable, "-m", "edgellama", "serve", str(self._artifact), "--port", "0", *self._options]
        with self.log.open("ab") as log:
            begin = log.tell()
            self._process = subprocess.Popen(command, cwd=REPOSITORY, stderr=log, stdout=subprocess.DEVNULL)
        end = time.monotonic() + START_SECONDS
        while not (found := re.search(rb"Serving (.+) at http://127\.0\.0\.1:(\d+)", self.log.read_bytes()[begin:])):
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the endpoint did not start: {self.log.read_text()}")
            time.sleep(0.05)
        self.port = int(found[2])
        self.description = self.get("/openapi.json").json
        self.model = self.get("/v1/models").json["data"][0]["id"]

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def connect(self) -> socket.socket:
        """A connection of its own."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_SECONDS)

    def get(self, path: str) -> Response:
        """A GET request."""
        (response,) = self.exchange(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode())
        return response

    def post(self, path: str, body: Any) -> Response:
        """A POST request with a JSON body."""
        (response,) = self.exchange(posted(path, json.dumps(body).encode(), "connection: close"))
        return response

    def exchange(self, data: bytes, patience: float = ANSWER_SECONDS, wanted: int = 1) -> list[Response]:
        """Send bytes, and return the responses.

        Args:
            data: what to send.
            patience: seconds without a byte, after which the sending side is closed: there is no more to come.
            wanted: the number of responses, after which the sending side is closed, too.

        Raises:
            TimeoutError: nothing arrived within ANSWER_SECONDS.
            ValueError: what arrived is not HTTP.
        """
        method = data.partition(b" ")[0].decode("latin-1")
        received = b""
        with self.connect() as connection:
            with suppress(BrokenPipeError, ConnectionResetError):  # the server may have refused it already
                connection.sendall(data)
            connection.settimeout(patience)
            try:
                while complete(received, method) < wanted and (block := connection.recv(1 << 16)):
                    received += block
            except TimeoutError:
                if patience >= ANSWER_SECONDS and not received:
                    raise
            except ConnectionResetError:
                return list(parsed(received, method))
            connection.settimeout(ANSWER_SECONDS)
            with suppress(ConnectionResetError, OSError):
                connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                while block := connection.recv(1 << 16):
                    received += block
        return list(parsed(received, method))

    def fault(self) -> Outcome | None:
        """What went wrong in the process since the last call: its end, or a traceback in its log."""
        assert self._process is not None
        text = self.log.read_bytes()[self._seen :].decode(errors="replace")
        self._seen += len(text.encode(errors="replace"))
        status = self._process.poll()
        if status is not None:
            self.start()
            self._seen = self.log.stat().st_size
            return Outcome("crash", f"the endpoint ended with status {status}: {text[-2000:]}")
        return Outcome("traceback", text[-4000:]) if "Traceback (most recent call last)" in text else None


@contextmanager
def endpoint(artifact: Path, folder: Path, *options: str) -> Iterator[Endpoint]:
    """Run the endpoint inside the block."""
    running = Endpoint(artifact, folder, *options)
    try:
        yield running
    finally:
        running.stop()


def posted(path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a POST request with a JSON body."""
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", *headers]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


def complete(received: bytes, method: str) -> int:
    """How many complete responses these bytes begin with."""
    count = 0
    with suppress(ValueError):
        for _ in parsed(received, method):
            count += 1
    return count


def parsed(received: bytes, method: str = "GET") -> Iterator[Response]:
    """Yield the responses in these bytes. Raises ValueError if they are not HTTP. `method`: of the request."""
    rest = io.BytesIO(received)
    while rest.tell() < len(received):
        reader = http.client.HTTPResponse(_Received(rest), method=method)  # type: ignore[arg-type]
        try:
            reader.begin()
            length = reader.length
            body = reader.read(length) if length is not None else reader.read()
        except http.client.HTTPException as error:
            raise ValueError(f"{type(error).__name__}: {error}: {received[:300]!r}") from error
        yield Response(reader.status, {name.lower(): value for name, value in reader.getheaders()}, body)


class _Received:
    """What http.client asks of a socket. The response does not close the bytes, which may hold another one."""

    def __init__(self, data: io.BytesIO) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BufferedReader:
        """The bytes as a file."""
        return _Open(self._data)  # type: ignore[return-value]


class _Open(io.BufferedIOBase):
    def __init__(self, data: io.BytesIO) -> None:
        self._data = data

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        return self._data.read(size)

    def readline(self, size: int | None = -1) -> bytes:
        return self._data.readline(size)

    def readinto(self, buffer: Any) -> int:
        return self._data.readinto(buffer)

    def close(self) -> None:
        """Leave the bytes open."""


def fault_of(response: Response) -> Outcome | None:
    """What is wrong with a response by itself; None for a success and for a clear error."""
    if response.status < 400:
        return None
    if response.status >= 500 and response.status not in OVERLOAD:
        return Outcome("traceback", f"status {response.status}: {response.body[:500]!r}")
    if response.headers.get("content-type", "").partition(";")[0] != "application/json":
        return Outcome("unclear", f"status {response.status}, and the body is not JSON: {response.body[:300]!r}")
    try:
        error = response.json["error"]
        message, kinds = error["message"], {name: type(value) for name, value in error.items()}
    except (ValueError, KeyError, TypeError):
        return Outcome("unclear", f"status {response.status}, and not OpenAI's error: {response.body[:300]!r}")
    if set(kinds) != {"message", "type", "param", "code"}:
        return Outcome("unclear", f"status {response.status}, and not OpenAI's error: {response.body[:300]!r}")
    fault = fault_of_message(message)
    return None if fault is None else Outcome("unclear", f"({fault}) status {response.status}: {message}")


def events(body: bytes) -> list[Any]:
    """The JSON objects of a stream. Raises ValueError if it does not end with [DONE] or an error."""
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    if lines[-1:] == ["[DONE]"]:
        return [json.loads(line) for line in lines[:-1]]
    found = [json.loads(line) for line in lines]
    if not found or "error" not in found[-1]:
        raise ValueError(f"the stream does not end: {body[-300:]!r}")
    return found


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for one in found:
        children = Path(f"/proc/{one}/task/{one}/children")
        with suppress(OSError):
            found += [int(child) for child in children.read_text().split()]
    return found


def resident(pid: int) -> int:
    """Bytes in memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
