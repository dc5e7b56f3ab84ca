"""What has to hold when Python ends while threads still use a model: daemon threads are left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from pathlib import Path

MAPS = Path("/proc/self/maps")


def native_calls(owner: object) -> threading.Lock:
    """A lock to hold around `owner`'s calls into native code, which one thread makes at a time.

    The interpreter's end waits for the call that runs, and later ones never begin: they would find objects and
    libraries taken down, and a thread that comes back to an interpreter which is gone ends the process with a crash.
    A plain lock, for Ctrl-C cannot come between its being taken and the block that releases it.
    """
    lock = threading.Lock()
    weakref.finalize(owner, _shut, lock, os.getpid())  # with its owner, at the latest when Python ends
    return lock


def _shut(lock: threading.Lock, process: int) -> None:
    if os.getpid() == process:  # a forked child has no such thread, and its copy of the lock may never be released
        lock.acquire()


def keep_libraries(folder: str = "/mindspore_lite/") -> None:
    """Have the loaded libraries whose path holds `folder` stay in memory until the process is gone.

    MindSpore Lite unloads its plugin when the process ends. Workers of a model that still exists then (a daemon thread
    holds it) look for work for a moment after each pass, in code that is no longer there. Does nothing on systems
    without Linux's maps.
    """
    if not MAPS.is_file():
        return
    mapped = {line.partition("/")[2] for line in MAPS.read_text(errors="surrogateescape").splitlines() if ".so" in line}
    for path in ("/" + rest for rest in mapped if folder in "/" + rest):
        with contextlib.suppress(OSError):  # replaced since it was loaded: not to be had by its name
            ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NODELETE | os.RTLD_LAZY)
