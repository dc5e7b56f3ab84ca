"""Runs the commands of BOARD.md up to the operator package, in order, in a clean folder.

The environment has no checkout, no compiler but CANN's, and CANN's variables only from its set_env.sh. npu-smi, CANN,
cmake and MindSpore Lite's wheel are SIMULATED; the package's wheel is built from this checkout with its libraries.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from edgellama.kernels.cpu.library import PATH
from edgellama.lite import native
from support.child import REPOSITORY

SET_ENV = "/usr/local/Ascend/ascend-toolkit/set_env.sh"
MODULES = "compiler/tikcpp/ascendc_kernel_cmake"
PROGRAMS = ("bash", "sed", "dirname", "find", "head", "nproc", "rm", "mkdir", "make", "chmod")


def commands() -> list[str]:
    """Returns the lines of the blocks of steps 1 to 3 that run on the board, without comments."""
    page = (REPOSITORY / "kernels/ascend/BOARD.md").read_text(encoding="utf-8")
    steps = page.partition("## 1. ")[2].partition("## 4. ")[0]
    blocks = re.findall(r"^```\n(.*?)^```", steps, re.MULTILINE | re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line != "make wheel"]  # on the export host: `package` does that here


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel for this machine. Its libraries are the checkout's, of this machine's C library."""
    folder = tmp_path_factory.mktemp("package")
    libraries = folder / "libraries"
    libraries.mkdir()
    for name in ("libedgellama_cpu.so", "libedgellama_lite.so"):
        shutil.copy(PATH.parent / name, libraries)
    (libraries / native.LIBRARY).write_bytes(b"not used: the board has an official MindSpore Lite")
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "build", "--build-base", folder / "build", "egg_info"]
    command += ["--egg-base", folder, "bdist_wheel", "--bdist-dir", folder / "bdist", "--dist-dir", folder / "dist"]
    environment = {**os.environ, "EDGELLAMA_LIBRARIES": str(libraries)}
    subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, capture_output=True)
    return folder / "dist"


def lite_wheel(path: Path) -> None:
    """Writes a wheel that only has the name and version of MindSpore Lite for Ascend."""
    info = "mindspore_lite-2.7.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("mindspore_lite/__init__.py", "__version__ = '2.7.0'\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mindspore-lite\nVersion: 2.7.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def board(folder: Path) -> dict[str, str]:
    """Makes a simulated board: a CANN, and a PATH with few programs. Returns its environment."""
    programs, cann = folder / "bin", folder / "cann"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).symlink_to(str(shutil.which(name)))
    (programs / "python3").symlink_to(sys.executable)
    (cann / MODULES).mkdir(parents=True)
    (cann / MODULES / "asc-config.cmake").write_text("")
    (cann / "set_env.sh").write_text(f"export ASCEND_HOME_PATH={cann}\n")
    run = folder / "build/edgellama-package/custom_opp_linux.run"
    installed = f"mkdir -p {cann}/opp/vendors/edgellama"
    scripts = {
        "g++": "exit 1",  # CANN's modules would call it
        "npu-smi": '[ "$*" = info ] && echo "| 0       310B4                 | Alarm |"',
        "cmake": f'case "$1" in --version) echo cmake version 3.28.1;; -S) [ -f "$2/op_host/fused_attention.cpp" ];;\n'
        f"--build) printf '#!/bin/bash\\n{installed}\\n' > {run}; chmod +x {run};; esac",
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
        (programs / name).chmod(0o755)
    return {
        "PATH": str(programs),
        "HOME": str(folder),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",  # what setup.cfg requires: `make check-install` installs it
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def test_the_commands_of_the_guide_install_the_package_and_build_the_operators(package: Path, tmp_path: Path) -> None:
    environment = board(tmp_path)
    lite_wheel(tmp_path / "mindspore_lite-2.7.0-py3-none-any.whl")
    (wheel,) = package.iterdir()
    shutil.copy(wheel, tmp_path)
    names = {
        re.escape(SET_ENV): str(tmp_path / "cann/set_env.sh"),
        r"mindspore_lite-<version>\S+": "mindspore_lite-2.7.0-py3-none-any.whl",
        r"edgellama-\S+\.whl": wheel.name,
    }
    lines = commands()
    assert sum(line.startswith("pip install") for line in lines) == 2 and lines[-1] == "edgellama build-kernels"
    assert lines[:2] == ["npu-smi info", f"source {SET_ENV}"]
    script = "\n".join(lines)
    for pattern, name in names.items():
        script, count = re.subn(pattern, name, script)
        assert count == 1, pattern
    # The dependencies of setup.cfg are those of this environment.
    others = f"echo {sysconfig.get_path('purelib')} > $(echo board/lib/python3*/site-packages)/dependencies.pth"
    script = script.replace("activate\n", f"activate\n{others}\n", 1)
    checks = """
python - <<'END'
import edgellama
from pathlib import Path
from edgellama.kernels.cpu import library
home = str(Path("board").absolute())
assert edgellama.__file__.startswith(home) and str(library.PATH).startswith(home)
assert library.library().edgellama_abi() == library.ABI  # the sampler's library loads
END
"""
    done = subprocess.run(
        ["bash", "-e", "-c", script + checks], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "cann/opp/vendors/edgellama").is_dir()
    assert "310B4" in done.stdout
    assert "installed under CANN's opp/vendors/edgellama" in done.stdout


def test_without_cann_the_build_names_what_is_missing(package: Path, tmp_path: Path) -> None:
    environment = board(tmp_path)
    command = [sys.executable, "-m", "edgellama", "build-kernels", "--chips", "ascend310b"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "neither ASCEND_HOME_PATH nor ASCEND_TOOLKIT_HOME is set" in done.stderr
    assert "error: the operator package was not built (build.sh ended with status 2)" in done.stderr
