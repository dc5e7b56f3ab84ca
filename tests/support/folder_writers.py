"""Writes folders with edgellama.exporter.writing.atomic_folder in processes that are killed, or that compete.

Run as a script (child.run_support), because it forks: the process of the tests has threads.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from edgellama.errors import UserError
from edgellama.exporter.writing import atomic_folder

# The audit events of changes to files. `ctypes.dlsym` precedes each exchange of two folders.
CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.chmod",
    "os.truncate",
    "ctypes.dlsym",
    "open",
}


def write_folder(out: Path, content: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Writes a folder that has the form of an artifact; every file has the same content.

    - meanwhile: is called before the last file is written.
    """
    with atomic_folder.claimed(out) as claim, claim.written() as partial:
        (partial / "graphs").mkdir()
        for name in ("graphs/1.mindir", "graphs/1.data", "config.json"):
            (partial / name).write_text(content)
        meanwhile()
        manifest = {"format_version": 1, "digest": content, "opset": "cpu", "graphs": []}
        (partial / "manifest.json").write_text(json.dumps(manifest))


def content(out: Path) -> str | None:
    """Returns the content of a folder of `write_folder`, None if there is no folder. Raises if it is not complete."""
    if not out.exists():
        return None
    (found,) = {(out / name).read_text() for name in ("graphs/1.mindir", "graphs/1.data", "config.json")}
    assert json.loads((out / "manifest.json").read_text())["digest"] == found
    return found


def forked(function: Callable[[], None]) -> int:
    """Returns the exit status of a child process that runs `function`; negative: the signal that ended it."""
    return status_of(start(function))


def start(function: Callable[[], None]) -> int:
    """Starts `function` in a child process and returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        function()
    except UserError as error:
        print(error, file=sys.stderr)
        os._exit(2)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def status_of(child: int) -> int:
    """Waits for a child process and returns its exit status, as `forked` does."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(change: int) -> None:
    """Ends this process with SIGKILL just before its `change`-th change to a file."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in CHANGES:
            seen += 1
            if seen == change:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed(parent: Path, exchange: bool, before: bool) -> list[list]:
    """Kills a writer at its first change to a file, then at its second, and so on until it ends by itself.

    Returns [what the reader finds, what the reader finds after the next write, names left then] for each kill.

    - exchange: whether the system can exchange two folders in one step.
    - before: whether there is an old folder.
    """
    if not exchange:
        atomic_folder.exchange = lambda new, old: False  # type: ignore[assignment]
    results = []
    for change in range(1, 200):
        out = parent / str(change) / "x"
        out.parent.mkdir()
        if before:
            write_folder(out, "old")

        def writer(out: Path = out, change: int = change) -> None:
            kill_at(change)
            write_folder(out, "new")

        status = forked(writer)
        assert status in (0, -signal.SIGKILL), status
        found = content(out)
        recovered = found
        if found is None and before:  # the claim alone restores the old folder
            with atomic_folder.claimed(out):
                recovered = content(out)
        write_folder(out, "next")
        results.append([found, recovered, content(out), sorted(path.name for path in out.parent.iterdir())])
        if status == 0:
            break
    return results


def raced(parent: Path, rounds: int) -> list[list]:
    """Starts two writers of one folder at the same moment. Returns [statuses, content, names left] for each round."""
    results = []
    for number in range(rounds):
        out = parent / str(number) / "x"
        begin = time.monotonic() + 0.03

        refused = parent / f"{number}.refused"

        def other_is_refused(refused: Path = refused, begin: float = begin) -> None:
            while not refused.exists():
                assert time.monotonic() < begin + 10, "the other writer was not refused"
                time.sleep(0.002)

        def writer(name: str, out: Path = out, begin: float = begin, refused: Path = refused) -> None:
            time.sleep(max(0, begin - time.monotonic()))
            try:
                write_folder(out, name, other_is_refused)
            except UserError:
                refused.touch()
                raise

        children = [start(lambda name=name: writer(name)) for name in ("a", "b")]  # type: ignore[misc]
        statuses = [status_of(child) for child in children]
        results.append([statuses, content(out), sorted(path.name for path in out.parent.iterdir())])
    return results


def main() -> None:
    """Runs `killed` with the arguments of the process, and prints the result as JSON."""
    folder, *rest = sys.argv[1:]
    print(json.dumps(killed(Path(folder), *(json.loads(argument) for argument in rest))))


if __name__ == "__main__":
    main()
