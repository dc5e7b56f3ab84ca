"""python worker.py ENGINE MODEL THREADS CONTEXT: one engine in a process of its own, driven over a pipe.

Reads one JSON command a line on standard input, answers with one JSON object a line on what was standard output (which
then goes to standard error, since native code prints). Between commands it waits in read(), so it takes no processor
time while another engine is measured.

  {"op": "prefill", "tokens": [...]}               -> {"seconds": s}           empty cache to the first new token
  {"op": "decode", "tokens": [...], "steps": n}    -> {"seconds": [s, ...]}    n steps behind the prompt, each greedy
  {"op": "logits", "tokens": [...], "first": i, "file": path}                  float32 [n - i, V] after tokens i..n-1
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
    "openvino": "engine_openvino",
    "onnxruntime": "engine_onnxruntime",
    "pytorch": "engine_pytorch",
}


def answer(engine: Any, command: dict[str, Any]) -> dict[str, Any]:
    if command["op"] == "prefill":
        return {"seconds": engine.prefill(command["tokens"])}
    if command["op"] == "decode":
        return {"seconds": engine.decode(command["tokens"], command["steps"])}
    if command["op"] == "logits":
        import numpy as np

        np.save(command["file"], engine.logits(command["tokens"], command["first"]))
        return {}
    raise ValueError(f"no such operation: {command['op']}")


def main() -> None:
    name, model, threads, context = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        engine = importlib.import_module(ENGINES[name]).Engine(model, int(threads), int(context))
        about = {"version": engine.version}
    except Exception as error:  # whatever a peer raises is the reason it is reported absent with
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=replies)
        return
    print(json.dumps(about), file=replies)
    for line in sys.stdin:
        print(json.dumps(answer(engine, json.loads(line))), file=replies)


if __name__ == "__main__":
    main()
