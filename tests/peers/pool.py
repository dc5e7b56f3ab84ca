"""The engines' processes, and the order in which they are measured."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prepare import AbsentError, Peer

HERE = Path(__file__).resolve().parent
PAUSE = 0.5  # seconds: thread pools spin for up to 0.2 s (LLVM's OpenMP) after their work before they sleep
WARM_UP = 4  # decode steps that do not count: the engine before has displaced weights and code from the caches


class Worker:
    """A loaded engine. Raises AbsentError, with its reason, where it does not start; RuntimeError where it dies."""

    def __init__(self, peer: Peer, python: Path, threads: int, context: int) -> None:
        self.peer = peer
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        command = [str(python), str(HERE / "worker.py"), peer.engine, peer.model, str(threads), str(context)]
        # Each engine is told its threads through its own interface; this is for the BLAS and OpenMP under them.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        if peer.engine == "ours":
            environment["PYTHONPATH"] = str(HERE.parent.parent)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
            )
        except OSError as error:
            raise AbsentError(f"{python}: {error.strerror}") from error
        try:
            self.version: str = self._reply()["version"]
        except RuntimeError as error:
            self.close()
            raise AbsentError(str(error)) from error

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return self._reply()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.peer.name}: {self._death()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply

    def _death(self) -> str:
        status = self._process.wait()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f"its process ended ({how})" + (f": {lines[-1]}" if lines else "")


@dataclass(frozen=True)
class Figure:
    """One measurement of one engine: seconds (for decode: a step), a sample a round."""

    worker: str
    kind: str
    tokens: int
    samples: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def measure(
    workers: dict[str, Worker], vocabulary: int, prompts: list[int], depths: list[int], steps: int, rounds: int
) -> list[Figure]:
    """Every figure of every engine. A figure is measured on all engines in turns, round after round; round 0 warms up.

    Prefill gets fresh prompts each round: one that does not count, then the measured one. Decode keeps its prompt, so
    that engines which can go back to its end do, and its first steps do not count.
    """
    rng = np.random.default_rng(0)

    def prompt(length: int) -> list[int]:
        return [int(token) for token in rng.integers(0, vocabulary, length)]

    found = []
    for kind, lengths in (("prefill", prompts), ("decode", depths)):
        for length in lengths:
            samples: dict[str, list[float]] = {name: [] for name in workers}
            other = tokens = prompt(length)
            for turn in range(rounds + 1):
                print(f"{kind} {length}: round {turn} of {rounds}", file=sys.stderr)
                if kind == "prefill":
                    other, tokens = prompt(length), prompt(length)
                for name, worker in workers.items():
                    time.sleep(PAUSE)
                    if kind == "prefill":
                        worker.ask(op=kind, tokens=other)
                        samples[name].append(worker.ask(op=kind, tokens=tokens)["seconds"])
                    else:
                        seconds = worker.ask(op=kind, tokens=tokens, steps=WARM_UP + steps)["seconds"]
                        samples[name].append(float(np.mean(seconds[WARM_UP:])))
            found += [Figure(name, kind, length, values[1:]) for name, values in samples.items()]
    return found
