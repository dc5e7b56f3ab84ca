"""The kernels' shared library: the error when it is not built."""

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
