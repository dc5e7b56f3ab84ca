"""This project's runtime: MODEL is a JSON list, an artifact folder and the last instruction set to use or null."""

from __future__ import annotations

import json
import time

import numpy as np

from edgellama.artifact.manifest import Artifact
from edgellama.backend.cpu_kernels import limit_isa
from edgellama.engine.engine import Engine as StepEngine


class Engine:
    """The interface of worker.py; see there."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        from importlib.metadata import version

        folder, isa = json.loads(model)
        limit_isa(isa)
        self.step = StepEngine(Artifact.open(folder), threads)
        if self.step.context < context:
            raise ValueError(f"the artifact's context is {self.step.context}; this run needs {context}")
        self.version = f"MindSpore Lite {version('mindspore-lite')}"
        self.filled: list[int] = []

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from an empty cache to the first new token."""
        self.filled = []
        start_time = time.perf_counter()
        self._forward(tokens, 0).argmax()
        return time.perf_counter() - start_time

    def decode(self, tokens: list[int], steps: int) -> list[float]:
        """Seconds of each of `steps` greedy steps after the prompt."""
        if tokens != self.filled:
            self._forward(tokens, 0)
            self.filled = tokens
        token, seconds = tokens[-1], []
        for position in range(len(tokens), len(tokens) + steps):
            start_time = time.perf_counter()
            token = int(self._forward([token], position).argmax())
            seconds.append(time.perf_counter() - start_time)
        return seconds

    def logits(self, tokens: list[int], first: int) -> np.ndarray:
        """Logits [n - first, V] float32 after tokens first..n-1."""
        self.filled = []
        rows = [self._forward(tokens[: first + 1], 0).copy()]
        rows += [self._forward([tokens[i]], i).copy() for i in range(first + 1, len(tokens))]
        return np.stack(rows)

    def _forward(self, tokens: list[int], start: int) -> np.ndarray:
        """Run one call with row 0 only. Returns its logits [V] after the last token."""
        row = np.arange(self.step.batch) == 0
        call = np.zeros((self.step.batch, len(tokens)), np.int32)
        call[0] = tokens
        return self.step.forward(call, start * row, len(tokens) * row)[0]
