"""python -m edgellama.exporter.proof.run_windows FOLDER JOB RESULT: compute logits over windows of a text.

evaluate.py starts it as a separate process, because MindSpore Lite cannot share a process with MindSpore.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from edgellama.artifact.manifest import Artifact

from .child import main
from .run_artifact import device_of, engine_for


def write_logits(folder: Path, job: Path, result: Path) -> None:
    """Write the logits after tokens first .. W-2 of each window to `result`, float32 [n, W - 1 - first, V].

    job: an npz file with windows [n, W], first, weights_memory, and device_id if an NPU is named. Tokens 0 .. first are
    one prefill; each later token is one decode step. A batch of windows uses all rows of the artifact.
    """
    with np.load(job, allow_pickle=False) as given:
        windows, first = given["windows"], int(given["first"])
        weights_memory, device_id = str(given["weights_memory"]), device_of(given)
    engine = engine_for(Artifact.open(folder), weights_memory, device_id)
    count, size = windows.shape
    out = open_memmap(result, "w+", np.float32, (count, size - 1 - first, engine.vocab_size))
    with result.open("r+b") as file:  # a full disk is an error here; in a memory map it would be SIGBUS
        os.posix_fallocate(file.fileno(), 0, result.stat().st_size)
    for begin in range(0, count, engine.batch):
        batch = windows[begin : begin + engine.batch]
        rows = len(batch)
        tokens = np.zeros((engine.batch, size), np.int32)
        tokens[:rows] = batch
        live = (np.arange(engine.batch) < rows).astype(np.int64)
        prefilled = first + 1
        out[begin : begin + rows, 0] = engine.forward(tokens[:, :prefilled], 0 * live, prefilled * live)[:rows]
        for i in range(prefilled, size - 1):
            out[begin : begin + rows, i - first] = engine.forward(tokens[:, i : i + 1], i * live, live)[:rows]
    out.flush()


if __name__ == "__main__":
    main(write_logits)
