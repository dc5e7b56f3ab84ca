"""The engines' processes, and the order of the measurements."""

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
PAUSE = 0.5  # seconds: after their work, thread pools spin for up to 0.2 s (LLVM's OpenMP) before they sleep
WARM_UP = 4  # decode steps that are not measured: the previous engine has replaced the contents of the CPU's caches


class Worker:
    """A loaded engine in its process. Raises AbsentError if it does not start, RuntimeError if it dies later."""

    def __init__(self, peer: Peer, python: Path, threads: int, context: int) -> None:
        self.peer = peer
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        command = [str(python), str(HERE / "worker.py"), peer.engine, peer.model, str(threads), str(context)]
        # Each engine gets its thread count through its own interface; this covers the BLAS and OpenMP below them.
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
        """Send a command (see worker.py) and return the reply."""
        assert self._process.stdin is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return self._reply()

    def close(self) -> None:
        """End the process."""
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
            raise RuntimeError(f"{self.peer.name}: {self._exit_reason()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply

    def _exit_reason(self) -> str:
        status = self._process.wait()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f"its process ended ({how})" + (f": {lines[-1]}" if lines else "")


@dataclass(frozen=True)
class Figure:
    """One measurement of one engine. samples: seconds per round (for decode: seconds per step)."""

    worker: str
    kind: str
    tokens: int
    samples: list[float]

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)


def measure(
    workers: dict[str, Worker], vocabulary: int, prompts: list[int], depths: list[int], steps: int, rounds: int
) -> list[Figure]:
    """Measure every figure of every engine. In each round all engines take turns; round 0 warms up.

    Prefill gets two new prompts per round: the first warms up, the second is measured. Decode keeps its prompt, so that
    an engine may return to its end; the first WARM_UP steps are not measured.

    Args:
        workers: name -> engine
        vocabulary: number of token ids
        prompts: prompt lengths of the prefill figures
        depths: prompt lengths of the decode figures
        steps: measured decode steps per round
        rounds: measured rounds
    """
    rng = np.random.default_rng(0)

    def prompt(length: int) -> list[int]:
        return [int(token) for token in rng.integers(0, vocabulary, length)]

    found = []
    for kind, lengths in (("prefill", prompts), ("decode", depths)):
        for length in lengths:
            samples: dict[str, list[float]] = {name: [] for name in workers}
            warm_up = tokens = prompt(length)
            for number in range(rounds + 1):
                print(f"{kind} {length}: round {number} of {rounds}", file=sys.stderr)
                if kind == "prefill":
                    warm_up, tokens = prompt(length), prompt(length)
                for name, worker in workers.items():
                    time.sleep(PAUSE)
                    if kind == "prefill":
                        worker.ask(op=kind, tokens=warm_up)
                        samples[name].append(worker.ask(op=kind, tokens=tokens)["seconds"])
                    else:
                        seconds = worker.ask(op=kind, tokens=tokens, steps=WARM_UP + steps)["seconds"]
                        samples[name].append(float(np.mean(seconds[WARM_UP:])))
            found += [Figure(name, kind, length, values[1:]) for name, values in samples.items()]
    return found
