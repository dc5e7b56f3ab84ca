"""Copies of files in private memory on huge pages: whatever happens to a file later, its copy stays.

A mapped file follows every change of the file, and a read behind its new end ends the process (SIGBUS). A copy also
reads faster: huge pages need few address translations. Threads copy while the caller loads other things.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import UserError
from . import hash_cache
from .files import REMEDY, WrongFileError, check_hash, wrong_size
from .json_reader import kind_of

HUGE_PAGE = 2 << 20  # bytes, on x86-64 and on aarch64 with pages of 4 KB
BLOCK = 2 << 20  # bytes that a thread reads at once
READERS = 2  # threads; more are no faster on two processors, and a disk has work for both


def private_memory(size: int, *, huge: bool = True) -> np.ndarray:
    """Return zeros, uint8 [size], in memory of this process alone. They begin at a multiple of a page.

    Args:
        size: bytes, at least 1.
        huge: use huge pages if the system has them. Writing one byte then takes 2 MB of memory.

    Raises:
        OSError: there is not enough memory or address space.
    """
    huge = huge and size >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE")
    reserved = -(-size // HUGE_PAGE) * HUGE_PAGE + HUGE_PAGE if huge else size
    memory = mmap.mmap(-1, reserved, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, np.uint8)
    if huge:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        array = array[-array.ctypes.data % HUGE_PAGE :]
    return array[:size]


class PrivateCopy:
    """A file that threads copy to private memory. Use it in a `with` block: its end stops them."""

    def __init__(
        self,
        path: Path,
        size: int | None = None,
        *,
        sha256: str | None = None,
        known: list[str] | None = None,
        remedy: str = REMEDY,
    ) -> None:
        """Begin to copy.

        Args:
            path: a regular file.
            size: the bytes that it must have; None takes any number.
            sha256: the hash that the copied bytes must have; None does not hash them.
            known: entries of the hash cache that replace hashing; None takes those of this machine.
            remedy: ends the messages of errors.

        Raises:
            WrongFileError: it is no regular file, or has another size.
            UserError: it cannot be read.
            OSError: there is not enough memory.
        """
        self.path, self._remedy, self._sha256 = path, remedy, sha256
        self._stopped = False
        self._file = self._open()
        try:
            self._began, self._before = self._settled()
            if size is not None and self._before.st_size != size:
                raise wrong_size(path, self._before.st_size, size)
            if self._before.st_size == 0:
                raise UserError(f"{path}: 0 bytes. {remedy}")
            if sha256 is not None:
                known = hash_cache.remembered() if known is None else known
                if hash_cache.key(self._before, sha256) in known:
                    self._sha256 = None
            self._memory = private_memory(self._before.st_size)
        except BaseException:
            os.close(self._file)
            raise
        self._pool = ThreadPoolExecutor(READERS, "copy")
        self._parts: list[Future[str]] = []
        # Hashing needs the blocks in order, so it takes one thread.
        readers = READERS if self._sha256 is None and self._before.st_size > BLOCK else 1
        with contextlib.suppress(RuntimeError):  # no address space for a thread: `wait` copies
            for first in range(readers):
                self._parts.append(self._pool.submit(self._copy, first * BLOCK, readers * BLOCK))

    def __enter__(self) -> PrivateCopy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._pool.shutdown()
        os.close(self._file)

    def wait(self) -> np.ndarray:
        """Return the bytes of the file, uint8 [size], read-only.

        Raises:
            WrongFileError: the file was changed meanwhile, or has another hash.
            UserError: the file cannot be read.
        """
        try:
            digests = [part.result() for part in self._parts] if self._parts else [self._copy(0, BLOCK)]
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}). {self._remedy}") from error
        after = os.fstat(self._file)
        if hash_cache.key(after, "") != hash_cache.key(self._before, ""):
            raise self._changed()
        if self._sha256 is not None:
            check_hash(self.path, digests[0], self._sha256)
            if hash_cache.settled(self._before, self._began):
                hash_cache.remember([hash_cache.key(self._before, self._sha256)])
        self._memory.flags.writeable = False
        return self._memory

    def _open(self) -> int:
        try:
            # O_NONBLOCK: opening a fifo must not wait for a writer.
            return os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}). {self._remedy}") from error

    def _settled(self) -> tuple[float, os.stat_result]:
        """Return the time and the file's stat. Waits until a change of the file is sure to change its stat."""
        began, found = time.time(), os.fstat(self._file)
        if not hash_cache.settled(found, began):
            time.sleep(hash_cache.SETTLED)
            began, found = time.time(), os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            raise WrongFileError(
                "not a file", f"{self.path}: {kind_of(found.st_mode)}; needed: a regular file. {self._remedy}"
            )
        return began, found

    def _copy(self, first: int, step: int) -> str:
        """Copy the blocks that begin at first, first + step, ... Return the SHA-256 of the copied bytes if needed."""
        state = hashlib.sha256()
        view = self._memory.data
        for begin in range(first, len(view), step):
            at, end = begin, min(begin + BLOCK, len(view))
            while at < end and not self._stopped:
                count = os.preadv(self._file, [view[at:end]], at)
                if count == 0:
                    raise self._changed()
                at += count
            if self._stopped:
                break
            if self._sha256 is not None:
                state.update(view[begin:end])
        return state.hexdigest()

    def _changed(self) -> WrongFileError:
        return WrongFileError(
            "damaged", f"{self.path}: was changed while it was loaded. Load it again when nothing writes to it"
        )


def copied(path: Path, remedy: str = REMEDY) -> np.ndarray:
    """Return the bytes of a file in private memory, uint8 [size], read-only. Raises the errors of PrivateCopy."""
    with PrivateCopy(path, remedy=remedy) as copy:
        return copy.wait()


def mapped(path: Path, remedy: str = REMEDY) -> np.ndarray:
    """Map a file and return its bytes, uint8 [size], read-only: all processes that map it share one copy in memory.

    The bytes change with the file, and reading behind its end, if it becomes shorter, ends the process.

    Raises:
        UserError: the file cannot be read, or is empty.
    """
    try:
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). {remedy}") from error
    except ValueError as error:  # an empty file
        raise UserError(f"{path}: 0 bytes. {remedy}") from error
