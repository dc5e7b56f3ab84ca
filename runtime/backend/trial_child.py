"""`python -m edgellama.backend.trial_child FOLDER DEVICE` loads the graphs of an artifact, and ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..artifact.manifest import Artifact, Graph, read_manifest
from ..errors import UserError
from .trial import FAILED


def main(folder: str, device: str) -> None:
    """Load every graph, and end this process without the destructors of native code."""
    artifact = Artifact(Path(folder), read_manifest(Path(folder)))
    status = 0
    try:
        for graph in artifact.manifest.graphs:
            _load(artifact, graph, int(device))
    except UserError as error:
        print(error, file=sys.stderr)
        status = FAILED
    sys.stderr.flush()
    os._exit(status)


def _load(artifact: Artifact, graph: Graph, device: int) -> None:
    if artifact.manifest.opset == "ascend":
        from .ascend.graph import AscendGraph

        AscendGraph(artifact, graph, device)
        return
    from .cpu_kernels import load_cpu_kernels
    from .lite_graph import LiteGraph

    if artifact.manifest.opset == "cpu":
        load_cpu_kernels()
    LiteGraph(artifact.file(graph.file), 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
