"""Remembers which files of artifacts had the right hash, so that a machine hashes each large file once.

Chat templates without syntax errors are remembered too (`text/template_files.py`).

A file is the same as before if device, inode, size, mtime and ctime (in ns) are the same: every change sets its ctime,
and no program can set that back. The entries are in <user's cache>/edgellama/verified.json. Without a cache folder that
can be written, nothing is remembered and every load hashes again. The file may be deleted at any time. Damage to it,
and processes that write it at once, only cause a file to be hashed again.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from .json_reader import parse_object, read_bytes

NAME = "verified.json"
FORMAT = 1
MOST = 1000  # entries; each has about 130 bytes
LARGEST = 1 << 20  # bytes of the file
# Seconds. A file that changed later than this before its hash began could change again with the same ctime, because the
# kernel's clock for files has steps of up to 10 ms. Its hash is right, but is not remembered.
SETTLED = 0.1


def cache_folder() -> Path | None:
    """Return the user's cache folder for this project; None if the user has none."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG specification ignores relative paths
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # no HOME, and no entry in passwd
            return None
    return base / "edgellama" if base.is_absolute() else None


def key(found: os.stat_result, sha256: str) -> str:
    """Return the entry that says: this very file has this hash."""
    numbers = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return "-".join(map(str, numbers)) + f"-{sha256}"


def settled(found: os.stat_result, began: float) -> bool:
    """Whether a change of the file after `began` (time.time()) is sure to give it another ctime."""
    return max(found.st_mtime_ns, found.st_ctime_ns) < (began - SETTLED) * 1e9 and began <= time.time()


def remembered() -> list[str]:
    """Return the entries, the newest last; empty if there are none, or the file is damaged or another user's."""
    folder = cache_folder()
    if folder is None:
        return []
    path = folder / NAME
    try:
        if path.stat().st_uid != os.geteuid():
            return []
        values: dict[str, Any] = parse_object(read_bytes(path, LARGEST))
    except (OSError, ValueError):
        return []
    entries = values.get("verified")
    if values.get("format") != FORMAT or not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, str)]


def remember(entries: list[str]) -> None:
    """Add entries to those that the file has now. Does nothing if it cannot be written."""
    folder = cache_folder()
    if folder is None or not entries:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        merged = list(dict.fromkeys([*remembered(), *entries]))[-MOST:]
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{NAME}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({"format": FORMAT, "verified": merged}, file, indent=0)
            Path(name).replace(folder / NAME)
        except BaseException:
            Path(name).unlink()
            raise
