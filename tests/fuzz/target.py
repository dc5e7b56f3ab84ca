"""A fuzz target: a function that takes bytes, and the rules that decide whether its outcome is right.

For each input, exactly one of these must happen, within the limits on processor time and memory:
- the function returns: the input is accepted, and the function has checked a property of the result;
- it raises one of the target's documented errors with a clear message of one line: the input is refused.

Everything else is a finding: another exception, an error whose message is not clear, a limit that is exceeded.
"""

from __future__ import annotations

import resource
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

SECONDS = 5.0  # of processor time for one input; ordinary inputs take a millisecond
MEMORY = 1 << 30  # bytes that the process may map in addition to what the idle target has mapped
MESSAGE = (10, 2000)  # characters of an error's message


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        run: takes an input; returns if it is accepted.
        errors: the exceptions that refuse an input.
        form: "json", "safetensors", "gguf", "mindir" or "bytes": how mutators.py changes inputs.
        largest: bytes of an input.
    """

    name: str
    run: Callable[[bytes], None]
    errors: tuple[type[BaseException], ...]
    form: str = "bytes"
    largest: int = 1 << 14


@dataclass
class Outcomes:
    """What happened to the inputs of a target.

    Attributes:
        findings: what is wrong -> the first input that shows it, and the traceback.
    """

    accepted: int = 0
    refused: int = 0
    findings: dict[str, tuple[bytes, str]] = field(default_factory=dict)


def execute(target: Target, data: bytes, outcomes: Outcomes) -> str | None:
    """Give one input to a target, and return what is wrong; None if nothing is."""
    began = time.process_time()
    wrong, details = None, ""
    try:
        target.run(data)
        outcomes.accepted += 1
    except target.errors as error:
        outcomes.refused += 1
        text = str(error)
        if "\n" in text or not MESSAGE[0] <= len(text) <= MESSAGE[1]:
            place = _place(error)
            wrong, details = f"unclear message of {len(text):,} characters at {place}", text[:5000]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        wrong = f"{type(error).__name__} at {_place(error)}"
        details = "".join(traceback.format_exception(error))
    seconds = time.process_time() - began
    if seconds > SECONDS:
        wrong, details = f"more than {SECONDS:g} s of processor time", f"{seconds:.1f} s"
    if wrong is not None:
        outcomes.findings.setdefault(wrong, (data, details))
    return wrong


def limit_memory() -> None:
    """Limit the memory of this process. Beyond it, Python raises MemoryError."""
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@cache
def scratch(name: str) -> Path:
    """Return a folder in memory for the files of a target; the same one at each call."""
    shared = Path("/dev/shm")
    made = tempfile.TemporaryDirectory(prefix=f"edgellama-fuzz-{name}-", dir=shared if shared.is_dir() else None)
    _KEPT.append(made)
    return Path(made.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # they are deleted when the process ends


def _place(error: BaseException) -> str:
    """The deepest line of this project in the traceback, as file:function; it names a finding."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if any(part in frame.filename for part in ("/runtime/", "/exporter/"))]
    frame = (ours or list(frames))[-1]
    return f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}"
