"""A llama-bench program, of any build or fork of llama.cpp. MODEL is a JSON list: the command, then the model file.

Each measurement starts the program, which loads the model and measures twice; the second figure counts. The program
draws its own random ids and selects no token, so its figures are without the choice of the next token. It returns no
logits.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any


class Engine:
    """The interface of worker.py; see there."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        *command, file = json.loads(model)
        told = subprocess.run([command[0], "--help"], capture_output=True, text=True, check=False)
        options = told.stdout + told.stderr
        # llama.cpp measures steps behind a prompt with -d, its older forks with -gp
        self.depth_option = "-d" if "--n-depth" in options else "-gp" if "  -gp " in options else None
        self.command = [*command, "-m", file, "-t", str(threads), "-r", "2", "-o", "json"]
        self.version = f"llama-bench {self._measured('-p', '1', '-n', '0').get('build_commit', '')}".strip()

    def prefill(self, tokens: list[int]) -> float:
        """Seconds of a prompt of this length."""
        return _seconds(self._measured("-p", str(len(tokens)), "-n", "0"))

    def decode(self, tokens: list[int], steps: int) -> list[float]:
        """Seconds of each of `steps` steps after a prompt of this length: all of them are the mean."""
        if self.depth_option is None:
            raise RuntimeError("this llama-bench has neither -d nor -gp, so it cannot measure steps after a prompt")
        if self.depth_option == "-d":
            found = self._measured("-p", "0", "-n", str(steps), "-d", str(len(tokens)))
        else:
            found = self._measured("-p", "0", "-n", "0", "-gp", f"{len(tokens)},{steps}")
        return [_seconds(found) / steps] * steps

    def _measured(self, *arguments: str) -> dict[str, Any]:
        """The only measurement of one run of the program."""
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise RuntimeError(f"{self.command[0]}: {lines[-1] if lines else f'exit status {done.returncode}'}")
        found: list[dict[str, Any]] = json.loads(done.stdout)
        if len(found) != 1:
            raise RuntimeError(f"{self.command[0]}: {len(found)} measurements; needed: 1")
        return found[0]


def _seconds(measurement: dict[str, Any]) -> float:
    """The last of its repetitions."""
    return float(measurement["samples_ns"][-1]) / 1e9
