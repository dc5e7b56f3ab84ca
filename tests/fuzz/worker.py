"""Runs one target under atheris, in its own process: `python tests/fuzz/worker.py NAME STATE libFuzzer's options`.

Goes on after a finding, so that a run reports all of them. STATE is a folder: `outcomes.json` has the counts and the
findings, `findings/` the inputs. A crash of native code, or a hang, ends the process; libFuzzer writes that input.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
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
        return mutated(target.form, data, largest, seed, atheris.Mutate)

    warnings.simplefilter("ignore")
    execute(target, b"", Outcomes())  # loads what the target loads late
    limit_memory()
    atheris.Setup([sys.argv[0], f"-max_len={target.largest}", *options], test_one_input, custom_mutator=mutate)
    atheris.Fuzz()


def _file_name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


if __name__ == "__main__":
    main()
