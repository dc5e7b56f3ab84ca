"""`python -m support.mindir_campaign SCRATCH COUNT FIRST FOLDER...` mutates the graphs of artifacts and loads them.

Prints one JSON object for each folder: how many mutations had which outcome, and the longest time of one in seconds.
A host artifact is loaded into the engine and run; an Ascend artifact goes through the checks before its load. Outcomes:

- refused: a UserError that names the file and the remedy.
- unclear: a UserError without them.
- traceback: any other exception.
- same, other: it was loaded, and gives the same or other logits. "same" would be harmless, "other" silent damage.
- child: the checks of a converted graph accept it, so a child process loads it first.

A crash ends this process: the caller sees its status. SCRATCH/last names the mutation that was tried last.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from edgellama.artifact.manifest import Artifact
from edgellama.engine.engine import Engine
from edgellama.errors import UserError
from edgellama.mindir.check import check_graphs
from support.mindir_mutations import of_bytes, structured, with_graph


def logits(folder: Path) -> np.ndarray | None:
    """Loads and runs a host artifact; checks an Ascend artifact and returns None."""
    artifact = Artifact.open(folder)
    if artifact.manifest.opset == "ascend":
        check_graphs(artifact)
        return None
    engine = Engine(artifact, threads=1)
    tokens = np.arange(1, 6)[None].repeat(engine.batch, 0)
    return engine.forward(tokens, np.zeros(engine.batch), np.full(engine.batch, 5)).copy()


def outcome(folder: Path, expected: np.ndarray | None) -> str:
    """Returns what happens when a mutated artifact is loaded and run."""
    try:
        found = logits(folder)
    except UserError as error:
        text = str(error)
        return "refused" if str(folder) in text and "again" in text else f"unclear: {text[:200]}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"[:200]
    if found is None or expected is None:
        return "child"
    return "same" if np.array_equal(found, expected) else "other"


def campaign(folder: Path, scratch: Path, count: int, first: int) -> dict[str, float]:
    """Tries `count` structured mutations and as many of bytes, with the seeds from `first` on."""
    expected = logits(folder)
    manifest = Artifact.open(folder).manifest
    found: Counter[str] = Counter()
    longest = 0.0
    for seed in range(first, first + count):
        number = seed % len(manifest.graphs)
        original = (folder / manifest.graphs[number].file).read_bytes()
        for mutate in (structured, of_bytes):
            what, data = mutate(original, seed)
            (scratch / "last").write_text(f"{folder} {mutate.__name__} {seed}: {what}")
            changed = with_graph(folder, scratch / "mutated", data, number)
            began = time.perf_counter()
            found[outcome(changed, expected)] += 1
            longest = max(longest, time.perf_counter() - began)
    return {"artifact": folder.name, "longest": round(longest, 3), **found}  # type: ignore[dict-item]


if __name__ == "__main__":
    for artifact in sys.argv[4:]:
        print(json.dumps(campaign(Path(artifact), Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))), flush=True)
