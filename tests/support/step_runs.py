"""One schedule of calls through the Engine, for any implementation of the graph, and the logits of transformers.

`python -m support.step_runs lite|mindspore OUT ARTIFACT...` runs the schedule in a child process, because MindSpore and
MindSpore Lite cannot be loaded by one process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from support.child import run_support

BATCH, CONTEXT, BUCKETS = 2, 64, (1, 4, 16)
# Tokens of the two rows in each call: around the edges of every bucket, in chunks, idle rows, up to the last position.
SCHEDULE = [(3, 17), (1, 1), (4, 0), (5, 15), (16, 1), (1, 16), (1, 1), (33, 7)]


def token_rows(vocab_size: int) -> np.ndarray:
    """Returns the token ids of the two rows, [2, CONTEXT]."""
    return np.random.default_rng(1).integers(0, vocab_size, (BATCH, CONTEXT), dtype=np.int32)


def run_schedule(engine: Any) -> np.ndarray:
    """Returns logits [calls, 2, V], with zeros for idle rows."""
    texts, start = token_rows(engine.vocab_size), np.zeros(BATCH, np.int32)
    out = []
    for lengths in SCHEDULE:
        length = np.array(lengths, np.int32)
        call = np.full((BATCH, length.max()), 7, np.int32)
        for row in range(BATCH):
            call[row, : length[row]] = texts[row, start[row] : start[row] + length[row]]
        out.append(engine.forward(call, start, length).copy())
        start += length
    return np.stack(out)


def expected(checkpoint: Path) -> np.ndarray:
    """Returns the same logits from transformers, which computes each row in one pass."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    texts = token_rows(model.config.vocab_size)
    with torch.no_grad():
        whole = model(torch.from_numpy(texts.astype(np.int64))).logits.numpy()  # [2, CONTEXT, V]
    ends = np.cumsum(SCHEDULE, axis=0) - 1  # [calls, 2]
    out = whole[np.arange(BATCH), ends]
    return np.where((np.array(SCHEDULE) > 0)[..., None], out, 0)


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Returns max |found - wanted| divided by the range of `wanted`; infinite if `found` is not finite."""
    return float(np.nan_to_num(np.abs(found - wanted), nan=np.inf).max() / np.ptp(wanted))


def run_in_child(kind: str, artifacts: Sequence[Path], scratch: Path) -> list[np.ndarray]:
    """Runs `run_schedule` on each artifact, all in one child process."""
    out = scratch / f"{kind}.npy"
    run_support("step_runs", kind, str(out), *map(str, artifacts))
    return [logits for logits in np.load(out)]


def lite_engine(artifact: Any) -> Any:
    """Returns the runtime's engine with MindSpore Lite."""
    from edgellama.engine.engine import Engine

    return Engine(artifact)


def mindspore_engine(artifact: Any) -> Any:
    """Returns the runtime's engine with the traced network itself, which MindSpore runs."""
    from edgellama.engine.engine import Engine

    return Engine(artifact, build=lambda path: MindSporeGraph(artifact))


class MindSporeGraph:
    """exporter.network.llama.Llama with the artifact's weights, with the interface of the engine's BuiltGraph."""

    def __init__(self, artifact: Any) -> None:
        import mindspore

        from edgellama.exporter.graph_spec import Shape
        from edgellama.exporter.mindir.graph import read
        from edgellama.exporter.network.config import LlamaConfig
        from edgellama.exporter.network.llama import Llama
        from edgellama.exporter.opsets import portable

        mindspore.set_context(mode=mindspore.GRAPH_MODE)
        graph = artifact.manifest.graphs[0]
        shape = Shape(artifact.manifest.batch, graph.bucket, artifact.manifest.context)
        self.network = Llama(LlamaConfig.from_dict(artifact.manifest.config), shape, portable)
        self.network.set_train(False)
        weights = {p.name: p for _, p in self.network.parameters_and_names()}
        for stored in read(artifact.file(graph.file)).parameters:
            path = artifact.file(graph.file).parent / stored.location
            array = np.memmap(path, stored.dtype, "r", stored.offset, stored.shape)
            weights.pop(stored.name).set_data(mindspore.Tensor(np.array(array)))
        assert not weights, f"not in the artifact: {sorted(weights)}"
        self.inputs = [spec.name for spec in graph.inputs]

    def resize(self, shapes: Sequence[Sequence[int]]) -> None:
        """Does nothing: the network takes any number of tokens."""

    def bind(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        return list(arrays)

    def run(self, bound: list[Any]) -> list[np.ndarray]:
        from mindspore import Tensor

        return [output.asnumpy() for output in self.network(*(Tensor(array) for array in bound))]


if __name__ == "__main__":
    from edgellama.artifact.manifest import Artifact

    make = {"lite": lite_engine, "mindspore": mindspore_engine}[sys.argv[1]]
    np.save(sys.argv[2], np.stack([run_schedule(make(Artifact.open(path))) for path in sys.argv[3:]]))
