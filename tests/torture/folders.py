"""The folder that an export writes: kills, races of two writers, full disks, read-only places, existing folders.

Most cases write a small folder with `edgellama.exporter.writing.atomic_folder`, as exports and conversions do, in
forked children; that takes milliseconds. Some start whole exports.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support.child import REPOSITORY
from torture.case import Case, FaultClass
from torture.fixtures import fixture
from torture.outcomes import Outcome, of_command, reported

EXPORT_SECONDS = 300.0
WHOLE = 20  # every twentieth case is a whole export


def export_command(checkpoint: Path, out: Path) -> list[str]:
    """Return the command line of a small export."""
    command = [sys.executable, "-m", "edgellama", "export", str(checkpoint), "--out", str(out), "--target", "cpu"]
    return [*command, "--context", "32", "--buckets", "1", "--no-verify"]


def finish(process: subprocess.Popen[str]) -> tuple[int, str] | None:
    """Return exit status and standard error of a process; None if it does not end in EXPORT_SECONDS."""
    try:
        _, stderr = process.communicate(timeout=EXPORT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    return process.returncode, stderr


def started(command: list[str], limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    """Start a command with standard error captured. limit: runs in the child before the command."""
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, preexec_fn=limit
    )


def whole_artifact(out: Path) -> str | None:
    """Return what is wrong with the artifact at `out`; None if its files are complete, or there is no folder."""
    from edgellama.artifact.manifest import Artifact
    from edgellama.errors import UserError

    if not out.exists():
        return None
    try:
        Artifact.open(out, check="always")
    except UserError as error:
        return str(error)
    return None


def judged(out: Path, allowed: tuple[str | None, ...]) -> Outcome:
    """Return the outcome of a kill: `out` is one of the allowed contents, and the next writer finds no obstacle."""
    from support.folder_writers import content, write_folder

    try:
        found = content(out)
        write_folder(out, "next")
        left = sorted(path.name for path in out.parent.iterdir())
        if found in allowed and content(out) == "next" and left == [out.name]:
            return Outcome("harmless")
        return Outcome("silent", f"found {found!r}, after the next writer {content(out)!r}, and {left}")
    except Exception as error:
        return Outcome("silent", f"the folder is not whole: {error!r}")


def kills(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """SIGKILL at a random change to a file, or after a random time of a whole export."""
    from edgellama.exporter.writing import atomic_folder
    from support.folder_writers import forked, kill_at, write_folder

    checkpoint = fixture(shared, "checkpoint")
    exchange = atomic_folder.exchange
    for case in cases:
        out = case.folder / "x"
        if case.number % WHOLE == WHOLE - 1:
            yield killed_export(checkpoint, out, case.rng)
            continue
        if before := case.rng.random() < 0.5:
            write_folder(out, "old")
        # Half of the cases behave as on a file system that cannot exchange two folders in one step.
        two_renames = case.rng.random() < 0.5
        atomic_folder.exchange = (lambda new, old: False) if two_renames else exchange  # type: ignore[assignment]
        change = case.rng.randrange(1, 40)

        def writer(out: Path = out, change: int = change) -> None:
            kill_at(change)
            write_folder(out, "new")

        status = forked(writer)
        if status not in (0, -signal.SIGKILL):
            yield Outcome("traceback", f"the writer ended with status {status}")
            continue
        old = "old" if before else None
        if two_renames and before and not out.exists():  # between the renames: the next command restores it
            with atomic_folder.claimed(out):
                pass
        yield judged(out, (old, "new"))
        atomic_folder.exchange = exchange


def killed_export(checkpoint: Path, out: Path, rng: random.Random) -> Outcome:
    """Kill a whole export after a random time, and export again."""
    process = started(export_command(checkpoint, out))
    time.sleep(rng.uniform(0.5, 15.0))
    process.kill()
    process.communicate()
    if (problem := whole_artifact(out)) is not None:
        return Outcome("silent", problem)
    ended = finish(started(export_command(checkpoint, out)))
    if ended is None:
        return Outcome("hang", f"the next export took more than {EXPORT_SECONDS:g} s")
    outcome = of_command(*ended)
    if outcome is not None:
        return Outcome("silent", f"the next export failed: {outcome}")
    left = sorted(path.name for path in out.parent.iterdir())
    problem = whole_artifact(out) or (f"left behind: {left}" if left != [out.name] else None)
    return Outcome("silent", problem) if problem else Outcome("harmless")


def races(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """Two writers of one folder at the same moment: one wins, the other reports it."""
    from support.folder_writers import raced

    checkpoint = fixture(shared, "checkpoint")
    for case in cases:
        out = case.folder / "x"
        if case.number % WHOLE == WHOLE - 1:
            yield raced_exports(checkpoint, out, case.rng)
            continue
        try:
            ((statuses, found, left),) = raced(case.folder, 1)
        except AssertionError as error:
            yield Outcome("silent", f"the folder is not whole: {error}")
            continue
        left = [name for name in left if not name.endswith(".refused")]
        good = sorted(statuses) == [0, 2] and found == "ab"[statuses.index(0)] and left == ["x"]
        yield Outcome("clear") if good else Outcome("silent", f"statuses {statuses}, content {found!r}, {left}")


def raced_exports(checkpoint: Path, out: Path, rng: random.Random) -> Outcome:
    """Start two whole exports of one folder, at most a second apart."""
    first = started(export_command(checkpoint, out))
    time.sleep(rng.choice((0.0, 0.0, rng.random())))
    ends = [finish(process) for process in (first, started(export_command(checkpoint, out)))]
    if None in ends:
        return Outcome("hang", f"an export took more than {EXPORT_SECONDS:g} s")
    failed = [end for end in ends if end is not None and end[0] != 0]
    if (problem := whole_artifact(out)) is not None or len(failed) == 2:
        return Outcome("silent" if problem else "unclear", problem or str(failed))
    # If one has ended before the other begins, both succeed, one after the other.
    outcome = of_command(*failed[0], names=[str(out), out.name]) if failed else Outcome("clear")
    return outcome or Outcome("clear")


def full_disks(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """A whole export whose files may not grow beyond a random size (RLIMIT_FSIZE), as on a full disk."""
    checkpoint = fixture(shared, "checkpoint")
    for case in cases:
        out = case.folder / "x"
        size = case.rng.choice((0, 1, 100, 1000, 4000, case.rng.randrange(1, 120_000)))

        def limit(size: int = size) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        yield refused_export(export_command(checkpoint, out), out, limit)


def refused_export(command: list[str], out: Path, limit: Callable[[], None] | None = None) -> Outcome:
    """Run an export that cannot succeed, or may; nothing incomplete may remain."""
    ended = finish(started(command, limit))
    if ended is None:
        return Outcome("hang", f"the export took more than {EXPORT_SECONDS:g} s")
    outcome = of_command(*ended)
    problem = whole_artifact(out)
    left = [path.name for path in out.parent.iterdir() if path.name.startswith(".")] if out.parent.is_dir() else []
    if outcome is None and problem is None and out.exists():
        return Outcome("harmless")
    if problem is not None or left or outcome is None:
        return Outcome("silent", problem or f"left behind: {left}" if left else "status 0 without an artifact")
    return outcome


def places(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """Places that cannot be written to, or that hold something that is not ours: refused, and nothing changes."""
    from edgellama.errors import UserError, explain_os_error
    from edgellama.exporter.writing import atomic_folder

    for case in cases:
        out, name = prepared(case)
        before = state(case.folder)
        try:
            with atomic_folder.claimed(out) as claim, claim.written() as partial:
                (partial / "file").write_text("x")
            outcome = Outcome("silent", f"{name}: written")
        except UserError as error:
            outcome = reported(str(error), [out.name, str(out)])
        except OSError as error:
            outcome = reported(explain_os_error(error), [out.name, str(out.parent), str(out)])
        except Exception as error:
            outcome = Outcome("traceback", f"{name}: {error!r}")
        if outcome.kind == "clear" and state(case.folder) != before:
            outcome = Outcome("silent", f"{name}: refused, and files have changed")
        yield outcome


def prepared(case: Case) -> tuple[Path, str]:
    """Put something in the way. Returns the output folder to try, and what it is."""
    folder, rng = case.folder, case.rng
    out = folder / "x"
    kind = rng.choice(("file", "folder", "hidden", "fifo", "link", "loop", "foreign", "below", "long", "proc", "sys"))
    if kind == "file":
        out.write_bytes(rng.randbytes(rng.randrange(20)) + b"x")
    elif kind in ("folder", "hidden", "foreign"):
        out.mkdir()
        name = {"folder": "thesis.txt", "hidden": ".git", "foreign": "manifest.json"}[kind]
        (out / name).write_text(rng.choice(('{"name": "app"}', "[]", "", "x", "[" * 1000, '{"graphs": 3}')))
    elif kind == "fifo":
        os.mkfifo(out)
    elif kind == "link":
        (folder / "t").mkdir()
        (folder / "t/file").write_text("mine")
        out.symlink_to(rng.choice(("t", "t/file")))
    elif kind == "loop":
        out.symlink_to(out)
    elif kind == "below":  # a file in place of a folder
        out.write_text("x")
        return out / "y", kind
    elif kind == "long":
        return folder / ("n" * rng.randrange(256, 1000)), kind  # a message repeats it
    else:
        return Path(rng.choice(("/proc/x", "/proc/self/x", "/sys/x", "/sys/kernel/x"))), kind
    return out, kind


def state(folder: Path) -> list[tuple[str, int, bytes]]:
    """Return every path in a folder with its mode and its content."""
    found = []
    for path in sorted(folder.rglob("*")):
        regular = path.is_file() and not path.is_symlink()
        found.append((str(path), path.lstat().st_mode, path.read_bytes() if regular else b""))
    return found


CLASSES = (
    FaultClass(
        "kills",
        "SIGKILL at a random change of a writer, with and without an exchange of folders; whole exports killed",
        "the folder is the old one or the new one, byte for byte, the next writer succeeds, and nothing is left behind",
        200,
        59,
        kills,
    ),
    FaultClass(
        "races", "two writers of one folder at once; every twentieth case: two whole exports", "", 60, 39, races
    ),
    FaultClass(
        "full-disks",
        "whole exports whose files may not grow beyond a random size",
        "the limit is larger than every file, and the artifact is complete",
        40,
        3,
        full_disks,
    ),
    FaultClass("places", "outputs that are not ours, or cannot be written to", "", 200, 100, places),
)
