"""`python -m exporter.board.measure ARTIFACT DEVICE`: run the converted probe, print what was seen, a JSON line each.

A process of its own, so that what was seen before a crash of native code is kept. It judges nothing: answers.py does.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from runtime.artifact.manifest import Artifact
from runtime.backend.ascend.device import find
from runtime.engine.engine import Engine

EXPECTED = "probe.npz"
REPEATS = 10


def say(stage: str, **values: Any) -> None:
    print(json.dumps({"stage": stage, **values}), flush=True)


def run(folder: Path, device: int | None) -> None:
    """device: None runs the probe of another op set on the host, which the tests do."""
    artifact = Artifact.open(folder)
    with np.load(folder / EXPECTED) as saved:
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
    """relative: max |d logits| over their range; agreement: share of equal argmax; finite: no NaN, no infinity."""
    span = float(expected.max() - expected.min())
    return {
        "relative": float(np.abs(found - expected).max()) / span,
        "agreement": float(np.mean(found.argmax(-1) == expected.argmax(-1))),
        "finite": bool(np.isfinite(found).all()),
    }


def written(engine: Engine, lengths: np.ndarray) -> dict[str, Any]:
    """Of the caches, read back: rows_written of rows_expected positions hold something, rows_spoiled beyond them do."""
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
    """Milliseconds (medians) of a call of this many tokens, and of the switch to it from another gear."""
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
