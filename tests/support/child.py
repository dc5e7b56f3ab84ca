"""Runs child processes from the root of the repository.

MindSpore, which the exporter needs, and MindSpore Lite, which the runtime needs, cannot be loaded by one process. So
whatever needs MindSpore runs in a child, and so does whatever needs a new process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


def run_child(*arguments: str, status: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs this Python with `arguments` and returns its exit status, stdout and stderr as text.

    - status: the exit status that the child must have; None accepts any.
    - options: for `subprocess.run`, for example `input` or `env`.
    """
    options = {"cwd": REPOSITORY, "capture_output": True, "text": True, **options}
    done = subprocess.run([sys.executable, *arguments], check=False, **options)
    assert status is None or done.returncode == status, done.stderr
    return done


def run_support(module: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the module support/`module`.py as a script; see `run_child`."""
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])
    return run_child("-m", f"support.{module}", *arguments, env={**os.environ, "PYTHONPATH": path}, **options)


def run_python(code: str, *arguments: str, **options: Any) -> Any:
    """Runs `code` and returns the JSON value that it prints as its last line; see `run_child`."""
    return json.loads(run_child("-c", code, *arguments, **options).stdout.splitlines()[-1])


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `edgellama` with `arguments`; accepts any exit status."""
    return run_child("-m", "edgellama", *arguments, status=None)
