"""`python -m edgellama.exporter.ascend.board.measure ARTIFACT DEVICE`: runs the converted probe, prints JSON lines.

Each line of the output is one JSON object, which is one stage. The command is a separate process, so that a crash of
native code leaves the stages before it. It does not judge the measurements: answers.py does.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgellama.artifact.manifest import Artifact
from edgellama.backend.ascend.device import find
from edgellama.engine.engine import Engine

EXPECTED = "probe.npz"
REPEATS = 10


def say(stage: str, **values: Any) -> None:
    """Print one stage."""
    print(json.dumps({"stage": stage, **values}), flush=True)


def run(folder: Path, device: int | None) -> None:
    """Measure the probe in `folder`. device: number of the NPU; None runs a probe for a host, which the tests do."""
    artifact = Artifact.open(folder)
    with np.load(folder / EXPECTED, allow_pickle=False) as saved:
        tokens, prompts, expected = saved["tokens"], saved["prompts"], saved["logits"]
    before = find(device).free if device is not None else 0
    engine = Engine(artifact, device_id=device)
    after = find(device).free if device is not None else 0
    manifest = artifact.manifest
    say(
        "load",
        seconds=engine.timings.load,
        taken=before - after,
        weights=sum(entry.bytes for entry in manifest.files()),
        caches=manifest.cache.nbytes,
    )
    start = np.zeros(engine.batch, np.int64)
    logits = [engine.forward(tokens[:, : prompts.max()], start, prompts).copy()]  # the next call overwrites it
    say("prefill", **difference(logits[0], expected[:, 0]))
    say("cache", **written(engine, prompts))
    rows = np.arange(engine.batch)
    for step in range(expected.shape[1] - 1):
        at = prompts + step
        logits.append(engine.forward(tokens[rows, at][:, None], at, np.ones_like(at)).copy())
    say("decode", **difference(np.stack(logits[1:], axis=1), expected[:, 1:]))
    say("gears", **{str(bucket): gear_times(engine, bucket) for bucket in engine.buckets})


def difference(found: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """Compare logits. relative: the largest difference over the range of `expected`; agreement: the share of positions
    with the same largest logit; finite: whether there is neither NaN nor infinity."""
    span = float(expected.max() - expected.min())
    return {
        "relative": float(np.abs(found - expected).max()) / span,
        "agreement": float(np.mean(found.argmax(-1) == expected.argmax(-1))),
        "finite": bool(np.isfinite(found).all()),
    }


def written(engine: Engine, lengths: np.ndarray) -> dict[str, Any]:
    """Read the caches back and count their positions.

    rows_written of rows_expected valid positions hold something; rows_spoiled positions outside them do. lengths: int
    [B], the valid positions of each row.
    """
    inside = outside = 0
    for tensor in engine.cache.arrays.values():
        array = tensor if isinstance(tensor, np.ndarray) else tensor.read()
        held = (np.asarray(array) != 0).any(axis=(1, 3))  # [B, C]
        valid = np.arange(held.shape[1]) < lengths[:, None]
        inside += int((held & valid).sum())
        outside += int((held & ~valid).sum())
    wanted = int(lengths.sum()) * len(engine.cache.arrays)
    return {"rows_written": inside, "rows_expected": wanted, "rows_spoiled": outside}


def gear_times(engine: Engine, bucket: int) -> dict[str, float]:
    """Return the median milliseconds of a call with `bucket` tokens, and of the switch to its gear from another."""
    other = next((b for b in engine.buckets if b != bucket), bucket)
    rows = np.zeros(engine.batch, np.int64)
    calls, switches = [], []

    def forward(tokens: int) -> float:
        began = time.perf_counter()
        engine.forward(np.ones((engine.batch, tokens), np.int32), rows, np.full_like(rows, tokens))
        return (time.perf_counter() - began) * 1e3

    for _ in range(REPEATS):
        forward(other)
        before = engine.timings.switch
        forward(bucket)
        switches.append((engine.timings.switch - before) * 1e3)
        calls.append(forward(bucket))
    return {"call_ms": float(np.median(calls)), "switch_ms": float(np.median(switches))}


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
