"""Locks of the operating system (flock). The kernel releases them when the process ends, also if it is killed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgellama.errors import UserError

# Some network file systems have no locks. Exports to them still have folders of their own, and the last one wins.
UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. The file is created, and deleted at the end.

    Args:
        path: a file that nothing else uses
        what: for the message: the folder that the lock protects

    Raises UserError at once if another process holds the lock.
    """
    descriptor = _lock_file(path, what)
    try:
        with contextlib.suppress(OSError):  # for the message of the process that comes second; the lock holds without
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # before the lock is released: nobody else can hold this file now
        os.close(descriptor)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that this process has made, so that no other process deletes it as a leftover."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        take(descriptor)
        yield
    finally:
        os.close(descriptor)


def is_abandoned(folder: Path) -> bool:
    """Return whether no process holds the lock of the folder. False if that cannot be known."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return take(descriptor) is True
    finally:
        os.close(descriptor)


def take(descriptor: int) -> bool | None:
    """Try to lock an open file. Return False if another process holds the lock, None if there are no locks here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    return True


def _lock_file(path: Path, what: str) -> int:
    """Return the descriptor of the locked file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            if take(descriptor) is False:
                owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
                process = f" (process {owner})" if owner.isdigit() else ""
                raise UserError(
                    f"another command{process} is writing {what} at the moment, and nothing was changed. "
                    "Wait until it has finished, or choose another folder: OUT=artifacts/name"
                )
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner deleted the file after it was opened here: try the new one


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
