"""Runs the command line of the runtime in this process."""

from __future__ import annotations

import pytest

from edgellama.__main__ import main


def run_main(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Returns the exit status, stdout and stderr of `edgellama` with `arguments`."""
    status = main(arguments)
    out, err = capfd.readouterr()
    return status, out, err
