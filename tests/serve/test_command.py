"""`edgellama serve` in a separate process: signals, and options that it refuses."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from support.child import REPOSITORY, run_child
from support.serving import client, wait_until, with_template

# Slow passes, so that a signal arrives in the middle of an answer.
SLOWLY = (
    "import sys, time\nfrom edgellama.engine.engine import Engine\nforward = Engine.forward\n"
    "def slowly(*arguments):\n    time.sleep(0.05)\n    return forward(*arguments)\n"
    "Engine.forward = slowly\nfrom edgellama.__main__ import main\nsys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    return with_template(tiny_artifact, tmp_path / "tiny")


class Server:
    """The command as a process. `address` is its URL, `lines` is its output on standard error."""

    def __init__(self, artifact: Path, *options: str) -> None:
        command = [sys.executable, "-c", SLOWLY, "serve", str(artifact), "--port", "0", *options]
        self.process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        wait_until(lambda: any(line.startswith("Serving ") for line in self.lines) or self.process.poll() is not None)
        self.address = next(line for line in self.lines if line.startswith("Serving ")).split(" at ")[1].split(" ")[0]
        self.name = client(self.address).models.list().data[0].id

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def stream(self, **asked: Any) -> openai.Stream[Any]:
        return client(self.address).completions.create(
            model=self.name, prompt="hello", max_tokens=30, temperature=0, stream=True, **asked
        )

    def status(self) -> int:
        """Wait for the end. Returns the exit status."""
        status = self.process.wait(60)
        self._reader.join()
        return status


@pytest.fixture
def started(artifact: Path) -> Iterator[Any]:
    servers: list[Server] = []

    def start(*options: str) -> Server:
        servers.append(Server(artifact, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.status()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_signal_running_answers_end_normally(started: Any, number: signal.Signals) -> None:
    server = started()
    whole = "".join(part.choices[0].text for part in server.stream())
    stream = server.stream()
    text = next(stream).choices[0].text
    server.process.send_signal(number)
    wait_until(lambda: not reachable(server.address))  # it accepts no new connections
    assert text + "".join(part.choices[0].text for part in stream) == whole
    assert server.status() == 0 and not any("Traceback" in line for line in server.lines)


def test_answers_that_take_longer_than_the_grace_fail(started: Any) -> None:
    server = started("--grace", "0.2")
    stream = server.stream()
    next(stream)
    server.process.terminate()
    with pytest.raises(openai.APIError, match="shutting down"):
        list(stream)
    assert server.status() == 0 and not any("Traceback" in line for line in server.lines)


def test_a_second_signal_ends_the_server_at_once(started: Any) -> None:
    server = started()
    stream = server.stream()
    next(stream)
    server.process.terminate()
    wait_until(lambda: not reachable(server.address))
    server.process.terminate()
    with pytest.raises(openai.APIError, match="shutting down"):
        list(stream)
    assert server.status() == 0


def reachable(address: str) -> bool:
    host, port = address.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def refused(*arguments: str, code: str = "") -> str:
    code += "\nimport sys\nfrom edgellama.__main__ import main\nsys.exit(main(['serve', *sys.argv[1:]]))"
    done = run_child("-c", code, *arguments, status=2)
    assert done.stdout == ""
    return done.stderr


def test_invalid_options_are_refused(artifact: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"error: cannot listen on 127.0.0.1 port {port}" in refused(str(artifact), "--port", str(port))
    assert "error: cannot listen on" in refused(str(artifact), "--port", "70000")
    assert "error: --queue is -1" in refused(str(artifact), "--queue", "-1")
    for grace in ("nan", "inf", "-1", "1e300"):
        assert f"error: --grace is {float(grace)}; needed: 0 to" in refused(str(artifact), f"--grace={grace}")
    assert "error: --tool-parser is 'x'; needed: one of mistral" in refused(str(artifact), "--tool-parser", "x")
    for connections in ("0", "99999999"):
        assert f"error: --connections is {connections}; needed: 1 to" in refused(
            str(artifact), f"--connections={connections}"
        )
    assert "error: the API key is empty" in refused(str(artifact), "--api-key", " ")
    assert "no such folder" in refused(str(artifact / "none"), "--port", "0")
    missing = "import sys\nsys.modules['uvicorn'] = None"
    assert (
        'serving needs the library uvicorn, which is not installed. Install the extra: pip install "edgellama[serve]"'
        in refused(str(artifact), code=missing)
    )
