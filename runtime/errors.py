"""The exception for problems that the user can solve, and the messages for errors of the operating system."""

from __future__ import annotations

import contextlib
import errno
import os
import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UserError(Exception):
    """A problem that the user can solve: the message gives the value found, the limit, and the remedy.

    The command line prints the message and exits with status 2; `--debug` shows the traceback. A message may quote
    names from files of strangers. So control characters are escaped, except line breaks: they could control a terminal.
    """

    def __init__(self, message: str, **named: str) -> None:
        """Args:
        message: one line.
        named: of the other base class of a subclass, such as `name` of ImportError.
        """
        super().__init__(_CONTROL.sub(lambda found: ascii(found[0])[1:-1], message), **named)


class LogitsError(RuntimeError):
    """The model computed logits that are not numbers. The command line reports it as it reports a UserError.

    It is a RuntimeError and not a UserError, because the call was right: the endpoint answers with status 500.
    """


# What the user can do about an error of the operating system.
REMEDIES = {
    errno.ENOENT: "It does not exist, or was removed in the meantime: check the path",
    errno.ENOTDIR: "A part of this path is not a folder: check the path",
    errno.EISDIR: "It is a folder, and a file is needed: check the path",
    errno.EEXIST: "Something else is at this path: choose another one",
    errno.ENOTEMPTY: "Something else was put there in the meantime: choose another path",
    errno.ENAMETOOLONG: "Choose a shorter path: file systems allow names of 255 bytes",
    errno.ELOOP: "Its symbolic links lead to each other: choose another path",
    errno.EACCES: "This user has no permission: change the permissions, or choose another place",
    errno.EPERM: "This user has no permission: change the permissions, or choose another place",
    errno.EROFS: "The file system is read-only: choose a place on another one",
    errno.ENOSPC: "The disk is full: free some space, or choose a place on another disk",
    errno.EDQUOT: "The disk quota of this user is used up: free some space, or choose another place",
    errno.EFBIG: "The file exceeds a limit of the process or the disk: raise it (ulimit -f), or choose another place",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
    errno.ENFILE: "The whole system has too many open files: close other programs",
    errno.EAGAIN: "The system has no resources for it now (ulimit -u): close other programs and try again",
    errno.ENOMEM: "Close other programs, or use a machine with more memory",
    errno.EIO: "The disk or the network file system reports a fault: check the system's log",
    errno.ESTALE: "The file was replaced on the file server: try again",
    errno.EBUSY: "Another program or a mount uses it: choose another place",
    errno.EXDEV: "It is on another file system: choose another place",
    errno.ENXIO: "It is a device or a pipe that nobody serves: choose a file",
}
# Errors of the surroundings, which libraries report in exceptions of their own.
SURROUNDINGS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
    errno.ENOMEM,
)
WITHOUT_NAME = {
    errno.ENOENT: "The current folder was removed, or a program is not installed: change to another folder",
    errno.ENOSPC: "The disk of the output or of temporary files ({temporary}) is full: free some space, or set TMPDIR",
}


def explain_os_error(error: OSError) -> str:
    """Return one line for an error of the operating system: the file, what happened, and the remedy."""
    if error.errno is None and re.search(r"\d+ requested and \d+ written", str(error)):  # numpy, when it writes a file
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if error.errno is None:  # a library uses OSError for a message
        return " ".join(str(error).split()) or type(error).__name__
    file = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    what = " ".join(f"{file}{error.strerror or os.strerror(error.errno)}".split())
    return f"{what}. {os_remedy(error)}".rstrip(". ")


def os_remedy(error: OSError) -> str:
    """Return what the user can do about an error of the operating system; "" if that is not known."""
    if error.filename is None and error.errno in WITHOUT_NAME:
        return WITHOUT_NAME[error.errno].format(temporary=_temporary_folder())
    return REMEDIES.get(error.errno or 0, "")


def os_error_of(error: BaseException) -> OSError | None:
    """Return the error of the operating system that caused `error`; None if there is none.

    An exception of another type counts if it was raised because of, or its text names, a full disk, a limit of open
    files or another fault of the surroundings.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and (seen is error or seen.errno in SURROUNDINGS):
            return seen
        for code in SURROUNDINGS:
            if os.strerror(code) in str(seen):
                return OSError(code, " ".join(str(seen).split()))
        seen = seen.__cause__ or seen.__context__
    return None


def _temporary_folder() -> str:
    import tempfile  # imported late: it takes milliseconds at each start

    with contextlib.suppress(OSError):
        return tempfile.gettempdir()
    return "TMPDIR"


def shown(value: object, longest: int = 80) -> str:
    """Return a value for a message: its repr, cut after `longest` characters, without line breaks."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def printable(text: str) -> str:
    """Return a text with escapes for the characters that a terminal obeys: names in a damaged file may hold them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
