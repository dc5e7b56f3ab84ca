"""Runs a case in a forked child: imports are made once, and a crash, a hang or lost memory belongs to one case."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

from torture.outcomes import KINDS, Outcome, reported

SECONDS = 20.0  # of one case, unless the class says more: a hang
MEMORY = 4 << 30  # bytes of address space that a case may add; beyond it a MemoryError ends it, which is a traceback


def in_child(function: Callable[[], Outcome], names: Collection[str] = (), seconds: float = SECONDS) -> Outcome:
    """Run a case in a child of this process.

    Errors are told apart as the command line does it (`edgellama.__main__`): what it would print as one line is a clear
    or an unclear error, everything else a traceback.

    Args:
        function: uses the product, and returns the outcome if there was no error: harmless or silent.
        names: files or fields, one of which an error must name.
        seconds: the time limit.
    """
    import edgellama.__main__  # noqa: F401  (before the fork: once for all cases)

    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as stderr:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _run(function, names, writing, stderr.fileno())
        os.close(writing)
        text = _read(reading, time.monotonic() + seconds)
        os.close(reading)
        late = text is None
        if late:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        stderr.seek(0)
        native = stderr.read().decode(errors="replace")[-2000:]
    if late:
        return Outcome("hang", f"no result after {seconds:g} s. {native}")
    kind, _, detail = (text or "").partition("\0")
    if kind in KINDS:
        return Outcome(kind, detail)
    return Outcome("crash", f"the child ended with {status}. {native}")


def result_of_child(function: Callable[[], Any]) -> Any:
    """Return the result of `function`, a JSON value, computed in a child of this process. Raises RuntimeError."""
    outcome = in_child(lambda: Outcome("harmless", json.dumps(function())))
    if outcome.kind != "harmless":
        raise RuntimeError(f"{outcome.kind}: {outcome.detail}")
    return json.loads(outcome.detail)


def _read(descriptor: int, end: float) -> str | None:
    """Return everything that the child writes before it closes the pipe; None if that takes until `end`."""
    found = b""
    while (left := end - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            block = os.read(descriptor, 1 << 16)
            if not block:
                return found.decode(errors="replace")
            found += block
    return None


def _run(function: Callable[[], Outcome], names: Collection[str], writing: int, stderr: int) -> NoReturn:
    """The child: never returns, so that nothing of the parent runs twice."""
    try:
        os.dup2(stderr, 2)
        os.dup2(stderr, 1)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        outcome = _outcome(function, names)
        data = f"{outcome.kind}\0{outcome.detail}".encode(errors="replace")
        while data:
            data = data[os.write(writing, data) :]
        os._exit(0)
    finally:
        os._exit(1)


def _outcome(function: Callable[[], Outcome], names: Collection[str]) -> Outcome:
    from edgellama.__main__ import error_message

    try:
        return function()
    except BaseException as error:
        message = error_message(error)
        if message is not None:
            return reported(message, names)
        return Outcome("traceback", "".join(traceback.format_exception(error)))
