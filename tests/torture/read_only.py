"""Folders and files that may not be read or written: of the artifact, the user's cache, outputs and their parents.

Permissions do not bind root, so each case first gives up what overrides them (`unprivileged.py`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from torture.case import Case, FaultClass
from torture.fixtures import copied, fixture
from torture.folders import export_command, refused_export, state
from torture.forked import in_child
from torture.outcomes import BAD, Outcome
from torture.unprivileged import obey_permissions

WHOLE = 20  # every twentieth case is a whole export
REPORT = '{"schema_version": 1, "artifact": {}, "machine": {}}'


def protect(folder: Path) -> None:
    """Make a folder and everything in it read-only."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)


def no_cache(folder: Path, rng: random.Random) -> None:
    """Let the user's cache folder be one that cannot be used: HOME or XDG_CACHE_HOME is read-only, a file, or odd."""
    home = folder / "home"
    home.mkdir()
    cache = home / ".cache" / "edgellama"
    kind = rng.choice(("home", "cache", "file", "unreadable", "folder", "fifo", "missing", "empty", "relative"))
    os.environ.pop("XDG_CACHE_HOME", None)
    os.environ["HOME"] = str(home)
    if kind == "cache":
        cache.mkdir(parents=True)
        cache.chmod(0o555)
    elif kind == "file":
        (home / ".cache").write_text("mine")
    elif kind in ("unreadable", "folder", "fifo"):
        cache.mkdir(parents=True)
        memory = cache / "verified.json"
        if kind == "unreadable":
            memory.write_text("{}")
            memory.chmod(0)
        elif kind == "folder":
            memory.mkdir()
        else:
            os.mkfifo(memory)
        if rng.random() < 0.5:
            cache.chmod(0o555)
    elif kind == "missing":
        os.environ["HOME"] = str(home / "none" / "x")
    elif kind == "empty":
        os.environ["HOME"] = ""
    elif kind == "relative":
        os.environ["XDG_CACHE_HOME"] = "x/y"
    home.chmod(0o555)


def artifacts(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """A read-only artifact without a usable cache folder; in half of the cases a file or folder of it is unreadable."""
    from torture.loading import compare_with

    good = fixture(shared, "artifact")
    compare = compare_with(good)
    for case in cases:
        folder = copied(good, case.folder)
        protect(folder)
        hidden = None
        if case.rng.random() < 0.5:
            # config.json and generation_config.json are read by other parts than Artifact.open, which loads here.
            every = [path for path in folder.rglob("*") if path.name not in ("config.json", "generation_config.json")]
            hidden = case.rng.choice(sorted([folder, *every]))
            hidden.chmod(case.rng.choice((0, 0o444)) if hidden.is_dir() else 0)

        def load(case: Case = case, folder: Path = folder, hidden: Path | None = hidden) -> Outcome:
            no_cache(case.folder, case.rng)
            before = state(folder) if hidden is None else None
            obey_permissions()
            outcome = compare(folder)
            if hidden is not None:
                return Outcome("silent", f"{hidden} cannot be read, and it loads")
            if state(folder) != before:
                return Outcome("silent", "the artifact has changed")
            return outcome

        yield in_child(load, [folder.name])


def outputs(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """An output whose parent is read-only or unreadable, or that is read-only itself; whole exports among them."""
    from edgellama import output_file
    from edgellama.errors import UserError
    from edgellama.exporter.writing import atomic_folder
    from support.folder_writers import content, write_folder

    checkpoint = fixture(shared, "checkpoint")
    assert atomic_folder and output_file
    for case in cases:
        parent = case.folder / "parent"
        parent.mkdir()
        out = parent / "x"
        if case.number % WHOLE == WHOLE - 1:
            yield whole_export(checkpoint, case, out)
            continue
        folder = case.rng.random() < 0.5  # or a report
        if case.rng.random() < 0.5:
            write_folder(out, "old") if folder else out.write_text(REPORT)
        if out.exists() and case.rng.random() < 0.7:
            protect(out) if folder else out.chmod(case.rng.choice((0o444, 0)))
        parent.chmod(case.rng.choice((0o555, 0o555, 0o111, 0, 0o755)))

        def write(out: Path = out, folder: bool = folder) -> Outcome:
            before = state(out.parent)
            obey_permissions()
            try:
                if folder:
                    write_folder(out, "new")
                else:
                    output_file.write_report(out, {"answers": [], "format_version": 1})
            except UserError:
                if os.access(out.parent, os.R_OK | os.X_OK) and state(out.parent) != before:
                    return Outcome("silent", "refused, and files have changed")
                raise
            left = sorted(path.name for path in out.parent.iterdir())
            new = content(out) == "new" if folder else "answers" in out.read_text()
            good = new and left == [out.name]
            return Outcome("harmless") if good else Outcome("silent", f"status 0, and {left}, new: {new}")

        outcome = in_child(write, [out.name, str(parent)])
        parent.chmod(0o755)
        yield outcome


def whole_export(checkpoint: Path, case: Case, out: Path) -> Outcome:
    """Export where OUT's parent, HOME and the folder for temporary files, or the checkpoint is read-only."""
    kind = case.rng.choice(("parent", "home", "checkpoint"))
    source = copied(checkpoint, case.folder)
    before: Callable[[], None] = obey_permissions
    if kind == "parent":
        out.parent.chmod(0o555)
    elif kind == "checkpoint":
        protect(source)
    else:
        (case.folder / "none").mkdir(mode=0o555)

        def before() -> None:
            obey_permissions()
            os.environ.update(dict.fromkeys(("HOME", "XDG_CACHE_HOME", "TMPDIR"), str(case.folder / "none")))

    outcome = refused_export(export_command(source, out), out, before)
    out.parent.chmod(0o755)
    right = outcome.kind == ("clear" if kind == "parent" else "harmless")
    return outcome if right or outcome.kind in BAD else Outcome("unclear", f"read-only {kind}: {outcome}")


CLASSES = (
    FaultClass(
        "read-only-artifacts",
        "an artifact that is read-only, with a cache folder that cannot be used, and with unreadable files and folders",
        "every file can be read, the artifact does not change, and its logits and tokens are exactly right",
        200,
        40,
        artifacts,
    ),
    FaultClass(
        "read-only-outputs",
        "outputs that are read-only, or in folders that are read-only or unreadable; whole exports with a "
        "read-only parent, HOME or checkpoint",
        "the permissions allow it, the new output is complete, and nothing else is left",
        200,
        39,
        outputs,
    ),
)
