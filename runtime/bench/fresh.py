"""python -m edgellama.bench.fresh START ARTIFACT THREADS WEIGHTS_MEMORY TOKENS [DEVICE]: load time and peak memory.

They are those of this fresh process. START is the parent's time.monotonic() when it started this process (all processes
of a system share that clock). With TOKENS > 0 the process then fills the cache to that depth and decodes one step.
DEVICE is the NPU. Prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from ..checkout import module_command
from ..errors import UserError


def measure(
    artifact: Path, threads: int, weights_memory: str, tokens: int, device_id: int | None = None
) -> dict[str, float | int | None]:
    """Run the child process. Returns process_seconds, engine_seconds, after_load_bytes and peak_bytes.

    Args:
        weights_memory: as `Engine` takes it
        tokens: depth to fill the cache to; 0 only loads
        device_id: as in Engine

    Raises UserError with the child's output if it fails.
    """
    command = [*module_command("edgellama.bench.fresh"), repr(time.monotonic()), str(artifact)]
    command += [str(threads), weights_memory, str(tokens), *([] if device_id is None else [str(device_id)])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{artifact}: a fresh process cannot run it: {done.stderr.strip()[-2000:]}")
    found: dict[str, float | int | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(
    start: str, artifact: str, threads: str, weights_memory: str, tokens: str, device_id: str | None = None
) -> None:
    """Run in the child process. All arguments come from the command line."""
    from ..artifact.manifest import Artifact
    from ..engine.engine import Engine
    from .machine import peak_memory
    from .workload import Workload

    opening = time.monotonic()
    opened = Artifact.open(artifact, check="sizes")  # the parent has checked the hashes
    engine = Engine(
        opened, int(threads), device_id=int(device_id) if device_id else None, weights_memory=weights_memory
    )
    ready = time.monotonic()
    after_load = peak_memory()
    if int(tokens):
        workload = Workload(engine)
        workload.prefill(int(tokens), engine.batch)
        workload.decode(int(tokens), engine.batch, 1)
    print(
        json.dumps(
            {
                "process_seconds": ready - float(start),
                "engine_seconds": ready - opening,
                "after_load_bytes": after_load,
                "peak_bytes": peak_memory(),
            }
        )
    )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
