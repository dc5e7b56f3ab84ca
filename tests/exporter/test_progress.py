"""The progress line on a terminal (here a pseudo-terminal), and without a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from support.child import run_child

CODE = """
import sys, time
from edgellama import progress
progress.DELAY, progress.PERIOD = {delay}, 0.05
with progress.progress("Loading", plain={plain}):
    time.sleep({seconds})
print("done", file=sys.stderr)
"""


def on_terminal(seconds: float, delay: float) -> str:
    ours, theirs = pty.openpty()
    code = CODE.format(seconds=seconds, delay=delay, plain=True)
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while b"done" not in shown:
            shown += os.read(ours, 1024)
        assert process.wait() == 0
    os.close(ours)
    return shown.decode()


def elsewhere(plain: bool) -> str:
    code = CODE.format(seconds=0, delay=0, plain=plain)
    return run_child("-c", code).stderr


def test_a_clock_runs_on_a_terminal_and_its_line_is_cleared() -> None:
    shown = on_terminal(1.0, delay=0)
    assert re.search(r"\r[|/\\-] Loading \d+ s", shown)
    assert shown.split("\r\033[K")[1].split() == ["done"]


def test_quick_work_shows_nothing() -> None:
    assert "Loading" not in on_terminal(0, delay=60)


def test_outside_a_terminal_it_is_one_plain_line_or_nothing() -> None:
    assert elsewhere(plain=True) == "Loading ...\ndone\n"
    assert elsewhere(plain=False) == "done\n"
