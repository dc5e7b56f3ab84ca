"""The kernels' shared library: the error when it is not built, is damaged, or is of another release."""

import subprocess
from functools import partial
from pathlib import Path

import pytest

from edgellama.backend.cpu_kernels import kernel_library
from edgellama.errors import UserError
from edgellama.kernels.cpu import library as module

REMEDY = r"the CPU kernels are not built\. Build them with `pip install \.`"


def test_a_missing_library_is_an_error_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "libedgellama_cpu.so"
    with pytest.raises(module.LibraryError, match=REMEDY):
        module.library(missing)
    monkeypatch.setattr(module, "library", partial(module.library, missing))
    with pytest.raises(UserError, match=REMEDY):
        kernel_library()


def compiled(path: Path, code: str) -> Path:
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path], input=code.encode(), check=True)
    return path


def test_a_damaged_library_or_one_of_another_release_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    """The loader maps a library without its end; reading what is not there would end the process (SIGBUS)."""
    whole, path = module.PATH.read_bytes(), tmp_path / "x.so"
    for size in (0, 3, 63, 64, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(module.LibraryError, match=r"x\.so: the CPU kernels cannot be loaded .*`pip install \.`"):
            module.library(path)
    path.write_bytes(whole)
    module.require_whole(path)
    with pytest.raises(module.LibraryError, match=r"cannot be loaded .*edgellama_abi"):
        module.library(compiled(tmp_path / "other.so", "int other(void) { return 1; }"))
    for abi in (module.ABI - 1, module.ABI + 1):
        other = compiled(tmp_path / f"abi{abi}.so", f"int edgellama_abi(void) {{ return {abi}; }}")
        with pytest.raises(module.LibraryError, match=rf"kernels of ABI {abi}, needed: {module.ABI}\. Build"):
            module.library(other)
    with pytest.raises(module.LibraryError, match="Is a directory"):
        module.library(tmp_path)
