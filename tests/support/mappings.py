"""What the kernel knows about the memory of an array."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage").is_dir()  # whether this kernel has them


def on_huge_pages(array: np.ndarray) -> bool:
    """Returns whether the kernel was told to put the memory of an array on huge pages (hg in its flags of smaps)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        if found := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= array.ctypes.data < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("no mapping holds the array")
