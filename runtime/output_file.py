"""Writes the files that a user names: reports, plots, sessions, logs.

A file of the same kind is replaced; any other file stays, and the command reports it before its work begins. The new
file appears complete or not at all. A link stays a link: its target is replaced. A device or a pipe, such as /dev/null,
is written to.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError, explain_os_error, os_remedy

REPORT_LIMIT = 1 << 26  # bytes; a report has some 10 kB


def check(path: Path, ours: Callable[[BinaryIO], bool], kind: str) -> None:
    """Check that a command may write a file: there is none, or an empty one, or one of the same kind.

    Args:
        path: of the file
        ours: returns whether an open file is of the kind that the command writes
        kind: what the command writes, in words

    Raises UserError if the file must not be replaced, or cannot be written.
    """
    with _explained(path):
        real = Path(os.path.realpath(path))
        try:
            mode = real.stat().st_mode
        except FileNotFoundError:
            _check_parent(path, real.parent)
            return
        if stat.S_ISDIR(mode):
            raise UserError(f"{path}: is a folder, and {kind} is a file. Give a file")
        if stat.S_ISREG(mode):
            with real.open("rb") as file:
                if os.fstat(file.fileno()).st_size and not ours(file):
                    raise UserError(
                        f"{path}: exists and is not {kind}, so it is not overwritten. Give another file, or delete it"
                    )
            _check_parent(path, real.parent)


@contextmanager
def replaced(path: Path, ours: Callable[[BinaryIO], bool], kind: str) -> Iterator[BinaryIO]:
    """Yield an open file whose content becomes that of `path` if the block succeeds. The arguments are `check`'s.

    Raises UserError as `check` does, and if the file cannot be written.
    """
    check(path, ours, kind)
    with _explained(path):
        real = Path(os.path.realpath(path))
        if real.exists() and not real.is_file():
            with real.open("wb") as device:
                yield device
            return
        partial = real.with_name(f".edgellama-{secrets.token_hex(8)}")
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if real.exists():
                partial.chmod(stat.S_IMODE(real.stat().st_mode))
            check(path, ours, kind)  # somebody may have put something there in the meantime
            partial.replace(real)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()


def check_report(path: Path) -> None:
    """Check that a command may write a JSON report to `path`. Raises UserError as `check` does."""
    check(path, is_report, "a report of this command")


def write_report(path: Path, value: Any) -> None:
    """Write a JSON report. Raises UserError as `replaced` does."""
    with replaced(path, is_report, "a report of this command") as file:
        file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def is_report(file: BinaryIO) -> bool:
    """Return whether a file is a JSON report of ours: an object with a version and with our versions or artifact."""
    try:
        value = json.loads(file.read(REPORT_LIMIT))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and (
        value.keys() >= {"schema_version", "artifact", "machine"} or value.keys() >= {"format_version", "answers"}
    )


def _check_parent(path: Path, parent: Path) -> None:
    if not parent.is_dir():
        raise UserError(f"{path}: cannot be written (No such file or directory). Create {parent}, or give another file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be written (Permission denied for {parent}). Give another file")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or explain_os_error(error)
        raise UserError(f"{path}: cannot be written ({reason}). {os_remedy(error) or 'Give another file'}") from error
