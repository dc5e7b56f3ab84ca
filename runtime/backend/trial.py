"""Loads an artifact in a child process (trial_child.py) before this process does.

Some graph files cannot be checked completely before native code parses them (mindir/check.py says which). If native
code crashes or hangs, it is the child that ends. An artifact that was loaded once is remembered as hash_cache.py
remembers hashes: for this machine, this release of MindSpore Lite, and until a graph file changes.
"""

from __future__ import annotations

import time

from ..artifact import hash_cache
from ..artifact.files import find
from ..artifact.manifest import Artifact
from ..errors import UserError
from ..progress import progress

LONGEST = 1800.0  # seconds; a board reads a large graph from its card at 20 to 80 MB a second
FAILED = 2  # exit status of a child that got an error from MindSpore Lite, without a crash
TAIL = 300  # characters of the child's messages


def try_in_child(artifact: Artifact, device_id: int, release: str, longest: float = LONGEST) -> None:
    """Load the graphs of an artifact in a child process, unless that went well before on this machine.

    An error that MindSpore Lite reports is not raised: loading in this process reports it, with its cause.

    Args:
        device_id: the NPU; without a meaning for other targets.
        release: of MindSpore Lite.
        longest: seconds that loading may take.

    Raises:
        UserError: the child crashed, or took too long.
    """
    if not (artifact.path / "manifest.json").exists():
        return  # an export that proves what it has just written, before it writes the manifest
    manifest = artifact.manifest
    proof = f"loaded-{release}-{manifest.to_dict()['digest']}"
    keys = [hash_cache.key(find(artifact.path, graph.file), proof) for graph in manifest.graphs]
    if set(keys) <= set(hash_cache.remembered()):
        return
    import subprocess  # imported late, as most loads need no child

    from ..checkout import module_command

    began = time.time()
    settled = all(hash_cache.settled(find(artifact.path, graph.file), began) for graph in manifest.graphs)
    command = [*module_command("edgellama.backend.trial_child"), str(artifact.path), str(device_id)]
    again = "Convert the exported artifact again: `make convert ARTIFACT=...`" if manifest.converted else "Export again"
    remedy = f"{again}. Do not load artifacts of strangers"
    with progress(lambda: f"Loading {artifact.path.name} in a child process, once on this machine", delay=1.0):
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=longest)
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"{artifact.path}: a child process that loaded it did not end within {longest:,.0f} seconds. {remedy}"
            ) from error
    if done.returncode == 0:
        hash_cache.remember(keys if settled else [])
    elif done.returncode != FAILED:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        text = done.stderr.decode(errors="replace").strip()[-TAIL:]
        raise UserError(
            f"{artifact.path}: MindSpore Lite crashed while a child process loaded it ({how}). {remedy}. "
            f"The end of its messages: {text or 'none'}"
        )
