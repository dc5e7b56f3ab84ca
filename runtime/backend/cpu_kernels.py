"""The CPU kernels: loads their library, and registers them with MindSpore Lite in this process."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

from ..artifact.manifest import Manifest
from ..errors import UserError
from .lite_graph import import_lite

LITE = "libmsplugin-ge-litert_python.so"  # has MindSpore Lite's registry of custom kernels


def kernel_library() -> ctypes.CDLL:
    """Return the kernels' shared library.

    Raises:
        UserError: the library is not built, is damaged, or has another ABI than this release.
    """
    from edgellama.kernels.cpu.library import (  # imported late, so that `import edgellama` stays light
        LibraryError,
        library,
    )

    try:
        return library()
    except LibraryError as error:
        raise UserError(str(error)) from error


def limit_isa(name: str | None) -> str:
    """Let graphs that are built from now on use no later instruction set than `name`, and return what they use.

    Args:
        name: None takes the fastest that the CPU has.

    Raises:
        UserError: the CPU lacks it, or the library is not built.
    """
    from edgellama.kernels.cpu import library

    kernel_library()
    try:
        library.limit_isa(name)
    except ValueError as error:
        raise UserError(f"{error}. Name one of them, or leave the option out") from error
    return library.best_isa()


def check_kernel_abi(manifest: Manifest) -> None:
    """Raise UserError if the artifact needs kernels of another ABI than this release has. Loads nothing."""
    from edgellama.kernels.cpu.library import ABI, OLDEST_ABI

    if manifest.kernel_abi is None or not OLDEST_ABI <= manifest.kernel_abi <= ABI:
        raise UserError(
            f"kernel_abi is {manifest.kernel_abi}; the kernels of this release run {OLDEST_ABI} to {ABI}. "
            "Export again with this release"
        )
    for graph in manifest.graphs:
        if len(graph.buckets) > 1:  # MindSpore Lite cannot resize a graph with custom operators
            raise UserError(f"{graph.file} serves buckets {list(graph.buckets)}; needed: one. Export again")


def load_cpu_kernels() -> None:
    """Register the custom operators with MindSpore Lite, before it builds a graph that names them.

    Raises:
        UserError: MindSpore Lite cannot be imported, or the kernels are not built.
    """
    import_lite()
    register()


@cache
def register() -> None:
    """Register the custom operators with MindSpore Lite, which must be imported. A second call costs nothing.

    Raises:
        UserError: the kernels are not built, are damaged, or have another ABI than this release.
    """
    from edgellama.kernels.cpu.library import PATH, REMEDY, require_whole

    kernel_library()
    path = PATH.with_name("libedgellama_lite.so")
    try:
        require_whole(path)
        lite = Path(str(sys.modules["mindspore_lite"].__file__)).parent
        # RTLD_GLOBAL: the plugin finds MindSpore Lite's symbols in what the process has loaded.
        ctypes.CDLL(str(lite / "lib" / LITE), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL).edgellama_register()
    except (OSError, AttributeError) as error:  # AttributeError: a library without that function
        raise UserError(f"{path}: the CPU kernels cannot be loaded ({error}). {REMEDY}") from error
