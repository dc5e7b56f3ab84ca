"""Runs affine.mindir of lite_models.py in MindSpore Lite: y = x @ weight + b.

`python -m support.affine_model GRAPH` prints `threads_by_setting` of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mindspore_lite as mslite
import numpy as np


def load(path: Path, threads: int = 1) -> mslite.Model:
    """Loads a graph file with `threads` threads."""
    context = mslite.Context()
    context.cpu.thread_num = threads
    model = mslite.Model()
    model.build_from_file(str(path), mslite.ModelType.MINDIR, context)
    return model


def affine_inputs(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns random inputs of the graph: x float32 [rows, 4], y float32 [rows, 3]."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, 4), dtype=np.float32), rng.standard_normal((rows, 3), dtype=np.float32)


def run_affine(model: mslite.Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Runs the graph and returns a view of its output, float32 [rows, 3]."""
    inputs = model.get_inputs()
    for given, array in zip(inputs, (x, y), strict=True):
        given.set_data_from_numpy(array)
    return model.predict(inputs)[0].get_data_to_numpy()


def kernel_threads() -> int:
    """Returns the number of threads that MindSpore Lite has started in this process."""
    tasks = Path("/proc/self/task").iterdir()
    return sum((task / "comm").read_text().startswith("KernelThread") for task in tasks)


def threads_by_setting(graph: Path) -> list[int]:
    """Returns how many threads MindSpore Lite has started after runs with thread_num 1 and 2."""
    found = []
    for threads in (1, 2):
        model = load(graph, threads=threads)
        run_affine(model, *affine_inputs(8))
        found.append(kernel_threads())
    return found


if __name__ == "__main__":
    print(threads_by_setting(Path(sys.argv[1])))
