"""The machine: processor, versions, read bandwidth, memory of this process."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.resources import available_threads

PACKAGES = {"numpy": "numpy", "mindspore_lite": "mindspore-lite", "tokenizers": "tokenizers", "edgellama": "edgellama"}
SMALLEST_BUFFER = 16 << 20
LARGEST_BUFFER = 1 << 30  # a larger one gives the same rate, and a model may fill the memory


class ReadBandwidth:
    """Measures read bandwidth: each thread sums an equal part of a buffer (numpy releases the interpreter's lock).

    A sum needs one addition per 8 bytes, so the memory's speed limits it.
    """

    method = "sum of 64-bit integers in numpy, one part per thread"

    def __init__(self, buffer_bytes: int, threads: int) -> None:
        buffer = np.ones(min(max(buffer_bytes, SMALLEST_BUFFER), LARGEST_BUFFER) // 8, np.int64)
        self.buffer_bytes = buffer.nbytes
        self._parts = np.array_split(buffer, threads)
        self._pool = ThreadPoolExecutor(threads)

    def measure(self, passes: int = 3) -> float:
        """Bytes per second of the fastest pass."""
        best = float("inf")
        for _ in range(passes):
            start = time.perf_counter()
            list(self._pool.map(np.add.reduce, self._parts))
            best = min(best, time.perf_counter() - start)
        return self.buffer_bytes / best


def describe() -> dict[str, Any]:
    """The `machine` object of the report."""
    return {
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "processors": available_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str | None]:
    """The `versions` object of the report."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for key, package in PACKAGES.items():
        try:
            found[key] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[key] = None
    return found


def cpu_name() -> str:
    """The processor's name from the system: on x86 the CPU model, on Arm boards the board model."""
    info, board = Path("/proc/cpuinfo"), Path("/proc/device-tree/model")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if board.is_file():
        return board.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    return platform.processor() or platform.machine()


def peak_memory() -> int | None:
    """Peak resident memory of this process in bytes (VmHWM), including mapped files; None without VmHWM."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
