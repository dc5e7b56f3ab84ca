"""Decides which folder an export may create or replace. Everything that no export wrote is refused, and stays.

An export may replace a path that does not exist, an empty folder, and an older artifact. Files that a user has added to
an older artifact stay: they move into the new one.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgellama.artifact.manifest import MANIFEST
from edgellama.errors import UserError

MANIFEST_KEYS = {"format_version", "digest", "opset", "graphs"}  # what makes a manifest.json one of ours
MANIFEST_LIMIT = 1 << 26  # bytes; a manifest has some 100 kB
# The files that a command of ours writes into an artifact, beside those that its manifest lists.
WRITTEN = {
    MANIFEST,
    "config.json",
    "weights.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "probe.npz",
}
WRITTEN_GRAPHS = re.compile(r"graphs/([^/]+\.(mindir|data|onnx|ini)|[^/]+_variables/.+)")
MOUNTS = Path("/proc/self/mountinfo")


def checked(out: Path, sources: Sequence[Path]) -> Path:
    """Return the real path of `out`, with symlinks followed.

    Args:
        out: the folder that the user named
        sources: what the export reads; it must not be inside `out`

    Raises UserError, with the reason, if an export must not replace the folder.
    """
    real = Path(os.path.realpath(out))
    shown = f"the output folder (OUT) is {out}" + (f", a link to {real}" if out.is_symlink() else "")
    if inside(Path.cwd(), real):
        raise _refused(shown, "the current folder, or a folder that contains it")
    for source in sources:
        if any(inside(path, real) for path in _real_paths(source)):
            raise _refused(shown, f"which contains {source}, the source of this command")
    mode = _mode(real)
    if mode is None:
        return real
    if stat.S_ISLNK(mode):
        raise _refused(shown, "a symbolic link that leads to itself")
    if not stat.S_ISDIR(mode):
        raise _refused(shown, "which is a file")
    if real in mount_points():
        raise UserError(f"{shown}, a mount point, which cannot be replaced. Choose a folder inside it: OUT={out}/model")
    names = sorted(path.name for path in real.iterdir())
    if names and not is_artifact(real):
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise _refused(shown, f"a folder that is not empty and has no {MANIFEST} of an export (it contains {listed})")
    return real


def is_artifact(folder: Path) -> bool:
    """Return whether the folder has a manifest that an export wrote, also of another version or damaged by an edit."""
    path = folder / MANIFEST
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > MANIFEST_LIMIT:
            return False
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.keys() >= MANIFEST_KEYS


def added_files(artifact: Path) -> list[Path]:
    """Return the files in an artifact's folder that no command of ours wrote, relative to the folder."""
    listed = set(_listed(json.loads((artifact / MANIFEST).read_bytes())))
    found = []
    for folder, _, names in os.walk(artifact):
        for name in names:
            path = (Path(folder) / name).relative_to(artifact)
            text = path.as_posix()
            if text not in WRITTEN and text not in listed and not WRITTEN_GRAPHS.fullmatch(text):
                found.append(path)
    return found


def inside(path: Path, folder: Path) -> bool:
    """Return whether `path` is `folder` or below it. Both are real paths."""
    return path == folder or folder in path.parents


def mount_points() -> set[Path]:
    """Return the mount points of this process; an empty set where the system does not list them."""
    try:
        lines = MOUNTS.read_bytes().splitlines()
    except OSError:
        return set()
    fields = [line.split()[4] for line in lines if line.count(b" ") > 4]
    # The kernel writes a space, tab, newline or backslash as a backslash and three octal digits.
    names = [re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field) for field in fields]
    return {Path(os.fsdecode(name)) for name in names}


def _refused(shown: str, reason: str) -> UserError:
    return UserError(
        f"{shown}, {reason}. An export replaces only an empty folder or an artifact, and nothing was changed. "
        "Choose another folder: OUT=artifacts/name"
    )


def _mode(path: Path) -> int | None:
    """Return the mode of a path, or None if there is nothing. Raises OSError for a path that cannot exist."""
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return None


def _real_paths(source: Path) -> Iterator[Path]:
    """Yield the real path of a source, and the targets of the links in its folder: a hub's cache consists of links."""
    yield Path(os.path.realpath(source))
    if source.is_dir():
        yield from (Path(os.path.realpath(path)) for path in source.iterdir() if path.is_symlink())


def _listed(value: object) -> Iterator[str]:
    """Yield each file name in a manifest, which need not be valid."""
    if isinstance(value, dict):
        if isinstance(value.get("file"), str):
            yield value["file"]
        for key in ("graphs", "data", "weights"):
            yield from _listed(value.get(key))
    elif isinstance(value, list):
        for entry in value:
            yield from _listed(entry)
