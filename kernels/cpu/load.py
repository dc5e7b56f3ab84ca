"""Makes the kernels known to MindSpore Lite in this process."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

from kernels.cpu.library import ABI, library
from runtime.errors import UserError

PLUGIN = Path(__file__).parent / "libedgellama_lite.so"
LITE = "libmsplugin-ge-litert_python.so"  # has MindSpore Lite's registry of custom kernels


@cache
def load() -> None:
    """Register the custom operators with MindSpore Lite, which must be imported; again is free.

    Before the first graph that holds one is built. Raises UserError where the kernels are not built or of another ABI.
    """
    found = library().edgellama_abi()
    if found != ABI:
        raise UserError(
            f"{PLUGIN.parent}: kernels of ABI {found}, needed: {ABI}. Build them with `pip install .` in the checkout"
        )
    try:
        lite = Path(str(sys.modules["mindspore_lite"].__file__)).parent
        # RTLD_GLOBAL: the plugin finds MindSpore Lite's symbols in what the process has loaded.
        ctypes.CDLL(str(lite / "lib" / LITE), mode=ctypes.RTLD_GLOBAL)
        plugin = ctypes.CDLL(str(PLUGIN), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise UserError(
            f"the CPU kernels cannot be loaded ({error}). Build them with `pip install .` in the checkout"
        ) from error
    plugin.edgellama_register()
