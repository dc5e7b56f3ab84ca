"""Releases library pages that were needed for loading only.

MindSpore Lite's libraries contain about 200 MB of symbols, relocations and converter code, which are read while they
load and hardly again. They are unmodified pages of files: to drop them from this process costs only a page fault if one
is needed again, and the operating system keeps them in its page cache as long as it has room.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

SMAPS = Path("/proc/self/smaps")
MADV_DONTNEED = 4  # madvise(2): for an unmodified private file mapping, read the page from the file when next touched
LOWER_HEX = frozenset("0123456789abcdef")
MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (....) [0-9a-f]+ \S+ [1-9]\d*\s+(/.*)$")


def release_library_pages(folder: str = "/mindspore_lite/") -> int:
    """Drop the unmodified read-only pages of shared libraries whose path contains `folder`.

    Returns:
        How many bytes of them were resident; 0 on systems without Linux's smaps.
    """
    if not SMAPS.is_file():
        return 0
    try:
        madvise = ctypes.CDLL(None).madvise
        text = SMAPS.read_text(encoding="utf-8", errors="surrogateescape")
    except (AttributeError, OSError):  # no such call, or /proc is hidden: the pages stay
        return 0
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    released = 0
    for begin, end, resident in unmodified_mappings(text, folder):
        if madvise(begin, end - begin, MADV_DONTNEED) == 0:
            released += resident
    return released


def unmodified_mappings(smaps: str, folder: str) -> list[tuple[int, int, int]]:
    """Return (begin, end, resident bytes) of the private read-only mappings of .so files that can be dropped.

    A mapping with anonymous pages is not among them: it was relocated and then write-protected (RELRO).

    Args:
        smaps: content of /proc/self/smaps.
        folder: part of the libraries' path.
    """
    found = []
    begin = end = resident = 0
    wanted = False
    for line in smaps.splitlines():
        if line[:1] in LOWER_HEX:  # a mapping begins; the names of its fields begin with capitals
            start = MAPPING.match(line) if folder in line else None
            wanted = start is not None and ".so" in start[4] and start[3] in ("r--p", "r-xp")
            if start:
                begin, end = int(start[1], 16), int(start[2], 16)
        elif wanted and line.startswith("Rss:"):
            resident = int(line.split()[1]) * 1024
        elif wanted and line.startswith("Anonymous:") and int(line.split()[1]) == 0:
            found.append((begin, end, resident))
    return found
