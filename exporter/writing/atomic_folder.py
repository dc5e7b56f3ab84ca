"""Writes a folder completely or not at all.

    with claimed(out, source) as claim:  # before any work: checks and locks `out`
        ...
        with claim.written() as partial:  # an empty folder, which replaces `out` at the end
            ...

The new folder and the old one change places in one step (renameat2 with RENAME_EXCHANGE), so that a reader, or the
state after a kill, has the old one or the new one. File systems that cannot do this rename twice. The next command
with the same `out` undoes the first of the two renames if the process was killed between them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgellama.errors import UserError, explain_os_error

from .folder_lock import is_abandoned, locked, locked_folder
from .replaceable import added_files, checked, is_artifact

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h
NOT_HERE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}  # the file system or a sandbox has no exchange
LONGEST_NAME = 200  # bytes of a folder's name that the names of its temporary files contain; a name has up to 255


@dataclass(frozen=True)
class Claim:
    """A folder that this process may write, until the block of `claimed` ends.

    Attributes:
        out: as the user named it
        real: the same with symlinks followed
        sources: what the command reads
    """

    out: Path
    real: Path
    sources: tuple[Path, ...]

    @contextmanager
    def written(self) -> Iterator[Path]:
        """Yield an empty folder beside the real one.

        The folder replaces the real one if the block succeeds, and is deleted if the block raises. Raises UserError if
        the system cannot write it, or if `out` has become something that must not be replaced.
        """
        partial = self.real.with_name(_temporary_name(self.real, "partial"))
        try:
            partial.mkdir()
            with locked_folder(partial):
                yield partial
                self._commit(partial)
        except OSError as error:
            place = f"{self.out} could not be written: " if error.filename is None else ""
            raise UserError(f"{place}{explain_os_error(error)}") from error
        finally:
            delete(partial)  # after the exchange it is the old folder

    def _commit(self, partial: Path) -> None:
        checked(self.out, self.sources)  # somebody may have put something there in the meantime
        if not self.real.exists():
            partial.rename(self.real)
            return
        if is_artifact(self.real):
            for name in added_files(self.real):
                keep(self.real / name, partial / name)
        if not exchange(partial, self.real):
            rename_twice(partial, self.real)


@contextmanager
def claimed(out: Path, *sources: Path) -> Iterator[Claim]:
    """Check that a command may write the folder `out`, and keep others from writing it while the block runs.

    Deletes what killed commands with the same `out` have left. Creates the parent folders; they are deleted at the end
    if they are empty.

    Args:
        out: the folder
        sources: what the command reads; it must not be inside `out`

    Raises UserError if `out` must not be replaced (replaceable.py), or if another process is writing it.
    """
    real = checked(out, sources)
    missing = [folder for folder in real.parents if not folder.exists()]
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        with locked(real.with_name(f".{_label(real)}.edgellama.lock"), str(out)):
            recover(real)
            yield Claim(out, checked(out, sources), sources)
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


def exchange(new: Path, old: Path) -> bool:
    """Let two folders change places in one step. Return False if this system or file system cannot do this."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), ctypes.c_uint(RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in NOT_HERE:
        return False
    raise OSError(code, os.strerror(code), str(old))


def rename_twice(new: Path, old: Path) -> None:
    """Put `new` in the place of `old`, in two steps. After a kill between them, `recover` restores `old`."""
    aside = old.with_name(_temporary_name(old, "old"))
    try:
        old.rename(aside)
        new.rename(old)
    except BaseException:
        if not old.exists() and aside.exists():
            aside.rename(old)
        raise
    delete(aside)


def recover(real: Path) -> None:
    """Delete what killed commands have left beside the folder `real`. Restore `real` if it was moved aside.

    The caller holds the lock of `real`. Folders that a process still uses stay.
    """
    pattern = re.compile(re.escape(f".{_label(real)}.edgellama-") + r"[0-9a-f]{16}\.(partial|old)")
    left = [path for path in real.parent.iterdir() if pattern.fullmatch(path.name) and is_abandoned(path)]
    aside = sorted((path for path in left if path.suffix == ".old"), key=lambda path: path.stat().st_ctime_ns)
    if aside and not real.exists():
        aside[-1].rename(real)
        left.remove(aside[-1])
    for path in left:
        delete(path)


def keep(file: Path, to: Path) -> None:
    """Put a file that a user has added to the old folder into the new one. A file that is there already stays."""
    if os.path.lexists(to):
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, to, follow_symlinks=False)
    except OSError:  # the file system has no hard links, or the file belongs to somebody else
        shutil.copy2(file, to, follow_symlinks=False)


def delete(folder: Path) -> None:
    """Delete a folder with its content, also if it is read-only. What cannot be deleted stays, without an error."""
    for path, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            Path(path).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _temporary_name(real: Path, state: str) -> str:
    return f".{_label(real)}.edgellama-{secrets.token_hex(8)}.{state}"


def _label(real: Path) -> str:
    """Return the part of the temporary files' names that tells which folder they belong to."""
    name = os.fsencode(real.name)
    return real.name if len(name) <= LONGEST_NAME else hashlib.sha256(name).hexdigest()
