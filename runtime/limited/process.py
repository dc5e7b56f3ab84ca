"""A process for input of strangers: starts it, talks to it, and replaces it when it has exceeded a limit."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ..errors import UserError
from .worker import ERROR_CHARACTERS, LENGTH_BYTES, REFUSED, TEXT, TOO_LONG, framed

WAIT_SECONDS = 30.0  # on a machine that is busy with other work
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Limits:
    """What the process may use for one request.

    Attributes:
        seconds: of processor time.
        memory: bytes in addition to those of the idle process.
        characters: of an answer.
    """

    seconds: float
    memory: int
    characters: int


class RefusedError(Exception):
    """The input is wrong; the text says why."""


class LimitError(Exception):
    """A limit is exceeded; the text says which, as in "it takes more than 2 seconds of processor time"."""


class LimitedProcess:
    """A process that does one job of `worker.py`. It starts at the first call, and anew after it has ended.

    Thread-safe: calls wait for each other. After a fork each process starts its own.
    """

    def __init__(self, job: str, limits: Limits, **setup: Any) -> None:
        """Args:
        job: a name of JOBS.
        limits: of each request.
        setup: what the job needs at its start, as JSON.
        """
        self._limits = limits
        self._setup = {"job": job, "path": sys.path, **asdict(limits), **setup}
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._owner = os.getpid()

    def start(self) -> None:
        """Start the process, which prepares the job. Does not wait for it."""
        with self._own_lock():
            self._running()

    def prepare(self) -> None:
        """Wait until the job is prepared.

        Raises:
            RefusedError, LimitError: it cannot be prepared.
            UserError: the process cannot start.
        """
        with self._own_lock():
            self._prepared()

    def ask(self, request: Any) -> str:
        """Return the text of the answer.

        Args:
            request: plain data; mappings become dictionaries.

        Raises:
            RefusedError: the request, or what the job prepares, is wrong.
            LimitError: a limit is exceeded.
            UserError: the process cannot start.
        """
        data = _to_json(request)
        with self._own_lock():
            return self._ask(self._prepared(), data)

    def close(self) -> None:
        """End the process, if it runs."""
        with self._own_lock():
            self._end()

    def _own_lock(self) -> threading.Lock:
        if self._owner != os.getpid():  # a fork: the process, and whoever held the lock, belong to the parent
            self._owner, self._lock, self._child = os.getpid(), threading.Lock(), None
        return self._lock

    def _running(self) -> _Child:
        if self._child is None:
            self._child = _Child(self._setup)
        return self._child

    def _prepared(self) -> _Child:
        child = self._running()
        if not child.is_prepared:
            try:
                self._ask(child, b"")
                child.is_prepared = True
            finally:
                if not child.is_prepared:
                    self._end()
        return child

    def _ask(self, child: _Child, request: bytes) -> str:
        answer = None
        try:
            answer = child.ask(request, self._limits)
        finally:
            if answer is None:  # also after KeyboardInterrupt: the answer would be that of the next request
                self._end()
        if answer is None:
            raise LimitError(child.reason(self._limits))
        kind, text = answer
        if kind == TEXT:
            return text
        if kind == REFUSED:
            raise RefusedError(text)
        characters, memory = f"{self._limits.characters:,} characters", f"{self._limits.memory >> 20} MiB of memory"
        raise LimitError(f"it writes more than {characters}" if kind == TOO_LONG else f"it needs more than {memory}")

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class _Child:
    """One running process.

    Attributes:
        is_prepared: whether it has answered the setup.
    """

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self.is_prepared = False
        self._process = _start()
        self.end = weakref.finalize(self, _end, self._process, os.getpid())
        self._pipes = self._process.stdin, self._process.stdout
        self._unsent = bytearray(framed(json.dumps(setup).encode()))
        self._send()

    def ask(self, request: bytes, limits: Limits) -> tuple[int, str] | None:
        """Send a request, or nothing if it is empty, and return the answer; None if there is none."""
        deadline = time.monotonic() + WAIT_SECONDS
        self._unsent += framed(request) if request else b""
        size = int.from_bytes(self._receive(LENGTH_BYTES, deadline), "little")
        answer = self._receive(size, deadline) if size <= 1 + 4 * max(limits.characters, ERROR_CHARACTERS) else b""
        if not answer:
            return None
        return answer[0], answer[1:].decode("utf-8", "surrogatepass")

    def reason(self, limits: Limits) -> str:
        """Why there was no answer. The process has ended."""
        if self._process.returncode == -signal.SIGPROF:
            return f"it takes more than {limits.seconds:g} seconds of processor time"
        if self._process.returncode == -signal.SIGKILL:  # by `_end`
            return f"it gives no answer within {WAIT_SECONDS:g} seconds"
        memory = f"{limits.memory >> 20} MiB of memory"
        return f"it ended its process (status {self._process.returncode}), which may use {memory}"

    def _receive(self, size: int, deadline: float) -> bytes:
        """Return `size` bytes; none if the process ends or is late."""
        pipe = self._process.stdout.fileno()  # type: ignore[union-attr]
        received = bytearray()
        while len(received) < size:
            if not self._wait(deadline):
                return b""
            try:
                data = os.read(pipe, min(size - len(received), 1 << 20))
            except BlockingIOError:
                continue
            if not data:
                self._process.wait(WAIT_SECONDS)
                return b""
            received += data
        return bytes(received)

    def _wait(self, deadline: float) -> bool:
        """Wait for the answer while sending the request. False if it is late."""
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)  # type: ignore[arg-type]
        if self._unsent:
            poll.register(self._process.stdin, select.POLLOUT)  # type: ignore[arg-type]
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        self._send()
        return bool(ready)

    def _send(self) -> None:
        """Write as much of the unsent bytes as the pipe takes now."""
        while self._unsent:
            try:
                sent = os.write(self._process.stdin.fileno(), self._unsent[: 1 << 16])  # type: ignore[union-attr]
            except BlockingIOError:
                return
            except BrokenPipeError:  # reading the answer finds the end of the process
                self._unsent.clear()
                return
            del self._unsent[:sent]


def _start() -> subprocess.Popen[bytes]:
    if not sys.executable or getattr(sys, "frozen", False):
        raise UserError(
            "chat templates and grammars are computed in a child process of Python, and sys.executable is "
            f"{sys.executable!r}. Set it to the path of a Python interpreter, or use plain text without a grammar"
        )
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(WORKER)], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0
        )
    except OSError as error:
        raise UserError(
            f"the child process that renders the chat template cannot start ({error}). Try again"
        ) from error
    for end in (process.stdin, process.stdout):
        os.set_blocking(end.fileno(), False)  # type: ignore[union-attr]
    return process


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End the process and close its pipes. In a fork of its owner, only close the pipes."""
    if owner == os.getpid():
        process.kill()
        process.wait()
    else:
        process.returncode = 0  # not a child of this process
    for pipe in (process.stdin, process.stdout):
        pipe.close()  # type: ignore[union-attr]


def _to_json(variables: Any) -> bytes:
    """The request as JSON. Raises RefusedError for a value that JSON does not have."""
    try:
        return json.dumps(variables, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise RefusedError(
            f"a variable is not plain data ({reason}). Needed: texts, numbers, booleans, None, lists and dictionaries"
        ) from error


def _plain(value: Any) -> Any:
    """A value of another type that means the same in JSON."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{type(value).__name__}: {str(value)[:80]}")
