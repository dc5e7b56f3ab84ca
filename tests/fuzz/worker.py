"""Runs one target under atheris, in its own process: `python tests/fuzz/worker.py NAME STATE CORPUS SEEDS OPTIONS`.

Goes on after a finding, so that a run reports all of them. STATE is a folder: `outcomes.json` has the counts and the
findings, `findings/` the inputs. The other arguments are libFuzzer's. A crash of native code, or a hang, ends the
process; libFuzzer writes that input.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import atheris  # noqa: E402

with atheris.instrument_imports(include=["edgellama"]):
    from fuzz.targets import TARGETS

from fuzz.mutators import mutated  # noqa: E402
from fuzz.target import Outcomes, execute, limit_memory  # noqa: E402

WRITTEN_EVERY = 1.0  # seconds


def main() -> None:
    """Fuzz the target that the command line names."""
    name, state, *options = sys.argv[1:]
    target, folder, outcomes = TARGETS[name], Path(state), Outcomes()
    last = 0.0

    def write() -> None:
        found = {wrong: [_file_name(data), text[-4000:]] for wrong, (data, text) in outcomes.findings.items()}
        values = {"accepted": outcomes.accepted, "refused": outcomes.refused, "findings": found}
        (folder / "outcomes.json").write_text(json.dumps(values))

    def test_one_input(data: bytes) -> None:
        nonlocal last
        known = len(outcomes.findings)
        execute(target, data, outcomes)
        if len(outcomes.findings) > known:
            (folder / "findings" / _file_name(data)).write_bytes(data)
        if len(outcomes.findings) > known or time.monotonic() - last > WRITTEN_EVERY:
            write()
            last = time.monotonic()

    def mutate(data: bytes, largest: int, seed: int) -> bytes:
        try:
            return mutated(target.form, data, largest, seed, atheris.Mutate)
        except Exception as error:  # it would end the process without a finding
            wrong = f"mutators.py: {type(error).__name__} with seed {seed}"
            outcomes.findings[wrong] = data, traceback.format_exc()
            (folder / "findings" / _file_name(data)).write_bytes(data)
            write()
            return data

    warnings.simplefilter("ignore")
    # Loads what the target loads late: on a busy machine that takes longer than the limit of one input.
    for path in sorted(Path(options[1]).iterdir()):
        execute(target, path.read_bytes(), Outcomes())
    limit_memory()
    # libFuzzer's timer goes on while Python ends, which then takes the signal as its own end.
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
    atheris.Setup([sys.argv[0], f"-max_len={target.largest}", *options], test_one_input, custom_mutator=mutate)
    atheris.Fuzz()


def _file_name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


if __name__ == "__main__":
    main()
