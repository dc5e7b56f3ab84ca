"""What a case can end with, and the written rules that tell a clear error from an unclear one.

A message is clear if all of these hold; `fault_of_message` checks them:
1. It is one line of 10 to 1,500 printable characters.
2. It names the file or the field: it contains one of the words that the case expects (a file name, a key, a tensor).
3. It has a remedy: it contains one of REMEDIES, which are all imperatives ("Export again", "Download it again").

From the command line, a clear error is also the only line on standard error that is not progress, begins with
`error: `, and comes with exit status 2.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

KINDS = ("clear", "unclear", "traceback", "crash", "hang", "silent", "harmless")
BAD = ("unclear", "traceback", "crash", "hang", "silent")
REMEDIES = re.compile(
    r"\b(add|ask|begin|change|check|choose|clear|close|convert|copy|correct|create|download|end|export|free|give|"
    r"install|leave|load|lower|make|merge|move|name|pass|put|raise|reduce|remove|rename|repeat|replace|restore|retry|run|"
    r"save|send|set|shorten|simplify|split|start|take|try|unset|update|use|wait|write)\b",
    re.IGNORECASE,
)
SHORTEST, LONGEST = 10, 1500


class Outcome(NamedTuple):
    """The end of one case.

    Attributes:
        kind: one of KINDS.
            clear, unclear: the product reported an error, by the rules above
            traceback: an exception that is not reported as one line
            crash: a signal ended the process
            hang: the time limit ended it
            silent: no error, and a wrong result
            harmless: no error, and the result is right by the rule of the class
        detail: the message, the traceback, or what was wrong.
    """

    kind: str
    detail: str = ""


def fault_of_message(text: str, names: Collection[str] = ()) -> str | None:
    """Return what makes an error message unclear; None for a clear one.

    Args:
        text: the message.
        names: files or fields, one of which it must contain; empty accepts any message.
    """
    if "\n" in text.strip() or not text.strip().isprintable():
        return "not one line of printable text"
    if not SHORTEST <= len(text) <= LONGEST:
        return f"{len(text)} characters"
    if names and not any(name in text for name in names):
        return "names no file and no field of the case"
    return None if REMEDIES.search(text) else "has no remedy"


def reported(text: str, names: Collection[str] = ()) -> Outcome:
    """Return the outcome of an error that the product reported with this message."""
    fault = fault_of_message(text, names)
    return Outcome("clear", text) if fault is None else Outcome("unclear", f"({fault}) {text}")


def of_command(status: int, stderr: str, names: Collection[str] = ()) -> Outcome | None:
    """Return the outcome of a command that failed; None if it ended with status 0.

    Args:
        status: the exit status; negative: the signal that ended the process.
        stderr: what it wrote to standard error.
        names: as in `fault_of_message`.
    """
    if status < 0:
        return Outcome("crash", f"signal {-status}: {stderr[-2000:]}")
    if "Traceback (most recent call last)" in stderr:
        return Outcome("traceback", stderr[-4000:])
    if status == 0:
        return None
    if status > 128:
        return Outcome("crash", f"status {status}: {stderr[-2000:]}")
    lines = [line for line in stderr.splitlines() if line.startswith(("error: ", "Error", "ERROR"))]
    if status != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
        return Outcome("unclear", f"(status {status}, {len(lines)} lines of errors) {stderr[-2000:]}")
    return reported(lines[0].removeprefix("error: "), names)
