"""OpenVINO GenAI. MODEL is "<folder of an OpenVINO model>:<attention backend>" (PA or SDPA).

Its prefix cache is off, and every prompt is new: otherwise it would reuse earlier results. It cannot remove tokens from
its cache, so each decode measurement computes its prompt again; the clock of the steps starts after it.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai


class Arrivals(genai.StreamerBase):
    """Records when each new token arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def write(self, token: Any) -> Any:
        """Record the time of a token, or of a list of tokens."""
        now = time.perf_counter()
        self.times += [now] * (len(token) if isinstance(token, list) else 1)
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing to do at the end."""


class Engine:
    """The interface of worker.py; see there."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        folder, _, backend = model.rpartition(":")
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "ATTENTION_BACKEND": backend}
        if backend == "PA":
            scheduler = genai.SchedulerConfig()
            scheduler.enable_prefix_caching = False
            scheduler.cache_size = 1  # GB
            scheduler.max_num_batched_tokens = context  # compute the prompt in one pass
            options["scheduler_config"] = scheduler
        self.pipeline = genai.LLMPipeline(folder, "CPU", **options)
        self.version = f"openvino-genai {genai.__version__}"

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from an empty cache to the first new token."""
        return self._arrivals(tokens, 1)[0]

    def decode(self, tokens: list[int], steps: int) -> list[float]:
        """Seconds of each of `steps` greedy steps after the prompt."""
        return list(np.diff(self._arrivals(tokens, steps + 1)))

    def _arrivals(self, tokens: list[int], new: int) -> list[float]:
        """Seconds from the call until each of `new` tokens arrives."""
        ids = ov.Tensor(np.array([tokens], np.int64))
        mask = ov.Tensor(np.ones((1, len(tokens)), np.int64))
        config = genai.GenerationConfig(max_new_tokens=new, ignore_eos=True, do_sample=False)
        arrivals = Arrivals()
        start_time = time.perf_counter()
        self.pipeline.generate(genai.TokenizedInputs(ids, mask), config, arrivals)
        return [arrived - start_time for arrived in arrivals.times]
