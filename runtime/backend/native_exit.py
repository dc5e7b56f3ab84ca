"""A clean end of the process while daemon threads still use a model."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from pathlib import Path

MAPS = Path("/proc/self/maps")


def native_calls(owner: object) -> threading.Lock:
    """Return a lock to hold around calls of `owner` into native code; one thread at a time makes such calls.

    The end of the interpreter waits for the running call, and later calls never begin. They would use objects and
    libraries that are gone, and a thread that returns to an interpreter that is gone crashes the process.

    It is a plain lock, since Ctrl-C cannot interrupt between taking it and the block that releases it.
    """
    lock = threading.Lock()
    weakref.finalize(owner, _shut, lock, os.getpid())  # when the owner is collected, at the latest when Python ends
    return lock


def _shut(lock: threading.Lock, process: int) -> None:
    if os.getpid() == process:  # a forked child has no such thread, so nothing may ever release its copy of the lock
        lock.acquire()


def keep_libraries(folder: str = "/mindspore_lite/") -> None:
    """Keep the loaded libraries whose path contains `folder` in memory until the process is gone.

    MindSpore Lite unloads its plugin when the process ends. If a daemon thread still holds a model then, the model's
    workers look for work for a moment after each pass, in code that would be unloaded. Does nothing on systems without
    Linux's /proc/self/maps.
    """
    if not MAPS.is_file():
        return
    mapped = {line.partition("/")[2] for line in MAPS.read_text(errors="surrogateescape").splitlines() if ".so" in line}
    for path in ("/" + rest for rest in mapped if folder in "/" + rest):
        with contextlib.suppress(OSError):  # the file was replaced after it was loaded
            ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NODELETE | os.RTLD_LAZY)
