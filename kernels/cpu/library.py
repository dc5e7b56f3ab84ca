"""The kernels' shared library through its C interface (ctypes): for tests, the packer and the loader."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from runtime.errors import UserError

PATH = Path(__file__).parent / "libedgellama_cpu.so"
ABI = 2  # of abi.h: what graphs and weights must agree on with the library
ISAS = ("portable", "neon", "avx2", "avxvnni", "avx512", "amx")  # the order of enum class Isa


@cache
def library(path: Path = PATH) -> ctypes.CDLL:
    """The loaded library; raises UserError when it has not been built."""
    if not path.exists():
        raise UserError(
            f"{path} is missing: the CPU kernels are not built. Build them with `pip install .` in the checkout."
        )
    return ctypes.CDLL(str(path))


def available_isas() -> list[str]:
    """The instruction-set variants that this CPU can run, worst first."""
    lib = library()
    return [name for i, name in enumerate(ISAS) if lib.edgellama_isa_available(i)]
