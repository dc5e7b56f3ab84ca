"""The measured work: prompts and decode steps of an engine."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..artifact.manifest import Manifest
from ..engine.engine import Engine
from ..engine.weights_memory import COPY
from ..errors import UserError
from ..generation.decode import GenerationTimings, decode, greedy
from ..generation.sequences import Sequences
from ..text.tokenizer import Tokenizer

SEED = 0
HASHED_PROMPT, HASHED_TOKENS = 32, 64
CACHED_PROMPT = 1000  # tokens, nine tenths of them in the cache
TEXT = "It was a bright cold day in spring, and 12 clocks were striking: nobody on the stairs looked up. " * 16


@dataclass(frozen=True)
class Settings:
    """What to measure. `fitted` clips lengths, depths and steps to what the artifact holds; `clipped` says which.

    Attributes:
        threads: CPU threads; None takes all available
        prompt_lengths: tokens of the prefill measurements
        depths: tokens in the cache before the decode measurements
        batches: rows; None takes 1, 2, 4, ... and all
        repeats: rounds, in addition to the one that warms up
        steps: decode steps per sample
        weights_memory: where the weights are, "copy" or "map", as `Engine` takes it
        isa: the last instruction set that the kernels may use; None takes the fastest that the CPU has
    """

    threads: int | None
    prompt_lengths: tuple[int, ...] = (32, 128, 512)
    depths: tuple[int, ...] = (128, 1024, 4096)
    batches: tuple[int, ...] | None = None
    repeats: int = 5
    steps: int = 16
    weights_memory: str = COPY
    isa: str | None = None

    def __post_init__(self) -> None:
        for name in ("threads", "prompt_lengths", "depths", "batches", "repeats", "steps"):
            value = getattr(self, name)
            smallest = min(value, default=0) if isinstance(value, tuple) else value
            if smallest is not None and smallest < 1:
                raise UserError(f"{name} is {value}; needed: at least 1")

    def fitted(self, manifest: Manifest) -> Settings:
        """A copy that fits the artifact: clipped, sorted, and with batches. Raises UserError for too many rows."""
        rows = manifest.batch
        batches = self.batches or (*(1 << i for i in range(rows.bit_length()) if 1 << i < rows), rows)
        if max(batches) > rows:
            raise UserError(
                f"batches contains {max(batches)}; this artifact has {rows} rows (batch). "
                f"Export with `make export MODEL={manifest.source.model} BATCH={max(batches)}`"
            )
        steps = self._fitting_steps(manifest)
        deepest = manifest.context - steps
        return replace(
            self,
            prompt_lengths=tuple(sorted({min(n, manifest.context) for n in self.prompt_lengths})),
            depths=tuple(sorted({min(n, deepest) for n in self.depths})),
            batches=tuple(sorted(set(batches))),
            steps=steps,
        )

    def clipped(self, manifest: Manifest) -> list[str]:
        """Return one sentence for each setting that `fitted` changes."""
        steps = self._fitting_steps(manifest)
        depth_limit = f"the context of {manifest.context:,} tokens less {steps:,} steps"
        limits = (
            ("steps", (self.steps,), steps, f"the context of {manifest.context:,} tokens less one"),
            ("prompt lengths", self.prompt_lengths, manifest.context, f"the context of {manifest.context:,} tokens"),
            ("depths", self.depths, manifest.context - steps, depth_limit),
        )
        notes = []
        for name, values, largest, limit in limits:
            if beyond := sorted({value for value in values if value > largest}):
                listed = ", ".join(f"{value:,}" for value in beyond)
                notes.append(f"{name} {listed}: more than the artifact holds, measured at {largest:,} ({limit})")
        return notes

    def _fitting_steps(self, manifest: Manifest) -> int:
        return min(self.steps, manifest.context - 1)


class Workload:
    """Runs prefill and decode on an engine, with random token ids that are the same in every run."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        rng = np.random.default_rng(SEED)
        self.tokens = rng.integers(0, engine.vocab_size, (engine.batch, engine.context), dtype=np.int32)

    def prefill(self, tokens: int, rows: int) -> float:
        """Seconds from an empty cache to the first new token of each of `rows` rows."""
        start_time = time.perf_counter()
        greedy(self._forward(self.tokens[:, :tokens], 0, rows))
        return time.perf_counter() - start_time

    def extend(self, cached: int, tokens: int) -> float:
        """Seconds to the first new token of a prompt of `tokens` tokens in row 0, of which `cached` are cached."""
        start_time = time.perf_counter()
        greedy(self._forward(self.tokens[:, cached:tokens], cached, 1))
        return time.perf_counter() - start_time

    def decode(self, depth: int, rows: int, steps: int) -> tuple[float, float]:
        """Run `steps` greedy steps after `depth` tokens. Returns (seconds per step, seconds of that in the graph).

        The cache must be filled to `depth`. The steps write their keys and values behind it.
        """
        picked = self.tokens[:, depth - 1]
        in_graph = self.engine.timings.run
        start_time = time.perf_counter()
        for position in range(depth, depth + steps):
            picked = greedy(self._forward(picked[:, None], position, rows))
        seconds = time.perf_counter() - start_time
        return seconds / steps, (self.engine.timings.run - in_graph) / steps

    def output(self) -> dict[str, Any]:
        """The `output` object of the report: a hash of the greedy continuation of a fixed prompt in row 0."""
        prompt = self.tokens[0, : min(HASHED_PROMPT, self.engine.context // 2)]
        limit = min(HASHED_TOKENS, self.engine.context - len(prompt))
        steps = list(decode(self.engine, Sequences([prompt], [limit]), GenerationTimings()))
        ids = np.array(steps, "<i4").reshape(-1)
        return {
            "prompt_tokens": len(prompt),
            "new_tokens": len(ids),
            "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        }

    def _forward(self, tokens: np.ndarray, start: int, rows: int) -> np.ndarray:
        live = np.arange(self.engine.batch) < rows
        return self.engine.forward(tokens, start * live, tokens.shape[1] * live)


class CachedPrompt:
    """Measures the first token of a prompt whose beginning the cache holds, as in a conversation that goes on."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.tokens = min(CACHED_PROMPT, workload.engine.context - 1)
        self.cached = self.tokens * 9 // 10
        self.samples: list[float] = []

    def measure(self) -> None:
        """Take one sample. The cache must be filled to `cached` tokens."""
        self.samples.append(self.workload.extend(self.cached, self.tokens))

    def entry(self) -> dict[str, Any]:
        """The report's first_token.cached. Drops the first sample, which warms up."""
        return {
            "prompt_tokens": self.tokens,
            "cached_tokens": self.cached,
            "seconds": statistic(self.samples[1:]),
        }


def statistic(samples: Sequence[float]) -> dict[str, Any]:
    """The report's *statistic* of these samples."""
    return {
        "median": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
        "samples": list(samples),
    }


def loop_times(tokenizer: Tokenizer, vocab_size: int) -> dict[str, float]:
    """The `loop` object of the report."""
    start_time = time.perf_counter()
    ids = tokenizer.encode(TEXT)
    encoded = time.perf_counter()
    stream = tokenizer.text_stream()
    for token in ids:
        stream.push(token)
    streamed = time.perf_counter()
    logits = np.random.default_rng(SEED).normal(size=(1, vocab_size)).astype(np.float32)
    picking = time.perf_counter()
    for _ in ids:
        greedy(logits)
    picked = time.perf_counter()
    count = len(ids)
    return {
        "encode": (encoded - start_time) / count,
        "detokenize": (streamed - encoded) / count,
        "greedy": (picked - picking) / count,
    }
