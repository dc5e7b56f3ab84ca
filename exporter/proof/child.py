"""Runs the modules of this folder that need MindSpore Lite in a process of their own.

MindSpore and MindSpore Lite have libraries with the same names, so one process cannot load both.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgellama.checkout import module_command
from edgellama.errors import UserError, explain_os_error, os_error_of


def device_entry(device_id: int | None) -> dict[str, Any]:
    """Return the entry of a job's npz file that names the NPU; nothing if none is named."""
    return {} if device_id is None else {"device_id": device_id}


def run_in_child(module: str, *arguments: Path) -> None:
    """Run edgellama.exporter.proof.<module>. Raises UserError, with the reason, if it does not succeed."""
    command = [*module_command(f"edgellama.exporter.proof.{module}"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reason = done.stderr.strip()[-2000:]
        if done.returncode < 0:
            number = -done.returncode
            name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
            reason = f"its process was ended by signal {name}; SIGKILL usually means that memory ran out. {reason}"
        raise UserError(f"the artifact does not run: {reason.strip()}")


def main(function: Callable[..., None]) -> None:
    """Run `function` in the child, with the arguments of the process as paths. Prints one line for a known error."""
    try:
        function(*(Path(argument) for argument in sys.argv[1:]))
    except Exception as error:
        if isinstance(error, UserError):
            sys.exit(str(error))
        if (cause := os_error_of(error)) is not None:
            sys.exit(explain_os_error(cause))
        raise
