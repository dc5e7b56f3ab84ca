"""Builds the CPU kernels with CMake into kernels/cpu, for both `pip install .` and `pip install -e .`.

If EDGELLAMA_LIBRARIES names a folder, its libraries go into the package instead (requirements/build_wheels.py).

setup.cfg has everything else about the package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

READY = os.environ.get("EDGELLAMA_LIBRARIES")


class BuildKernels(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        *package, name = fullname.split(".")
        return str(Path(*package, f"lib{name}.so"))  # ctypes loads it, so its name has no Python version

    def build_extension(self, ext: Extension) -> None:
        if READY:
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(Path(READY, target.name), target)
            return
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            sys.exit(f"error: no C++ compiler ({compiler}) was found; install one, on Debian: apt-get install g++")
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path("build/kernels-pip")  # kept, so that a second installation compiles only changed files
        # pip installs a new copy of Ninja each time, and the folder must not keep the path of an old one.
        options = [f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}", f"-DEDGELLAMA_OUTPUT={output}"]
        subprocess.run(["cmake", "-G", "Ninja", "-S", "kernels/cpu", "-B", build, *options], check=True)
        subprocess.run(["cmake", "--build", build], check=True)


class AnyPythonWheel(bdist_wheel):
    """A wheel for every Python: its libraries are loaded through ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


# The kernels, and their registration with MindSpore Lite. A ready-made folder has MindSpore Lite's binding too.
LIBRARIES = ["kernels.cpu.edgellama_cpu", "kernels.cpu.edgellama_lite", *(["lite.edgellama_binding"] if READY else [])]


def package_folders() -> dict[str, str]:
    """Package name -> folder: package_dir of setup.cfg."""
    config = ConfigParser()
    config.read("setup.cfg")
    lines = config["options"]["package_dir"].strip().splitlines()
    return {name.strip(): folder.strip() for name, _, folder in (line.partition("=") for line in lines)}


setup(
    packages=[
        name
        for package, folder in package_folders().items()
        for name in (package, *(f"{package}.{inner}" for inner in find_packages(folder)))
    ],
    ext_modules=[Extension(f"edgellama.{name}", sources=[]) for name in LIBRARIES],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPythonWheel},
)
