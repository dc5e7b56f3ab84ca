"""Builds the package's wheels for boards and hosts: `make wheel`. They need no compiler where they are installed.

A wheel has the CPU kernels, MindSpore Lite's binding and the sources of the Ascend operator package. The libraries are
loaded through ctypes, so one wheel serves every Python. This machine's g++, or Debian's cross compiler for the other
architecture, compiles them with the C library and libstdc++ of Debian 11. So they need glibc 2.31 or later; auditwheel
checks that.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import debian

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from runtime.errors import UserError  # noqa: E402
from runtime.lite import native  # noqa: E402
from runtime.lite import wheel as lite  # noqa: E402
from runtime.lite.release import RELEASES  # noqa: E402

BUILD = ROOT / "build" / "wheels"
GLIBC = "2_31"
# Debian 11: glibc 2.31, libstdc++ of GCC 10. GCC 10 itself lacks instruction sets that the kernels use.
RELEASE, HEADERS = "bullseye", "10"
PACKAGES = ("libc6-dev", "libstdc++-10-dev")


@dataclass(frozen=True)
class Toolchain:
    """A compiler, and the flags that make it use the headers and libraries of a sysroot."""

    machine: str
    sysroot: Path

    @property
    def compiler(self) -> str:
        return compiler_of(self.machine)

    @property
    def compile_flags(self) -> list[str]:
        triple, include = f"{self.machine}-linux-gnu", self.sysroot / "usr/include"
        folders = (include / "c++" / HEADERS, include / triple / "c++" / HEADERS, include / triple, include)
        return [f"--sysroot={self.sysroot}", "-nostdinc++", *(f"-isystem{folder}" for folder in folders)]

    @property
    def link_flags(self) -> list[str]:
        triple, root = f"{self.machine}-linux-gnu", self.sysroot
        folders = (root / "usr/lib/gcc" / triple / HEADERS, root / "usr/lib" / triple, root / "lib" / triple)
        return [f"--sysroot={root}", f"-B{root / 'usr/lib' / triple}", *(f"-L{folder}" for folder in folders)]


def compiler_of(machine: str) -> str:
    return "g++" if machine == platform.machine() else f"{machine}-linux-gnu-g++"


def toolchain(machine: str) -> Toolchain:
    """Install what compiling for a machine needs, and return the toolchain."""
    package = "g++" if machine == platform.machine() else f"g++-{machine.replace('_', '-')}-linux-gnu"
    debian.require({compiler_of(machine): package})
    return Toolchain(machine, debian.unpack(BUILD / machine / "sysroot", RELEASE, machine, PACKAGES))


def official(machine: str) -> Path:
    """Return the registry's wheel of MindSpore Lite, downloaded once."""
    folder = BUILD / machine / "mindspore_lite"
    folder.mkdir(parents=True, exist_ok=True)
    path = next(folder.glob("*.whl"), None) or lite.download(RELEASES[machine], folder)
    lite.check(path, RELEASES[machine])
    return path


def compile_libraries(tools: Toolchain) -> Path:
    """Compile the kernels and the binding. Returns the folder that has them."""
    work = BUILD / tools.machine
    out, build = work / "libraries", work / "cmake"
    out.mkdir(parents=True, exist_ok=True)
    link = " ".join(tools.link_flags)
    options = {
        "CMAKE_MAKE_PROGRAM": shutil.which("ninja"),
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": tools.machine,
        "CMAKE_CXX_COMPILER": tools.compiler,
        "CMAKE_CXX_FLAGS": " ".join(tools.compile_flags),
        "CMAKE_SHARED_LINKER_FLAGS": link,
        "CMAKE_EXE_LINKER_FLAGS": link,
        "EDGELLAMA_OUTPUT": out,
    }
    command = ["cmake", "-G", "Ninja", "-S", ROOT / "kernels/cpu", "-B", build]
    command += [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", build], check=True)

    tree, objects = work / "tree", work / "binding"
    shutil.rmtree(tree, ignore_errors=True)
    objects.mkdir(exist_ok=True)
    package = lite.unpack(official(tools.machine), tree)
    flags = [*tools.compile_flags, *tools.link_flags]
    native.compile_binding(tools.compiler, package, objects, out / native.LIBRARY, flags)
    shutil.rmtree(tree)
    return out


def build(machine: str) -> Path:
    """Build the wheel for a machine. Returns its path."""
    print(f"== compiling for {machine}", flush=True)
    libraries = compile_libraries(toolchain(machine))
    work, target = BUILD / machine / "package", BUILD / machine / "wheel"
    for folder in (work, target):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "build", "--build-base", work]
    command += ["egg_info", "--egg-base", work, "bdist_wheel", "--bdist-dir", work / "bdist", "--dist-dir", target]
    command += ["--plat-name", f"manylinux_{GLIBC}_{machine}"]
    environment = {**os.environ, "EDGELLAMA_LIBRARIES": str(libraries)}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    (made,) = target.glob("*.whl")
    audit(made)
    made = made.rename(BUILD / made.name)
    print(f"wrote {made.relative_to(ROOT)} ({made.stat().st_size / 1e6:.1f} MB)", flush=True)
    return made


def audit(path: Path) -> None:
    """Ends the process if auditwheel finds a symbol that is newer than the wheel's tag."""
    done = subprocess.run([sys.executable, "-m", "auditwheel", "show", path], capture_output=True, text=True)
    tag = path.stem.rpartition("-")[2]
    machine = tag.split("_", 3)[3]
    said = " ".join(done.stdout.split())
    # It calls the wheel itself a linux one, because no policy lists MindSpore Lite's library, which the binding needs.
    found = re.search(rf'constrains the platform tag to "manylinux_2_(\d+)_{machine}"', said)
    if done.returncode or not found or int(found[1]) > int(GLIBC.partition("_")[2]):
        sys.exit(
            f"error: {path.name} has symbols of another C library than {tag} promises:\n{done.stdout}{done.stderr}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", choices=RELEASES, help="only this one (default: all)")
    options = parser.parse_args()
    try:
        for machine in [options.machine] if options.machine else RELEASES:
            build(machine)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
