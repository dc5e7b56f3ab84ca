"""The kernels' shared library through its C interface (ctypes), for the packer, the runtime and the tests."""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from pathlib import Path

PATH = Path(__file__).parent / "libedgellama_cpu.so"
ABI, OLDEST_ABI = 4, 2  # kAbi and kOldestAbi of base/abi.h: the library runs graphs of these versions
ISAS = ("portable", "neon", "avx2", "avxvnni", "avx512", "amx")  # the order of enum class Isa in base/cpu_features.h


REMEDY = "Build them with `pip install .` in the checkout"


class LibraryError(Exception):
    """The shared library is missing, damaged, or of another release. The message says how to build it."""


@cache
def library(path: Path = PATH) -> ctypes.CDLL:
    """Load the shared library once.

    Raises:
        LibraryError: the library is not built, is damaged, or has another ABI.
    """
    if not path.exists():
        raise LibraryError(f"{path} is missing: the CPU kernels are not built. {REMEDY}.")
    try:
        require_whole(path)
        found = ctypes.CDLL(str(path))
        abi = found.edgellama_abi()
    except (OSError, AttributeError) as error:  # AttributeError: a library without that function
        raise LibraryError(f"{path}: the CPU kernels cannot be loaded ({error}). {REMEDY}") from error
    if abi != ABI:
        raise LibraryError(f"{path}: kernels of ABI {abi}, needed: {ABI}. {REMEDY}")
    return found


def require_whole(path: Path) -> None:
    """Raise OSError if the end of a shared library is missing: the loader would map it, and reading would be SIGBUS.

    The last part of an ELF file is its table of sections; its place and size are in the header.
    """
    with path.open("rb") as file:
        header = file.read(64)
    if header[:6] != b"\x7fELF\x02\x01" or len(header) < 64:
        return  # no ELF file of 64 bits, little-endian: the loader says what is wrong
    table, entry, entries = *struct.unpack_from("<Q", header, 0x28), *struct.unpack_from("<2H", header, 0x3A)
    if (size := path.stat().st_size) < table + entry * entries:
        raise OSError(f"{size:,} bytes; its header says {table + entry * entries:,}")


def available_isas() -> list[str]:
    """Name the instruction sets that this CPU can run and the library holds, the slowest first.

    Raises:
        LibraryError: the library is not built.
    """
    lib = library()
    return [name for i, name in enumerate(ISAS) if lib.edgellama_isa_available(i)]


def best_isa() -> str:
    """Return the instruction set that the kernels use: the last one that this CPU has and `limit_isa` allows.

    Raises:
        LibraryError: the library is not built.
    """
    return ISAS[library().edgellama_best_isa()]


def limit_isa(name: str | None) -> None:
    """Let the kernels of this process use no later instruction set than `name`; None lifts the limit.

    Operators of graphs that are built already keep theirs.

    Raises:
        LibraryError: the library is not built.
        ValueError: this CPU or this build lacks the instruction set.
    """
    if name is not None and name not in available_isas():
        raise ValueError(f"instruction set {name!r}; this CPU has {', '.join(available_isas())}")
    library().edgellama_limit_isa(len(ISAS) - 1 if name is None else ISAS.index(name))
