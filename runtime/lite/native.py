"""Compiles the binding `_c_lite_wrapper` from the .cpp files in this folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import UserError

HERE = Path(__file__).parent
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
    """The C++ files including headers, in a fixed order."""
    return sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h")])


def sources_digest() -> str:
    """SHA-256 over names and contents of the C++ files. It shows whether an installed binding is up to date."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def require_tools() -> str:
    """The C++ compiler's command. Raises UserError that names the package to install if a tool is missing."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None or shutil.which(compiler) is None:
        raise UserError(
            f"no C++ compiler found{f' (CXX={compiler})' if compiler else ''}: install g++ "
            "(Debian, Ubuntu: apt install g++; openEuler, Fedora: dnf install gcc-c++)"
        )
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        version = sysconfig.get_python_version()
        raise UserError(
            f"no Python.h in {include}: install the headers of Python {version} "
            f"(Debian, Ubuntu: apt install python{version}-dev; openEuler, Fedora: dnf install python3-devel)"
        )
    try:
        import pybind11  # noqa: F401
        import wheel.wheelfile  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"the Python package {error.name} is missing: pip install pybind11 wheel") from error
    return compiler


def compile_binding(
    compiler: str,
    package: Path,
    work: Path,
    *,
    python_include: str | None = None,
    suffix: str | None = None,
) -> Path:
    """Compile and link the binding. Returns the module's path.

    Args:
        compiler: the C++ compiler's command
        package: an unpacked mindspore_lite folder; the module goes into its lib/
        work: folder for object files
        python_include: folder of Python.h; default: this Python's. A cross compiler needs the target's
        suffix: of the module, for example ".cpython-311-aarch64-linux-gnu.so"; default: this Python's

    Raises UserError with the compiler's output if it fails.
    """
    import pybind11

    includes = [
        flag
        for folder in (package, pybind11.get_include(), python_include or sysconfig.get_path("include"))
        for flag in ("-isystem", str(folder))
    ]

    def compile_one(source: Path) -> Path:
        target = work / (source.stem + ".o")
        _run([compiler, *FLAGS, *includes, "-c", str(source), "-o", str(target)])
        return target

    units = [path for path in sources() if path.suffix == ".cpp"]
    # Each compilation takes up to 600 MB and several seconds.
    with ThreadPoolExecutor(min(len(units), os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compile_one, units))

    lib = package / "lib"
    module = lib / ("_c_lite_wrapper" + (suffix or sysconfig.get_config_var("EXT_SUFFIX")))
    _run(
        [
            compiler,
            "-shared",
            "-s",
            *map(str, objects),
            "-o",
            str(module),
            f"-L{lib}",
            "-l:libmindspore-extendrt_python.so",
            # DT_RPATH, not DT_RUNPATH: it also applies to indirectly needed libraries, so nobody has to set
            # LD_LIBRARY_PATH. The libraries' symbols are resolved when they are loaded, not here.
            "-Wl,--disable-new-dtags,-rpath,$ORIGIN",
            "-Wl,--allow-shlib-undefined",
        ]
    )
    return module


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-20:])
        raise UserError(f"compiling the mindspore_lite binding failed:\n{' '.join(command)}\n{tail}")
