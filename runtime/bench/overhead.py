"""The part of a decode step outside the graph: the loop's Python, and token selection with common settings.

It is measured inside real decode steps. A step reads all weights, so afterwards the CPU's caches hold neither the
scores nor the code that processes them. The same work then takes several times as long as in a tight loop.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ..artifact.sizes import step_weight_bytes
from ..generation.config import GenerationConfig
from ..generation.decode import GenerationTimings, decode
from ..generation.sequences import Sequences
from ..generation.stopping import stops
from ..generation.token_selector import TokenSelector
from .machine import ReadBandwidth
from .workload import SEED, Workload, statistic

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sample": {"top_k": 0},
    "top_k": {"top_k": 50},
    "top_k, top_p, temperature": {"top_k": 50, "top_p": 0.95, "temperature": 0.7},
    "top_p, temperature": {"top_k": 0, "top_p": 0.9, "temperature": 0.6},
    "top_p": {"top_k": 0, "top_p": 0.95},
    "min_p": {"top_k": 0, "min_p": 0.05},
    "typical_p": {"top_k": 0, "typical_p": 0.95},
    "penalties": {"do_sample": False, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3},
}
LARGE = 128_256  # Llama 3's vocabulary
WARM_UP = 2  # steps that are not measured
SAMPLE_SECONDS = 0.2  # a slower model gets fewer steps per sample
READ_BYTES = 256 << 20  # enough to replace everything in the CPU's caches


class Overhead:
    """Measures the decode loop of one row after a prompt, with each of SETTINGS."""

    def __init__(self, workload: Workload, prompt: np.ndarray, steps: int) -> None:
        """prompt: token ids [n]. steps: upper limit per sample."""
        engine = workload.engine
        self.engine = engine
        self.prompt = np.asarray(prompt, np.int64)
        self.steps = min(steps, engine.context - len(prompt))
        self.reading = ReadBandwidth(min(step_weight_bytes(engine.manifest), READ_BYTES), engine.threads)
        self.large_scores = _zipf(LARGE)
        self.samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in SETTINGS}

    def measure(self) -> None:
        """Take one sample of each setting."""
        for name in SETTINGS:
            seconds, step = self.step(name)
            self.samples[name].append((seconds, step, self.large(name)))
            self.steps = min(self.steps, max(WARM_UP + 2, int(SAMPLE_SECONDS / step)))

    def entries(self) -> list[dict[str, Any]]:
        """The `step_overhead` object of the report. Drops the first sample, which warms up."""
        return [self._entry(name, taken[1:]) for name, taken in self.samples.items()]

    def _entry(self, name: str, samples: list[tuple[float, float, float]]) -> dict[str, Any]:
        seconds, step, large = (statistic(column) for column in zip(*samples, strict=True))
        return {
            "name": name,
            "settings": SETTINGS[name],
            "seconds": seconds,
            "step_seconds": step,
            "share": seconds["median"] / step["median"],
            "large_vocabulary_seconds": large,
        }

    def step(self, name: str) -> tuple[float, float]:
        """Mean seconds of a step: (outside the graph, in total). The first WARM_UP steps are not measured."""
        engine = self.engine
        sequences = Sequences([self.prompt], [self.steps])
        config = _config(name, engine.vocab_size)
        selector = TokenSelector(config, engine.vocab_size, [np.random.default_rng(SEED)])
        ends = stops(config, _no_tokenizer, 1, selector.scores)
        placement = engine.prefixes.place([self.prompt])
        run = decode(engine, sequences, GenerationTimings(), selector, ends, placement)
        for _ in range(min(WARM_UP, self.steps - 1)):
            next(run)
        in_graph, start_time = engine.timings.run, time.perf_counter()
        count = sum(1 for _ in run)
        seconds = time.perf_counter() - start_time
        return (seconds - (engine.timings.run - in_graph)) / count, seconds / count

    def large(self, name: str, samples: int = 3) -> float:
        """Mean seconds to select from LARGE scores, each time after reading as much memory as a step reads."""
        sequences = Sequences([self.prompt], [samples])
        selector = TokenSelector(_config(name, LARGE), LARGE, [np.random.default_rng(SEED)])
        spent = 0.0
        for _ in range(samples):
            scores = self.large_scores.copy()
            self.reading.read()
            start_time = time.perf_counter()
            picked = selector(sequences, scores)
            spent += time.perf_counter() - start_time
            sequences.push(picked)
        return spent / samples


def _config(name: str, vocab_size: int) -> GenerationConfig:
    """Settings with an eos id beyond the vocabulary: each step checks for it, and it never ends the text."""
    return GenerationConfig(**{"do_sample": True, **SETTINGS[name]}, eos_token_id=(vocab_size,))


def _no_tokenizer() -> Any:
    raise AssertionError("none of these settings needs a tokenizer")


def _zipf(size: int) -> np.ndarray:
    """Scores [1, size] float32 of Zipf's law, probability ~ 1 / rank, in random order: as flat as words in a text."""
    ranks = np.random.default_rng(SEED).permutation(size) + 1.0
    return -np.log(ranks)[None].astype(np.float32)
