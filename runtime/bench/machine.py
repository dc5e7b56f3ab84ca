"""The machine: processor, versions, read bandwidth, memory of this process."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.private_copy import private_memory
from ..backend.cpu_kernels import kernel_library
from ..backend.resources import available_threads

PACKAGES = {"numpy": "numpy", "mindspore_lite": "mindspore-lite", "tokenizers": "tokenizers", "edgellama": "edgellama"}
SMALLEST_BUFFER = 16 << 20
LARGEST_BUFFER = 1 << 30  # a larger one gives the same rate, and a model may fill the memory
READ_BLOCK = 256  # kReadBlock of linear/read.h
DISTANCES = (2048, 4096, 8192, 16384)  # bytes ahead that the readers request


class ReadBandwidth:
    """Measures read bandwidth: each thread reads an equal part of a buffer, which lies where copied weights lie.

    Several readers take turns, because processors differ in which of them is the fastest: one adds in numpy; the others
    load vectors and request what follows at some distance, or leave that to the processor.

    Attributes:
        buffer_bytes: size of the buffer.
    """

    def __init__(self, buffer_bytes: int, threads: int) -> None:
        size = min(max(buffer_bytes, SMALLEST_BUFFER), LARGEST_BUFFER) // READ_BLOCK * READ_BLOCK
        self._buffer = private_memory(size)  # on huge pages, if the system has them
        self._buffer.view(np.int64)[:] = 1
        self.buffer_bytes = size
        self._threads = threads
        self._parts = np.array_split(self._buffer.view(np.int64), threads)
        self._pool = ThreadPoolExecutor(threads)
        self._native = kernel_library().edgellama_read
        self._readers: dict[str, Callable[[], Any]] = {
            "sums in numpy": lambda: list(self._pool.map(np.add.reduce, self._parts)),
            "vector loads": partial(self.read, 0),
            **{f"vector loads, {n // 1024} KB prefetched": partial(self.read, n) for n in DISTANCES},
        }
        self._best = dict.fromkeys(self._readers, 0.0)  # bytes per second

    @property
    def method(self) -> str:
        """The reader that was the fastest in all measurements."""
        return f"fastest of {len(self._best)} readers: {max(self._best, key=lambda name: self._best[name])}"

    def measure(self, passes: int = 2) -> float:
        """Bytes per second of the fastest pass of the fastest reader."""
        rates = []
        for name, reader in self._readers.items():
            for _ in range(passes):
                start = time.perf_counter()
                reader()
                rates.append(self.buffer_bytes / (time.perf_counter() - start))
                self._best[name] = max(self._best[name], rates[-1])
        return max(rates)

    def read(self, ahead: int = 0) -> int:
        """Read the buffer once. Returns the exclusive or of its 32-bit words.

        Args:
            ahead: bytes between what is read and what is requested; 0 requests nothing.
        """
        found = ctypes.c_uint32()
        size = ctypes.c_long(self.buffer_bytes)
        code = self._native(
            self._threads, ctypes.c_void_p(self._buffer.ctypes.data), size, ctypes.c_long(ahead), ctypes.byref(found)
        )
        if code:
            raise ValueError(f"edgellama_read returned {code}")
        return found.value


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
