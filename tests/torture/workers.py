"""Runs fault classes in processes of their own, several at once, and collects their outcomes."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torture.outcomes import Outcome
from torture.report import Counted

SILENT_SECONDS = 600.0  # without an outcome, the process of a class counts as hanging
PROGRESS_SECONDS = 10.0  # between two lines of progress
# One thread for each class: cases are small, and several classes run at once. Rust's threads do not survive a fork.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass
class Worker:
    """The process of one class, its log, and what it has written since its last whole line."""

    name: str
    process: subprocess.Popen[bytes]
    reading: int
    log: Path
    last: float
    rest: bytes = b""


def run_all(command: Sequence[str], numbers: Mapping[str, range], jobs: int) -> dict[str, Counted]:
    """Run classes, `jobs` of them at once. Returns the results by name.

    Args:
        command: the command line of a worker, without the class.
        numbers: name of each class -> the numbers of its cases.
    """
    counted = {name: Counted(len(cases)) for name, cases in numbers.items()}
    # The longest lists of cases first, so that the last process does not begin a long class alone.
    waiting = sorted(numbers, key=lambda name: -len(numbers[name]))
    said = time.monotonic()
    with selectors.DefaultSelector() as selector:
        while waiting or selector.get_map():
            while waiting and len(selector.get_map()) < max(1, jobs):
                name = waiting.pop(0)
                counted[name].began = time.monotonic()
                worker = start(command, name, numbers[name])
                selector.register(worker.reading, selectors.EVENT_READ, worker)
            for key, _ in selector.select(timeout=1.0):
                if not receive(key.data, counted[key.data.name]):
                    selector.unregister(key.fd)
                    finish(key.data, counted[key.data.name])
            now = time.monotonic()
            for key in list(selector.get_map().values()):
                if now - key.data.last > SILENT_SECONDS:
                    key.data.process.kill()
                    counted[key.data.name].add(-1, Outcome("hang", f"the class gave no outcome in {SILENT_SECONDS} s"))
            if now - said > PROGRESS_SECONDS:
                said = now
                running = [key.data.name for key in selector.get_map().values()]
                states = ", ".join(f"{name} {counted[name].tried}/{counted[name].wanted}" for name in running)
                print(f"running {states}; {len(waiting)} more classes", file=sys.stderr)
    return counted


def start(command: Sequence[str], name: str, cases: range) -> Worker:
    """Start the process of a class."""
    reading, writing = os.pipe()
    arguments = [*command, "--worker", name, "--numbers", str(cases.start), str(cases.stop), "--output", str(writing)]
    work = command[command.index("--work") + 1]
    # The product remembers hashes in the user's cache folder; a run has its own.
    environment = {**os.environ, **ENVIRONMENT, "XDG_CACHE_HOME": str(Path(work, "cache"))}
    log = Path(work, f"{name}.log")
    with log.open("wb") as stderr:
        process = subprocess.Popen(arguments, pass_fds=[writing], stdout=stderr, stderr=stderr, env=environment)
    os.close(writing)
    return Worker(name, process, reading, log, time.monotonic())


def receive(worker: Worker, counted: Counted) -> bool:
    """Read what a worker has written. Returns whether there can be more."""
    block = os.read(worker.reading, 1 << 16)
    worker.last = time.monotonic()
    *lines, worker.rest = (worker.rest + block).split(b"\n")
    for line in lines:
        number, kind, detail = json.loads(line)
        counted.add(number, Outcome(kind, detail))
    return bool(block)


def finish(worker: Worker, counted: Counted) -> None:
    """Wait for a worker that has closed its pipe. If it did not run all its cases, the class itself has failed."""
    os.close(worker.reading)
    status = worker.process.wait()
    counted.end()
    if status != 0:
        log = worker.log.read_text(errors="replace").strip()
        counted.add(-1, Outcome("traceback", f"the process of the class {worker.name} ended with {status}: {log}"))
