"""python -m edgellama.exporter.proof.run_artifact FOLDER JOB RESULT: compute an artifact's logits, for verify.py.

It uses the runtime, or the ONNX twin if the artifact is for Ascend and not converted yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgellama.artifact.manifest import Artifact, Manifest
from edgellama.engine.engine import Engine
from edgellama.errors import UserError

from .child import main


def engine_for(artifact: Artifact, weights_memory: str, device_id: int | None = None) -> Engine:
    """Return the engine of an artifact: the runtime's, or one over the ONNX twin for an unconverted Ascend artifact.

    weights_memory, device_id: as `Engine` takes them; the twin ignores the first. Raises UserError for a device and an
    artifact that runs as its twin.
    """
    if artifact.manifest.opset == "ascend" and artifact.manifest.converted is None:
        if device_id is not None:
            raise UserError(
                f"device_id is {device_id}, and {artifact.path} is not converted, so it runs on the host CPU as its "
                "ONNX twin. Convert it, or leave device_id out"
            )
        from ..onnx_twin.run import twin_engine

        return twin_engine(artifact)
    return Engine(artifact, device_id=device_id, weights_memory=weights_memory)


def device_of(job: Mapping[str, np.ndarray]) -> int | None:
    """Return the number of the NPU that a job names, or None."""
    return int(job["device_id"]) if "device_id" in job else None


def logits(folder: Path, job: Path) -> np.ndarray:
    """Return logits, float32 [B, len(edges) + steps, V].

    For each row, the first logits follow a prefill of each length in `edges`; the others follow the decode steps of
    `decode` = (prompt length, steps). All rows read the same tokens at different offsets: in call i, row b prefills
    edges[i + b], and row b starts decoding b calls later. So rows of different lengths share a call, and some rows of a
    call are empty.
    """
    with np.load(job, allow_pickle=False) as given:
        tokens, edges, decode = given["tokens"], given["edges"], given["decode"]
        manifest = Manifest.from_dict(json.loads(str(given["manifest"])))
        weights_memory, device_id = str(given["weights_memory"]), device_of(given)
    engine = engine_for(Artifact(folder, manifest), weights_memory, device_id)
    rows = np.arange(engine.batch)
    prefix, steps = (int(n) for n in decode)
    out = np.empty((engine.batch, len(edges) + steps, engine.vocab_size), np.float32)

    def forward(start: np.ndarray, length: np.ndarray) -> np.ndarray:
        call = np.zeros((engine.batch, int(length.max())), np.int32)
        for row, (first, count) in enumerate(zip(start, length, strict=True)):
            call[row, :count] = tokens[first : first + count]
        return engine.forward(call, start, length)

    for i in range(len(edges)):
        which = (i + rows) % len(edges)
        out[rows, which] = forward(0 * rows, edges[which])
    forward(0 * rows, np.full_like(rows, prefix))
    for call_index in range(steps + engine.batch - 1 if steps else 0):
        step = call_index - rows
        live = (step >= 0) & (step < steps)
        found = forward(np.where(live, prefix + step, 0), live.astype(np.int64))
        out[rows[live], len(edges) + step[live]] = found[live]
    return out


def write_logits(folder: Path, job: Path, result: Path) -> None:
    """Write `logits` of an artifact to the npy file `result`."""
    np.save(result, logits(folder, job))


if __name__ == "__main__":
    main(write_logits)
