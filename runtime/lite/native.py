"""The binding's library: compiled from the .cpp files in this folder, or ready-made in a wheel of this package.

It has a C interface, which c_lite_wrapper.py calls through ctypes, so one file serves every Python version.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import UserError

HERE = Path(__file__).parent
LIBRARY = "libedgellama_binding.so"  # c_lite_wrapper.py names it too: it runs where this module does not exist
WRAPPER = HERE / "c_lite_wrapper.py"
FLAGS = (
    "-O2",
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-D_GLIBCXX_USE_CXX11_ABI=0",  # MindSpore Lite's libraries are built with the old std::string
)


def sources() -> list[Path]:
    """The binding's files: C++ with headers, and its Python half. In a fixed order."""
    return sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h"), WRAPPER])


def sources_digest() -> str:
    """SHA-256 over names and contents of the binding's files. It shows whether an installed binding is up to date."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def ready_made() -> Path | None:
    """The library that came with this package (make wheel); None in a checkout."""
    path = HERE / LIBRARY
    return path if path.is_file() else None


def require_compiler() -> str:
    """The C++ compiler's command. Raises UserError that names the package to install if there is none."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None or shutil.which(compiler) is None:
        raise UserError(
            f"no C++ compiler found{f' (CXX={compiler})' if compiler else ''}: install g++ "
            "(Debian, Ubuntu: apt install g++; openEuler, Fedora: dnf install gcc-c++)"
        )
    return compiler


def add_binding(package: Path, work: Path) -> None:
    """Put both halves of the binding into an unpacked mindspore_lite folder. Compiles the library if it must.

    Raises UserError if a compiler is needed and missing, or fails.
    """
    ready = ready_made()
    if ready is None:
        compile_binding(require_compiler(), package, work, package / "lib" / LIBRARY)
    else:
        shutil.copy2(ready, package / "lib" / LIBRARY)
    shutil.copy2(WRAPPER, package / "lib" / "_c_lite_wrapper.py")


def compile_binding(compiler: str, package: Path, work: Path, target: Path, flags: Sequence[str] = ()) -> None:
    """Compile and link the library.

    Args:
        compiler: the C++ compiler's command
        package: an unpacked mindspore_lite folder, with headers and the library to link with
        work: folder for object files
        target: the library to write
        flags: further flags, of a cross compiler or an older C library

    Raises UserError with the compiler's output if it fails.
    """

    def compile_one(source: Path) -> Path:
        out = work / (source.stem + ".o")
        _run([compiler, *FLAGS, *flags, "-isystem", str(package), "-c", str(source), "-o", str(out)])
        return out

    units = [path for path in sources() if path.suffix == ".cpp"]
    with ThreadPoolExecutor(min(len(units), os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compile_one, units))
    _run(
        [
            compiler,
            *flags,
            "-shared",
            "-s",
            *map(str, objects),
            "-o",
            str(target),
            f"-L{package / 'lib'}",
            "-l:libmindspore-extendrt_python.so",
            # DT_RPATH, not DT_RUNPATH: it also applies to indirectly needed libraries, so nobody has to set
            # LD_LIBRARY_PATH. The libraries' symbols are resolved when they are loaded, not here.
            "-Wl,--disable-new-dtags,-rpath,$ORIGIN",
            "-Wl,--allow-shlib-undefined",
        ]
    )


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-20:])
        raise UserError(f"compiling the mindspore_lite binding failed:\n{' '.join(command)}\n{tail}")
