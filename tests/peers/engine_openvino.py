"""OpenVINO GenAI: MODEL is a folder with an OpenVINO model, or "<folder>:<attention backend>" (PA or SDPA).

Its prefix cache is off, and every prompt is fresh besides: it answers from memory otherwise. Decoding has no way to
step back, so each measurement runs its prompt again; the clock of the steps starts behind it.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai


class Arrivals(genai.StreamerBase):
    """The moment each new token arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def write(self, token: Any) -> Any:
        now = time.perf_counter()
        self.times += [now] * (len(token) if isinstance(token, list) else 1)
        return genai.StreamingStatus.RUNNING

    def end(self) -> None: ...


class Engine:
    def __init__(self, model: str, threads: int, context: int) -> None:
        folder, _, backend = model.rpartition(":")
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "ATTENTION_BACKEND": backend}
        if backend == "PA":
            scheduler = genai.SchedulerConfig()
            scheduler.enable_prefix_caching = False
            scheduler.cache_size = 1  # GB
            scheduler.max_num_batched_tokens = context  # the prompt in one piece
            options["scheduler_config"] = scheduler
        self.pipeline = genai.LLMPipeline(folder, "CPU", **options)
        self.version = f"openvino-genai {genai.__version__}"

    def prefill(self, tokens: list[int]) -> float:
        return self._arrivals(tokens, 1)[0]

    def decode(self, tokens: list[int], steps: int) -> list[float]:
        return list(np.diff(self._arrivals(tokens, steps + 1)))

    def _arrivals(self, tokens: list[int], new: int) -> list[float]:
        """Seconds from the call to each of `new` tokens."""
        ids = ov.Tensor(np.array([tokens], np.int64))
        mask = ov.Tensor(np.ones((1, len(tokens)), np.int64))
        config = genai.GenerationConfig(max_new_tokens=new, ignore_eos=True, do_sample=False)
        arrivals = Arrivals()
        began = time.perf_counter()
        self.pipeline.generate(genai.TokenizedInputs(ids, mask), config, arrivals)
        return [arrived - began for arrived in arrivals.times]
