"""The kernels' shared library through its C interface (ctypes), for the packer, the runtime and the tests."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

PATH = Path(__file__).parent / "libedgellama_cpu.so"
ABI, OLDEST_ABI = 3, 2  # kAbi and kOldestAbi of base/abi.h: the library runs graphs of these versions
ISAS = ("portable", "neon", "avx2", "avxvnni", "avx512", "amx")  # the order of enum class Isa in base/cpu_features.h


class LibraryError(Exception):
    """The shared library is missing. The message says how to build it."""


@cache
def library(path: Path = PATH) -> ctypes.CDLL:
    """Load the shared library once.

    Raises:
        LibraryError: the library is not built.
    """
    if not path.exists():
        raise LibraryError(
            f"{path} is missing: the CPU kernels are not built. Build them with `pip install .` in the checkout."
        )
    return ctypes.CDLL(str(path))


def available_isas() -> list[str]:
    """Name the instruction sets that this CPU can run and the library holds, the slowest first.

    Raises:
        LibraryError: the library is not built.
    """
    lib = library()
    return [name for i, name in enumerate(ISAS) if lib.edgellama_isa_available(i)]
