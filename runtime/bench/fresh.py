"""python -m edgellama.bench.fresh JOB: load time, time to the first token, and peak memory of this fresh process.

JOB is a JSON list: "load" or "first_token", and the arguments of that function. `began` is the parent's
time.monotonic() when it started this process; all processes of a system share that clock. Prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkout import module_command
from ..errors import UserError


def measure(
    artifact: Path, threads: int, weights_memory: str, tokens: int, device_id: int | None = None, isa: str | None = None
) -> dict[str, float | int | None]:
    """Load an artifact, whose hashes have been checked, in a fresh process.

    Args:
        artifact: the artifact.
        threads: CPU threads.
        weights_memory: as `Engine` takes it.
        tokens: depth to fill the cache to; 0 only loads.
        device_id: as in Engine.
        isa: the last instruction set that the kernels may use; None takes the fastest.

    Returns:
        What `load` returns.

    Raises:
        UserError: the process fails; with its output.
    """
    return _run("load", artifact, threads, weights_memory, tokens, device_id, isa)


def measure_first_token(
    artifact: Path, threads: int, weights_memory: str, tokens: int, device_id: int | None, isa: str | None, check: str
) -> float:
    """Seconds from the start of a fresh process until it has loaded an artifact and generated a token.

    Args and errors are those of `measure`; `tokens` are those of the prompt, `check` is that of `from_pretrained`.
    """
    found = _run("first_token", artifact, threads, weights_memory, tokens, device_id, isa, check)
    return float(found["first_token_seconds"] or 0)


def _run(name: str, artifact: Path, *arguments: Any) -> dict[str, float | int | None]:
    """Run a function of this module in a fresh process. Its first argument is when the process was started."""
    job = json.dumps([name, time.monotonic(), str(artifact), *arguments])
    command = [*module_command("edgellama.bench.fresh"), job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{artifact}: a fresh process cannot run it: {done.stderr.strip()[-2000:]}")
    found: dict[str, float | int | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def load(
    began: float, artifact: str, threads: int, weights_memory: str, tokens: int, device_id: int | None, isa: str | None
) -> dict[str, Any]:
    """Load the engine, fill the cache to `tokens` tokens and decode a step; 0 tokens only loads.

    Returns process_seconds (from the start until the engine is loaded), engine_seconds (of that, opening the artifact
    and building its graphs), after_load_bytes and peak_bytes (VmHWM).
    """
    from ..artifact.manifest import Artifact
    from ..engine.engine import Engine
    from .machine import peak_memory
    from .workload import Workload

    opening = time.monotonic()
    limit(isa)
    opened = Artifact.open(artifact, check="sizes")  # the parent has checked the hashes
    engine = Engine(opened, threads, device_id=device_id, weights_memory=weights_memory)
    ready = time.monotonic()
    after_load = peak_memory()
    if tokens:
        workload = Workload(engine)
        workload.prefill(tokens, engine.batch)
        workload.decode(tokens, engine.batch, 1)
    return {
        "process_seconds": ready - began,
        "engine_seconds": ready - opening,
        "after_load_bytes": after_load,
        "peak_bytes": peak_memory(),
    }


def first_token(
    began: float,
    artifact: str,
    threads: int,
    weights_memory: str,
    tokens: int,
    device_id: int | None,
    isa: str | None,
    check: str,
) -> dict[str, Any]:
    """Generate one token after a prompt of `tokens` tokens, as an application does. Returns first_token_seconds.

    With a tokenizer the prompt is a text, and the time contains its encoding and the decoding of the token.
    """
    import edgellama

    limit(isa)
    model = edgellama.LlamaForCausalLM.from_pretrained(
        artifact, threads=threads, device_id=device_id, weights_memory=weights_memory, check=check
    )
    if (Path(artifact) / "tokenizer.json").is_file():
        from .workload import TEXT

        next(iter(model.stream(model.tokenizer.encode(TEXT)[:tokens], max_new_tokens=1)))
    else:
        model.generate([[position % model.engine.vocab_size for position in range(tokens)]], max_new_tokens=1)
    return {"first_token_seconds": time.monotonic() - began}


def limit(isa: str | None) -> None:
    """Limit the kernels' instruction set, if one is given."""
    if isa is not None:
        from ..backend.cpu_kernels import limit_isa

        limit_isa(isa)


def main(job: str) -> None:
    """Run in the child process."""
    measures: dict[str, Callable[..., dict[str, Any]]] = {"load": load, "first_token": first_token}
    name, *arguments = json.loads(job)
    print(json.dumps(measures[name](*arguments)))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
