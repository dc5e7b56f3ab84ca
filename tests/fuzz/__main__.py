"""`python tests/fuzz`: fuzzes each target for some seconds and prints a table; exit status 1 if there are findings.

Each target runs in a process of its own (worker.py). The corpus grows in build/fuzz/NAME/corpus and begins with
tests/data/fuzz/NAME, where inputs of fixed defects belong: tests/fuzz/test_fuzz.py runs them at each test.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SEEDS = ROOT / "tests/data/fuzz"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
HANG = 30  # seconds of wall time for one input
MEMORY = 4096  # MB; worker.py sets a tighter limit for one input
DONE = re.compile(r"#(\d+)\s+\S+\s+cov: (\d+) ft: (\d+) corp: (\d+)/(\S+)")
COLUMNS = ("target", "executions", "accepted", "edges", "corpus", "seconds", "findings")


@dataclass
class Result:
    """What a target's run gave. findings: what is wrong -> the file of the input that shows it."""

    name: str
    executions: int = 0
    accepted: int = 0
    edges: int = 0
    corpus: int = 0
    seconds: float = 0.0
    findings: dict[str, Path] = field(default_factory=dict)

    def row(self) -> tuple[str, ...]:
        """The cells of the table."""
        numbers = (self.executions, self.accepted, self.edges, self.corpus)
        return (self.name, *(f"{number:,}" for number in numbers), f"{self.seconds:.0f}", str(len(self.findings)))


def main() -> int:
    """Fuzz, and print the table."""
    from fuzz.names import NAMES

    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("--target", choices=NAMES, help="one target (default: all)")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each target (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="targets at a time")
    parser.add_argument("--work", type=Path, default=ROOT / "build/fuzz", help="folder of the growing corpora")
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("not fuzzed: atheris is not installed (it has packages for Linux on x86-64, Python 3.11 to 3.13)")
        return 0
    names = [options.target] if options.target else NAMES
    print(f"seed {options.seed}, {options.seconds:g} s for each target", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda name: fuzz(name, options.seconds, options.seed, options.work / name), names))
    show(results)
    return 1 if any(result.findings for result in results) else 0


def fuzz(name: str, seconds: float, seed: int, work: Path) -> Result:
    """Run one target for some seconds. A crash or a hang starts it again for the rest of the time."""
    corpus, findings = work / "corpus", work / "findings"
    corpus.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(findings, ignore_errors=True)
    findings.mkdir()
    result, began = Result(name), time.monotonic()
    while True:
        left = seconds - (time.monotonic() - began)
        if left < 1 and result.seconds:
            return result
        _run(result, max(left, 1), seed, corpus, findings)
        seed += 1
        result.seconds = time.monotonic() - began


def _run(result: Result, seconds: float, seed: int, corpus: Path, findings: Path) -> None:
    state = corpus.parent
    (state / "outcomes.json").unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "worker.py"), result.name, str(state), str(corpus), str(SEEDS / result.name)]
    limits = [f"-max_total_time={max(1, round(seconds))}", f"-timeout={HANG}", f"-rss_limit_mb={MEMORY}"]
    fixed = [f"-seed={seed}", "-len_control=0", "-print_final_stats=0", f"-artifact_prefix={findings}/"]
    log = state / "log.txt"
    with log.open("w") as file:
        status = subprocess.run([*command, *limits, *fixed], stdout=file, stderr=file, check=False).returncode
    text = log.read_text(errors="replace")
    lines = DONE.findall(text)
    if lines:
        executions, edges, _, units, _ = lines[-1]
        result.executions += int(executions)
        result.edges, result.corpus = max(result.edges, int(edges)), int(units)
    if (state / "outcomes.json").exists():
        outcomes: dict[str, Any] = json.loads((state / "outcomes.json").read_text())
        result.accepted += outcomes["accepted"]
        for wrong, (data, details) in outcomes["findings"].items():
            result.findings.setdefault(wrong, findings / data)
            (findings / f"{data}.txt").write_text(f"{wrong}\n\n{details}")
    if status != 0:
        inputs = sorted(findings.glob("*-*"), key=lambda path: path.stat().st_mtime)
        last = inputs[-1] if inputs else log
        reason = next((line for line in reversed(text.splitlines()) if "ERROR" in line or "Error" in line), "")
        result.findings.setdefault(f"the process ended with status {status}: {reason[-200:].strip()}", last)


def show(results: list[Result]) -> None:
    """Print the table, then each finding with its file."""
    rows = [COLUMNS, *(result.row() for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]))
    for result in results:
        for wrong, path in result.findings.items():
            print(f"{result.name}: {wrong}\n    {path}")


if __name__ == "__main__":
    sys.exit(main())
