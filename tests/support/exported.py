"""A small random Llama, exported for real, and the runtime in processes of its own.

Exporting needs mindspore, running needs mindspore_lite, and one process cannot hold both: so each happens in a child.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_text import LLAMA3_STYLE, byte_level
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REPOSITORY = Path(__file__).parents[2]
BATCH, CONTEXT, BUCKETS = 2, 96, (1, 8, 32)


@functools.cache
def scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="edgellama-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def checkpoint() -> Path:
    """A Hugging Face folder: 2 layers, 4 heads over 2 KV heads, byte-level tokenizer with a chat template."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = LLAMA3_STYLE
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        initializer_range=0.3,  # so that logits differ by far more than float32 rounds
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = scratch() / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def reference() -> LlamaForCausalLM:
    """The same model in transformers."""
    return LlamaForCausalLM.from_pretrained(checkpoint()).eval()


def export(name: str, *options: str) -> Path:
    """Run the exporter's command line."""
    out = scratch() / name
    command = [sys.executable, "-m", "exporter", "export", str(checkpoint()), "--out", str(out), "--no-verify"]
    done = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@functools.cache
def tiny_artifact(target: str = "portable") -> Path:
    """The checkpoint exported in float32, its caches too."""
    sizes = ["--batch", str(BATCH), "--context", str(CONTEXT), "--buckets", ",".join(map(str, BUCKETS[1:]))]
    return export(target, "--target", target, "--weights", "fp32", "--cache", "float32", *sizes)


def run_python(code: str, *arguments: str) -> Any:
    """Run `code` in a new process; it prints JSON as its last line, which is returned."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def generate(artifact: Path, *calls: dict[str, Any]) -> list[np.ndarray]:
    """model.generate(**call) for each call, in one new process."""
    code = (
        "import json, sys, numpy as np\n"
        "from runtime import LlamaForCausalLM\n"
        "model = LlamaForCausalLM.from_pretrained(sys.argv[1])\n"
        "found = []\n"
        "for call in json.load(open(sys.argv[2])):\n"
        "    model.forget()\n"  # so that each call computes all of its own
        "    found.append(model.generate(**call).tolist())\n"
        "print(json.dumps(found))"
    )
    plain = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in call.items()} for call in calls]
    with tempfile.NamedTemporaryFile("w", suffix=".json", dir=scratch()) as file:  # too much for a command line
        json.dump(plain, file)
        file.flush()
        return [np.array(ids) for ids in run_python(code, str(artifact), file.name)]


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """python -m runtime ..."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
