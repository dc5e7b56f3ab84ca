"""Checkpoints and artifacts that several fault classes damage copies of. Who needs one first makes it, once in a run.

They are made in a process of their own, so that a class, which forks, has neither torch nor MindSpore in its process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from support.child import REPOSITORY, run_child

PREFILL, DECODE = [3, 100, 37, 5, 250, 11], 42  # token ids of every fixture


def fixture(shared: Path, name: str) -> Path:
    """Return the folder of a fixture, which nobody may change.

    Args:
        shared: the folder that a fault class gets.
        name: a key of MAKERS.
    """
    folder = shared.parents[1] / "fixtures" / name
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])
            run_child("-m", "torture.fixtures", name, str(partial), env={**os.environ, "PYTHONPATH": path})
            partial.rename(folder)
    return folder


def copied(folder: Path, into: Path) -> Path:
    """Return a copy of a folder. Its files are new, so that a case may change any of them."""
    return Path(shutil.copytree(folder, into / folder.name, dirs_exist_ok=True))


def _checkpoint(folder: Path) -> None:
    from support.exported import chat_checkpoint

    shutil.copytree(chat_checkpoint(), folder)


def _artifact(folder: Path) -> None:
    """An artifact of the cpu target with int8 weights, a tokenizer and a chat template; one row, buckets 1 and 4."""
    from support.checkpoints import export_all
    from support.exported import chat_checkpoint

    sizes = {"batch": 1, "context": 64, "buckets": [4]}
    export_all([{"model": chat_checkpoint(), "out": folder, "target": "cpu", "verify": False, **sizes}])


def _gguf(folder: Path) -> None:
    """A GGUF file of the model and the tokenizer of the checkpoint."""
    import json

    from support.exported import chat_checkpoint, reference
    from support.gguf_files import Kind, write_model

    tokenizer = json.loads((chat_checkpoint() / "tokenizer.json").read_text())
    vocab = {**tokenizer["model"]["vocab"], **{token["content"]: token["id"] for token in tokenizer["added_tokens"]}}
    tokens = sorted(vocab, key=lambda token: int(vocab[token]))
    special = {token["content"] for token in tokenizer["added_tokens"]}
    merges = tokenizer["model"]["merges"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": vocab["<s>"],
        "tokenizer.ggml.eos_token_id": vocab["</s>"],
        "tokenizer.chat_template": (chat_checkpoint() / "chat_template.jinja").read_text(),
    }
    folder.mkdir()
    write_model(folder / "model.gguf", reference(), Kind.Q8_0, metadata)


def _adapter(folder: Path) -> None:
    """A LoRA adapter of the checkpoint, as PEFT saves it."""
    from support.adapters import make_adapter
    from support.exported import chat_checkpoint

    make_adapter(chat_checkpoint(), folder)


MAKERS: dict[str, Callable[[Path], None]] = {
    "checkpoint": _checkpoint,
    "artifact": _artifact,
    "gguf": _gguf,
    "adapter": _adapter,
}


if __name__ == "__main__":
    MAKERS[sys.argv[1]](Path(sys.argv[2]))
