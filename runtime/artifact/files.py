"""The files of an artifact: each must be a regular file inside the folder, of the listed size and hash."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..errors import UserError
from ..progress import progress
from . import hash_cache
from .json_reader import kind_of

if TYPE_CHECKING:
    from .manifest import FileEntry

BLOCK = 1 << 20  # bytes
SMALL = 1 << 20  # bytes; smaller files are hashed at each load, which takes a millisecond
REMEDY = "Copy the whole folder again or export again"
# Files that an export writes beside the listed ones. The manifest has no hashes of them.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "graphs/convert.ini",
    "probe.npz",
)


class WrongFileError(UserError):
    """A file of an artifact that is not as listed.

    Attributes:
        state: "missing", "wrong size", "damaged", or "not a file" for a link out of the folder, a fifo or a device
    """

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state


def find(folder: Path, name: str) -> os.stat_result:
    """Return the stat of a regular file inside `folder`.

    Raises:
        WrongFileError: there is no such file, it is no regular file, or a symbolic link leads out of the folder.
    """
    path = folder / name
    try:
        real = os.path.realpath(path, strict=True)
        found = Path(real).stat()
        root = os.path.realpath(folder, strict=True)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise WrongFileError("missing", f"{path}: a link to nothing. {REMEDY}") from error
        raise WrongFileError("missing", f"{path}: missing, but manifest.json lists it. {REMEDY}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WrongFileError("not a file", f"{path}: cannot be read ({reason}). {REMEDY}") from error
    if os.path.commonpath([root, real]) != root:
        raise WrongFileError(
            "not a file", f"{path}: a link to {real}, outside the artifact. Copy the file itself into the folder"
        )
    if not stat.S_ISREG(found.st_mode):
        raise WrongFileError("not a file", f"{path}: {kind_of(found.st_mode)}; needed: a regular file. {REMEDY}")
    return found


def check_size(folder: Path, name: str, needed: int) -> None:
    """Raise WrongFileError unless the file is present, regular, inside the folder, and has `needed` bytes."""
    size = find(folder, name).st_size
    if size != needed:
        raise wrong_size(folder / name, size, needed)


def wrong_size(path: Path, size: int, needed: int) -> WrongFileError:
    """Return the error for a file of `size` bytes that the manifest lists with `needed` bytes."""
    return WrongFileError(
        "wrong size",
        f"{path}: {size:,} bytes; manifest.json says {needed:,}. The file was truncated or replaced. {REMEDY}",
    )


def check_companions(folder: Path) -> dict[str, str]:
    """Return the identity of each file that the manifest does not list, such as tokenizer.json; "" for none.

    Raises:
        WrongFileError: one of them is no regular file.
    """
    return {name: identity(folder, name) for name in COMPANIONS}


def identity(folder: Path, name: str) -> str:
    """Return a text that differs if the file is replaced or changed; "" if there is none.

    Raises:
        WrongFileError: it is no regular file inside the folder.
    """
    return hash_cache.key(find(folder, name), "") if os.path.lexists(folder / name) else ""


def check_hashes(
    folder: Path, entries: Sequence[FileEntry], known: Sequence[str] | None = None, *, show_progress: bool = False
) -> None:
    """Hash files, and remember those that were right.

    Args:
        folder: the artifact.
        entries: the files, which `check_size` has checked.
        known: the entries of the hash cache that may replace hashing; None takes those of this machine.
        show_progress: print a line on standard error if it takes more than a second.

    Raises:
        WrongFileError: a hash differs.
    """
    if known is None:
        known = hash_cache.remembered() if any(entry.bytes > SMALL for entry in entries) else ()
    unknown = [x for x in entries if x.bytes <= SMALL or hash_cache.key(find(folder, x.file), x.sha256) not in known]
    total, hashed = sum(entry.bytes for entry in unknown), 0

    def done(count: int) -> None:
        nonlocal hashed
        hashed += count

    def what() -> str:
        return f"Checking the files of {folder.name} ({hashed / max(total, 1):.0%} of {total / 1e6:,.0f} MB)"

    new = []
    with progress(what, delay=1.0) if show_progress else nullcontext():
        for entry in unknown:
            path = folder / entry.file
            began = time.time()
            try:
                with path.open("rb") as file:
                    before = os.fstat(file.fileno())
                    check_hash(path, sha256_open(file, done), entry.sha256)
                    after = os.fstat(file.fileno())
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror}). {REMEDY}") from error
            mine = hash_cache.key(before, entry.sha256)
            settled = hash_cache.settled(before, began) and hash_cache.key(after, entry.sha256) == mine
            if entry.bytes > SMALL and settled:
                new.append(mine)
    hash_cache.remember(new)


def check_hash(path: Path, found: str, needed: str) -> None:
    """Raise WrongFileError unless the two SHA-256 are equal."""
    if found != needed:
        raise WrongFileError(
            "damaged",
            f"{path}: SHA-256 {found[:12]}; manifest.json says {needed[:12]}. "
            f"The file was changed after the export. {REMEDY}",
        )


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex. Reads the file in blocks."""
    with path.open("rb") as file:
        return sha256_open(file)


def sha256_open(file: BinaryIO, done: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of an open file in hex.

    Args:
        file: at its start.
        done: called with the size of each block, after it.
    """
    state = hashlib.sha256()
    buffer = bytearray(BLOCK)
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        state.update(memoryview(buffer)[:count])
        done(count)
    return state.hexdigest()
