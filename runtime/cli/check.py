"""`edgellama check`: compare every file of an artifact with the manifest, by size and hash. Nothing is loaded.

It runs wherever Python runs: neither numpy nor MindSpore Lite is needed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from ..artifact.files import COMPANIONS, WrongFileError, check_hash, check_size, find, sha256_open
from ..artifact.json_reader import read_object
from ..artifact.manifest import MANIFEST, FileEntry, Manifest, read_manifest
from ..errors import UserError
from ..progress import progress
from .options import add_artifact

RIGHT = ("ok", "no hash")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgellama check`."""
    command.description = (
        "Hash every file of an artifact and compare it with the manifest. States: ok; no hash (a tokenizer or settings "
        "file, which the manifest does not list: present and readable); damaged; wrong size; missing; not a file (a "
        "link out of the folder, a fifo or a device); extra file. Exit status 2 unless every file is ok or has no hash."
    )
    add_artifact(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command `check`. Raises UserError if a file is not as the manifest says."""
    folder = Path(options.artifact)
    manifest = read_manifest(folder)
    wrong = []
    for state, size, name in states(folder, manifest):
        print(f"{state:<10}  {'' if size is None else f'{size:,}':>15}  {name}", flush=True)
        if state not in RIGHT:
            wrong.append(f"{name} ({state})")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{folder}: {len(wrong)} wrong: {', '.join(wrong[:3])}{more}. Copy the whole folder again or export again"
        )


def states(folder: Path, manifest: Manifest) -> Iterator[tuple[str, int | None, str]]:
    """Yield (state, bytes or None, path in the folder) of the manifest, every listed file, and every other file."""
    yield "ok", (folder / MANIFEST).stat().st_size, MANIFEST  # read_manifest has compared its digest
    listed = set()
    for entry in manifest.files():
        listed.add(entry.file)
        yield _state(folder, entry), _size(folder / entry.file), entry.file
    for name in _present(folder):
        if name != MANIFEST and name not in listed:
            yield _unlisted(folder, name), _size(folder / name), name


def _state(folder: Path, entry: FileEntry) -> str:
    hashed = 0

    def done(count: int) -> None:
        nonlocal hashed
        hashed += count

    path = folder / entry.file
    try:
        check_size(folder, entry.file, entry.bytes)
        what = lambda: f"Hashing {entry.file} ({hashed / max(entry.bytes, 1):.0%} of {entry.bytes / 1e6:,.0f} MB)"  # noqa: E731
        with progress(what, delay=1.0), path.open("rb") as file:
            check_hash(path, sha256_open(file, done), entry.sha256)
    except WrongFileError as error:
        return error.state
    except OSError:
        return "damaged"  # it cannot be read
    return "ok"


def _unlisted(folder: Path, name: str) -> str:
    if name not in COMPANIONS:
        return "extra file"
    try:
        find(folder, name)
        if name.endswith(".json") and name != "tokenizer.json":  # other tools read tokenizer.json
            read_object(folder / name, "")
    except WrongFileError as error:
        return error.state
    except (OSError, UserError):
        return "damaged"
    return "no hash"


def _present(folder: Path) -> list[str]:
    """Return the paths of everything in the folder that is no folder itself, sorted."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [os.path.relpath(Path(place) / name, folder) for name in (*files, *links)]
    return sorted(found)


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None
