"""PyTorch and transformers in eager mode. MODEL is "<Hugging Face folder>:<dtype>", dtype float32 or bfloat16."""

from __future__ import annotations

import time

import torch
import transformers


class Engine:
    """The interface of worker.py; see there."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        folder, _, dtype = model.rpartition(":")
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.version = f"torch {torch.__version__}, transformers {transformers.__version__}"
        self.filled: list[int] = []
        self.cache = transformers.DynamicCache()

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from an empty cache to the first new token."""
        self.filled, self.cache = [], transformers.DynamicCache()
        start_time = time.perf_counter()
        self._forward(tokens)
        return time.perf_counter() - start_time

    def decode(self, tokens: list[int], steps: int) -> list[float]:
        """Seconds of each of `steps` greedy steps after the prompt."""
        if tokens != self.filled:
            self.cache = transformers.DynamicCache()
            self._forward(tokens)
            self.filled = tokens
        token, seconds = tokens[-1], []
        for _ in range(steps):
            start_time = time.perf_counter()
            token = self._forward([token])
            seconds.append(time.perf_counter() - start_time)
        self.cache.crop(len(tokens))
        return seconds

    def _forward(self, tokens: list[int]) -> int:
        logits = self.model(torch.tensor([tokens]), past_key_values=self.cache, logits_to_keep=1).logits
        return int(logits[0, -1].argmax())
