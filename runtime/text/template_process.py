"""The process that renders a chat template: starts it, talks to it, and replaces it when it has exceeded a limit."""

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
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ..errors import UserError
from .template_worker import LENGTH_BYTES, REFUSED, TEXT, TOO_LONG, framed

CHARACTERS = 16 << 20  # of a rendered text; a context of 128k tokens holds about a megabyte
SECONDS = 2.0  # of processor time; ordinary templates need milliseconds
WAIT_SECONDS = 30.0  # on a machine that is busy with other work
MEMORY = 256 << 20  # bytes in addition to those of an idle process
WORKER = Path(__file__).with_name("template_worker.py")


class TemplateProcess:
    """A process that has compiled one template. It starts at the first call, and anew after it has ended.

    Thread-safe: calls wait for each other. After a fork each process starts its own.
    """

    def __init__(self, template: str) -> None:
        """template: Jinja source."""
        self.template = template
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._owner = os.getpid()

    def start(self) -> None:
        """Start the process, which begins to compile the template. Does not wait for it."""
        with self._own_lock():
            self._running()

    def compile(self) -> None:
        """Wait until the template is compiled. Raises UserError with the reason if it is not valid."""
        with self._own_lock():
            self._compiled()

    def render(self, variables: Mapping[str, Any]) -> str:
        """Return the text that the template writes.

        Args:
            variables: of the template: texts, numbers, booleans, None, lists and mappings.

        Raises:
            UserError: the template is not valid, refuses the variables, fails or exceeds a limit, or a variable has
                another type.
        """
        request = _to_json(variables)
        with self._own_lock():
            child = self._compiled()
            kind, text = self._ask(child, request)
            if kind != TEXT:
                raise _error(kind, text)
            return text

    def _own_lock(self) -> threading.Lock:
        if self._owner != os.getpid():  # a fork: the process, and whoever held the lock, belong to the parent
            self._owner, self._lock, self._child = os.getpid(), threading.Lock(), None
        return self._lock

    def _running(self) -> _Child:
        if self._child is None:
            self._child = _Child(self.template)
        return self._child

    def _compiled(self) -> _Child:
        child = self._running()
        if not child.is_compiled:
            kind, text = self._ask(child, b"")
            if kind != TEXT:
                self._end()
                raise UserError(text if kind == REFUSED else _excess(kind, text))
            child.is_compiled = True
        return child

    def _ask(self, child: _Child, request: bytes) -> tuple[int, str]:
        """Return the answer: its kind and its text. A process that does not answer within its limits is replaced."""
        answer = None
        try:
            answer = child.ask(request)
        finally:
            if answer is None:  # also after KeyboardInterrupt: the answer would be that of the next request
                self._end()
        if answer is None:
            return 0, child.reason()
        return answer

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class _Child:
    """One running process.

    Attributes:
        is_compiled: whether the template is compiled.
    """

    def __init__(self, template: str) -> None:
        self.is_compiled = False
        self._process = _start()
        self.end = weakref.finalize(self, _end, self._process, os.getpid())
        self._pipes = self._process.stdin, self._process.stdout
        limits = {"memory": MEMORY, "seconds": SECONDS, "characters": CHARACTERS}
        self._unsent = bytearray(framed(json.dumps({"path": sys.path, "template": template, **limits}).encode()))
        self._send()

    def ask(self, request: bytes) -> tuple[int, str] | None:
        """Send a request, or nothing if it is empty, and return the answer; None if there is none."""
        deadline = time.monotonic() + WAIT_SECONDS
        self._unsent += framed(request) if request else b""
        answer = self._receive(int.from_bytes(self._receive(LENGTH_BYTES, deadline), "little"), deadline)
        if not answer:
            return None
        return answer[0], answer[1:].decode("utf-8", "surrogatepass")

    def reason(self) -> str:
        """Why there was no answer. The process has ended."""
        if self._process.returncode == -signal.SIGPROF:
            return f"takes more than {SECONDS:g} seconds of processor time"
        if self._process.returncode == -signal.SIGKILL:  # by `_end`
            return f"gives no answer within {WAIT_SECONDS:g} seconds"
        return f"ends its process (status {self._process.returncode}), which may use {MEMORY >> 20} MiB"

    def _receive(self, size: int, deadline: float) -> bytes:
        """Return `size` bytes; none if the process ends, is late, or announces more than it may send."""
        pipe = self._process.stdout.fileno()  # type: ignore[union-attr]
        received = bytearray()
        if size > 1 + 4 * CHARACTERS:
            return b""
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
            f"a child process of Python renders the chat template, and sys.executable is {sys.executable!r}. Set it to "
            "the path of a Python interpreter, or give the prompt as plain text"
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


def _excess(kind: int, reason: str) -> str:
    """What a template does that is too much, for an answer without text."""
    if kind == TOO_LONG:
        return f"it writes more than {CHARACTERS:,} characters"
    return f"it {reason}" if kind == 0 else f"it needs more than {MEMORY >> 20} MiB of memory"


def _error(kind: int, text: str) -> UserError:
    """The error of a rendering that gave no text."""
    if kind == REFUSED:
        return UserError(f"the chat template refuses these messages: {text}")
    return UserError(
        f"the chat template refuses these messages: {_excess(kind, text)}. Correct the template "
        "(chat_template.jinja), or give the prompt as plain text"
    )


def _to_json(variables: Mapping[str, Any]) -> bytes:
    """The variables as JSON. Raises UserError for a value that JSON does not have."""
    try:
        return json.dumps(variables, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(
            f"the chat template refuses these messages: a variable is not plain data ({reason}). Needed: texts, "
            "numbers, booleans, None, lists and dictionaries"
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
