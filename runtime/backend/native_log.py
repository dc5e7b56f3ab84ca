"""Captures what native libraries print, and shows it only when something fails.

MindSpore Lite prints ERROR lines on standard error while it loads a correct graph. They go to file descriptor 2, past
Python, so they are captured there.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from ..errors import UserError

TAIL_LINES = 12
# File descriptor 2 belongs to the whole process: two captures at once would restore it in the wrong order.
_lock = threading.RLock()
# A fork waits until no other thread captures, that is, loads a model. In the middle of it the child would get a
# redirected standard error, and locks of MindSpore Lite that no thread releases.
os.register_at_fork(
    before=lambda: _lock.acquire(), after_in_parent=lambda: _lock.release(), after_in_child=lambda: _lock.release()
)


@contextmanager
def native_log_on_failure(
    what: str, *, show: bool = False, explain: Callable[[str], str | None] = lambda log: None
) -> Iterator[None]:
    """Capture what native code writes to standard error in the block, and drop it if the block succeeds.

    Python's own `sys.stderr` still reaches the terminal (progress lines). If the block raises an exception that is no
    RuntimeError, everything captured is written to standard error.

    Args:
        what: begins the message of an error.
        show: capture nothing; useful to look into a crash of native code.
        explain: returns the meaning of a log in a sentence, or None.

    Raises:
        UserError: the block raised a RuntimeError. The message is "<what>: <meaning or error>" and the last lines
            captured.
    """
    if show:
        yield
        return
    with _lock, tempfile.TemporaryFile() as caught:
        try:
            with _stderr_into(caught.fileno()):
                yield
        except RuntimeError as error:
            log = _text(caught)
            meaning = explain(log)
            raise UserError(f"{what}: {meaning or error}{_tail(log)}") from error
        except BaseException:
            sys.stderr.write(_text(caught))
            raise


@contextmanager
def _stderr_into(target: int) -> Iterator[None]:
    try:
        saved = os.dup(2)
    except OSError:  # no standard error at all (a daemon): nothing to redirect
        yield
        return
    python_stderr = sys.stderr
    replaced = None
    try:
        if _is_descriptor_2(python_stderr):
            python_stderr.flush()
            replaced = os.fdopen(os.dup(saved), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
            sys.stderr = replaced
        os.dup2(target, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        if replaced is not None:
            if sys.stderr is replaced:
                sys.stderr = python_stderr
            replaced.close()


def _is_descriptor_2(stream: object) -> bool:
    try:
        return stream.fileno() == 2  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):  # None, a StringIO, a closed stream
        return False


def _text(caught: IO[bytes]) -> str:
    caught.seek(0)
    return caught.read().decode("utf-8", "replace")


def _tail(log: str) -> str:
    lines = log.strip().splitlines()
    if not lines:
        return ""
    left_out = len(lines) - TAIL_LINES
    head = [f"  ({left_out} earlier lines left out)"] if left_out > 0 else []
    return "\n".join(["\nThe native log ends:", *head, *("  " + line for line in lines[-TAIL_LINES:])])
