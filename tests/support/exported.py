"""Small random Llamas that are really exported, and the same models in transformers."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from support.checkpoints import export_all, make_checkpoint
from support.child import run_child, run_python
from support.toy_tokenizers import LLAMA3_STYLE, byte_level

BATCH, CONTEXT, BUCKETS = 2, 64, (1, 4, 16)
CHECKPOINTS: dict[str, Path] = {}


@functools.cache
def scratch() -> Path:
    """Returns a folder that is deleted when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="edgellama-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def tiny_checkpoint(**config: Any) -> Path:
    """Returns the Hugging Face folder of a random Llama, made once for each `config`; see `make_checkpoint`."""
    key = repr(sorted(config.items()))
    if key not in CHECKPOINTS:
        CHECKPOINTS[key] = make_checkpoint(scratch() / f"checkpoint-{len(CHECKPOINTS)}", **config)
    return CHECKPOINTS[key]


@functools.cache
def chat_checkpoint() -> Path:
    """Returns the Hugging Face folder of a random Llama with byte-level BPE and a chat template."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = LLAMA3_STYLE
    folder = scratch() / "tiny-llama"
    make_checkpoint(
        folder,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def reference() -> LlamaForCausalLM:
    """Returns the model of `chat_checkpoint` in transformers."""
    return LlamaForCausalLM.from_pretrained(chat_checkpoint()).eval()


def export(name: str, *options: str) -> Path:
    """Exports `chat_checkpoint` with the command line; `options` are its options."""
    out = scratch() / name
    run_child("-m", "edgellama", "export", str(chat_checkpoint()), "--out", str(out), "--no-verify", *options)
    return out


def export_tiny(target: str = "portable", chat: bool = False) -> Path:
    """Returns an artifact of a random 2-layer Llama with BATCH rows, CONTEXT and BUCKETS, all in float32.

    - target: of the export.
    - chat: takes `chat_checkpoint`; without it the model is `tiny_checkpoint()`, whose ids 0..255 are bytes.
    """
    out = scratch() / f"{target}{'-chat' if chat else ''}"
    if not out.exists():
        model = chat_checkpoint() if chat else tiny_checkpoint()
        sizes = {"batch": BATCH, "context": CONTEXT, "buckets": BUCKETS[1:]}
        formats = {"target": target, "weights": "fp32", "cache": "float32"}
        export_all([{"model": model, "out": out, **formats, **sizes}])
    return out


def generate(artifact: Path, *calls: dict[str, Any]) -> list[np.ndarray]:
    """Returns what model.generate(**call) returns for each call, run in one child process."""
    code = (
        "import json, sys, numpy as np\n"
        "from edgellama import LlamaForCausalLM\n"
        "model = LlamaForCausalLM.from_pretrained(sys.argv[1])\n"
        "found = []\n"
        "for call in json.load(open(sys.argv[2])):\n"
        "    model.forget()\n"  # so that no call reuses the tokens of another
        "    found.append(model.generate(**call).tolist())\n"
        "print(json.dumps(found))"
    )
    plain = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in call.items()} for call in calls]
    with tempfile.NamedTemporaryFile("w", suffix=".json", dir=scratch()) as file:  # too much for a command line
        json.dump(plain, file)
        file.flush()
        return [np.array(ids) for ids in run_python(code, str(artifact), file.name)]
