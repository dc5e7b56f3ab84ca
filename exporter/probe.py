"""python -m exporter.probe FOLDER JOB RESULT: an artifact's logits through the runtime, for verify.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from runtime.artifact import Artifact, Manifest
from runtime.engine import Engine
from runtime.errors import UserError


def logits(folder: Path, job: Path) -> np.ndarray:
    """Row 0 prefills each length of `edges` afresh, then `decode` = (prompt length, steps); the other rows idle."""
    with np.load(job) as given:
        tokens, edges, decode = given["tokens"], given["edges"], given["decode"]
        manifest = Manifest.from_dict(json.loads(str(given["manifest"])))
    engine = Engine(Artifact(folder, manifest))
    row = np.arange(engine.batch) == 0

    def forward(first: int, count: int) -> np.ndarray:
        call = np.zeros((engine.batch, count), np.int32)
        call[0] = tokens[first : first + count]
        return engine.forward(call, first * row, count * row)[0].copy()

    out = [forward(0, int(n)) for n in edges]
    prefix, steps = (int(n) for n in decode)
    forward(0, prefix)
    return np.stack(out + [forward(prefix + i, 1) for i in range(steps)])


if __name__ == "__main__":
    try:
        np.save(sys.argv[3], logits(Path(sys.argv[1]), Path(sys.argv[2])))
    except UserError as error:
        sys.exit(str(error))
