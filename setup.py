"""Builds the CPU kernels with CMake into kernels/cpu, for both `pip install .` and `pip install -e .`.

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
from setuptools.command.build_ext import build_ext


class BuildKernels(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        *package, name = fullname.split(".")
        return str(Path(*package, f"lib{name}.so"))  # ctypes loads it, so its name has no Python version

    def build_extension(self, ext: Extension) -> None:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            sys.exit(f"error: no C++ compiler ({compiler}) was found; install one, on Debian: apt-get install g++")
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path("build/kernels-pip")  # kept, so that a second installation compiles only changed files
        # pip installs a new copy of Ninja each time, and the folder must not keep the path of an old one.
        options = [f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}", f"-DEDGELLAMA_OUTPUT={output}"]
        subprocess.run(["cmake", "-G", "Ninja", "-S", "kernels/cpu", "-B", build, *options], check=True)
        subprocess.run(["cmake", "--build", build], check=True)


LIBRARIES = ("edgellama_cpu", "edgellama_lite")  # the kernels, and their registration with MindSpore Lite


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
    ext_modules=[Extension(f"edgellama.kernels.cpu.{name}", sources=[]) for name in LIBRARIES],
    cmdclass={"build_ext": BuildKernels},
)
