"""`python -m edgellama.backend.ascend.trial_child FOLDER DEVICE` loads the graphs of a converted artifact, and ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ...artifact.manifest import Artifact, read_manifest
from ...errors import UserError
from .graph import AscendGraph
from .trial import FAILED


def main(folder: str, device: str) -> None:
    """Load every graph, and end this process without the destructors of native code."""
    artifact = Artifact(Path(folder), read_manifest(Path(folder)))
    status = 0
    try:
        for graph in artifact.manifest.graphs:
            AscendGraph(artifact, graph, int(device))
    except UserError as error:
        print(error, file=sys.stderr)
        status = FAILED
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
