"""Native output: hidden from the terminal after success, and shown after a failure."""

from __future__ import annotations

import os
import subprocess

import pytest

from edgellama.backend.native_log import TAIL_LINES, native_log_on_failure
from edgellama.errors import UserError
from support.child import run_child


def test_native_output_is_dropped_when_the_block_succeeds(capfd: pytest.CaptureFixture[str]) -> None:
    with native_log_on_failure("loading"):
        os.write(2, b"[ERROR] nothing to worry about\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_native_output_is_part_of_the_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught, native_log_on_failure("x.mindir: could not be loaded"):
        os.write(2, b"".join(b"line %d\n" % i for i in range(100)))
        raise RuntimeError("status 1")
    lines = str(caught.value).splitlines()
    assert lines[0] == "x.mindir: could not be loaded: status 1"
    assert lines[1:3] == ["The native log ends:", f"  ({100 - TAIL_LINES} earlier lines left out)"]
    assert lines[3:] == [f"  line {i}" for i in range(100 - TAIL_LINES, 100)]
    assert capfd.readouterr().err == ""


def test_an_error_of_another_kind_prints_all_native_output(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="mine"), native_log_on_failure("loading"):
        os.write(2, b"noise\n")
        raise UserError("mine")
    assert "noise\n" in capfd.readouterr().err


def test_a_failure_without_native_output_shows_only_its_error() -> None:
    with pytest.raises(UserError) as caught, native_log_on_failure("loading"):
        raise RuntimeError("status 1")
    assert str(caught.value) == "loading: status 1"


def test_show_prints_all_native_output(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), native_log_on_failure("loading", show=True):
        os.write(2, b"noise\n")
        raise RuntimeError("status 1")
    assert capfd.readouterr().err == "noise\n"


def in_process(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    code = "import os, sys\nfrom edgellama.backend.native_log import native_log_on_failure as caught\n" + code
    return run_child("-c", code, **options)


def test_pythons_own_stderr_still_reaches_the_terminal() -> None:
    """Progress lines appear while native code runs; nested captures are restored in order."""
    code = """
with caught("a"):
    print("progress", file=sys.stderr)
    with caught("b"):
        os.write(2, b"noise")
    os.write(2, b"noise")
    print("more", file=sys.stderr)
print("end", file=sys.stderr)
os.write(2, b"native end\\n")
"""
    assert in_process(code).stderr == "progress\nmore\nend\nnative end\n"


def test_a_process_without_standard_error_is_no_problem() -> None:
    assert in_process("os.close(2)\nwith caught('a'):\n    print('fine')").stdout == "fine\n"
