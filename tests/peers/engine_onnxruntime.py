"""ONNX Runtime GenAI. MODEL is a folder written by its model builder."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as og


class Engine:
    """The interface of worker.py; see there."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        settings = json.loads((Path(model) / "genai_config.json").read_text())
        options = settings["model"]["decoder"]["session_options"]
        overlay = {"model": {"decoder": {"session_options": {**options, "intra_op_num_threads": threads}}}}
        config = og.Config(model)
        config.overlay(json.dumps(overlay))
        self.model = og.Model(config)
        self.context = context
        self.version = f"onnxruntime-genai {og.__version__}"
        self.filled: list[int] = []
        self.generator: og.Generator | None = None

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from an empty cache to the first new token."""
        self._start()
        start_time = time.perf_counter()
        self.generator.append_tokens(np.array(tokens, np.int32))
        self.generator.generate_next_token()
        return time.perf_counter() - start_time

    def decode(self, tokens: list[int], steps: int) -> list[float]:
        """Seconds of each of `steps` greedy steps after the prompt."""
        if tokens == self.filled:
            self.generator.rewind_to(len(tokens) - 1)
            self.generator.append_tokens(np.array(tokens[-1:], np.int32))
        else:
            self._start()
            self.generator.append_tokens(np.array(tokens, np.int32))
            self.filled = tokens
        self.generator.generate_next_token()  # selects from the prompt's logits without running the model
        seconds = []
        for _ in range(steps):
            start_time = time.perf_counter()
            self.generator.generate_next_token()
            seconds.append(time.perf_counter() - start_time)
        return seconds

    def _start(self) -> None:
        options = og.GeneratorParams(self.model)
        options.set_search_options(max_length=self.context, min_length=self.context, do_sample=False)
        self.filled, self.generator = [], og.Generator(self.model, options)
