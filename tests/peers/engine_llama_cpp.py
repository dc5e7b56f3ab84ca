"""llama.cpp through llama-cpp-python's C bindings.

MODEL is "<GGUF file>:<0 or 1>"; 1 turns flash attention on. All other settings are llama.cpp's defaults (float16 cache,
batches of 512). No Python layer runs between llama_decode and the clock.
"""

from __future__ import annotations

import time

import llama_cpp as C
import numpy as np

BATCH = 512


class Engine:
    """The interface of worker.py; see there."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        path, _, flash = model.rpartition(":")
        C.llama_log_set(_quiet, None)
        C.llama_backend_init()
        options = C.llama_model_default_params()
        self.model = C.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        settings = C.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, BATCH, BATCH
        settings.flash_attn_type = int(flash)
        settings.n_threads = settings.n_threads_batch = threads
        self.context = C.llama_init_from_model(self.model, settings)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.memory = C.llama_get_memory(self.context)
        self.vocabulary = C.llama_vocab_n_tokens(C.llama_model_get_vocab(self.model))
        self.version = f"llama-cpp-python {C.__version__}; {C.llama_print_system_info().decode().strip()}"
        self.filled: list[int] = []

    def prefill(self, tokens: list[int]) -> float:
        """Seconds from an empty cache to the first new token."""
        C.llama_memory_clear(self.memory, True)
        self.filled = []
        start_time = time.perf_counter()
        self._feed(tokens)
        self._last().argmax()
        return time.perf_counter() - start_time

    def decode(self, tokens: list[int], steps: int) -> list[float]:
        """Seconds of each of `steps` greedy steps after the prompt."""
        if tokens != self.filled:
            C.llama_memory_clear(self.memory, True)
            self._feed(tokens)
            self.filled = tokens
        token, seconds = tokens[-1], []
        for _ in range(steps):
            start_time = time.perf_counter()
            self._feed([token])
            token = int(self._last().argmax())
            seconds.append(time.perf_counter() - start_time)
        C.llama_memory_seq_rm(self.memory, 0, len(tokens), -1)
        return seconds

    def logits(self, tokens: list[int], first: int) -> np.ndarray:
        """Logits [n - first, V] float32 after tokens first..n-1."""
        C.llama_memory_clear(self.memory, True)
        self.filled = []
        self._feed(tokens[: first + 1])
        rows = [self._last().copy()]
        for token in tokens[first + 1 :]:
            self._feed([token])
            rows.append(self._last().copy())
        return np.stack(rows)

    def _feed(self, tokens: list[int]) -> None:
        for i in range(0, len(tokens), BATCH):
            part = (C.llama_token * len(tokens[i : i + BATCH]))(*tokens[i : i + BATCH])
            status = C.llama_decode(self.context, C.llama_batch_get_one(part, len(part)))
            if status:
                raise RuntimeError(f"llama_decode returned {status}")

    def _last(self) -> np.ndarray:
        """Logits [V] of the last token: a view into llama.cpp's buffer."""
        return np.ctypeslib.as_array(C.llama_get_logits_ith(self.context, -1), (self.vocabulary,))


@C.llama_log_callback
def _quiet(level: int, text: bytes, data: object) -> None:
    if level >= 3 and level != 5:  # warnings and errors; 5 continues the previous line
        import sys

        sys.stderr.write(text.decode("utf-8", "replace"))
