"""python worker.py ENGINE MODEL THREADS CONTEXT: runs one engine in its own process, controlled over a pipe.

Reads one JSON command per line from standard input, and writes one JSON object per line to the original standard
output. Output that native code prints goes to standard error. Between commands the process waits in read(), so it takes
no processor time while another engine is measured.

  {"op": "prefill", "tokens": [...]}               -> {"seconds": s}           empty cache to the first new token
  {"op": "decode", "tokens": [...], "steps": n}    -> {"seconds": [s, ...]}    n greedy steps after the prompt
  {"op": "logits", "tokens": [...], "first": i, "file": path}                  float32 [n - i, V] after tokens i..n-1

Each engine_*.py has a class Engine(model, threads, context) with the methods prefill, decode and, for engines that
return logits, logits; and the attribute `version`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

ENGINES = {
    "ours": "engine_ours",
    "llama.cpp": "engine_llama_cpp",
    "llama-bench": "engine_llama_bench",
    "openvino": "engine_openvino",
    "onnxruntime": "engine_onnxruntime",
    "pytorch": "engine_pytorch",
}


def run_command(engine: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Run one command. Returns the reply."""
    if command["op"] == "prefill":
        return {"seconds": engine.prefill(command["tokens"])}
    if command["op"] == "decode":
        return {"seconds": engine.decode(command["tokens"], command["steps"])}
    if command["op"] == "logits":
        import numpy as np

        np.save(command["file"], engine.logits(command["tokens"], command["first"]))
        return {}
    raise ValueError(f"unknown operation: {command['op']}")


def main() -> None:
    """Load the engine, then run commands until the input ends."""
    name, model, threads, context = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        engine = importlib.import_module(ENGINES[name]).Engine(model, int(threads), int(context))
        loaded = {"version": engine.version}
    except Exception as error:  # the report shows any error as the reason why the peer is absent
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=replies)
        return
    print(json.dumps(loaded), file=replies)
    for line in sys.stdin:
        print(json.dumps(run_command(engine, json.loads(line))), file=replies)


if __name__ == "__main__":
    main()
