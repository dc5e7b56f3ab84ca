"""Git LFS pointers: the small texts that `git clone` leaves in place of large files where git-lfs is not installed."""

from __future__ import annotations

from pathlib import Path

from edgellama.errors import UserError

MAGIC = b"version https://git-lfs.github.com/spec/"
LONGEST = 1024  # bytes of a pointer, by the specification


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer. False if it cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > LONGEST:
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def check_content(path: Path, data: bytes) -> None:
    """Raise ValueError if the content of a file is a Git LFS pointer, or empty. The message continues "<path>: "."""
    if data.startswith(MAGIC):
        raise ValueError("a Git LFS pointer, not the file itself. Run `git lfs pull` in its folder")
    if not data:
        raise ValueError("empty")


def pointers(paths: list[Path]) -> UserError | None:
    """Return the error for Git LFS pointers among these files; None if no file is one."""
    found = [path for path in paths if is_pointer(path)]
    if not found:
        return None
    listed = ", ".join(path.name for path in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    is_one = f"{found[0]} is a Git LFS pointer, not the file itself"
    several = f"{found[0].parent} has Git LFS pointers instead of the files {listed}"
    return UserError(
        f"{is_one if len(found) == 1 else several}. Run `git lfs install` and `git lfs pull` in {found[0].parent}, or "
        "download the files again"
    )
