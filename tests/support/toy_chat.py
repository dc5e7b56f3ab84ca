"""The toy of tiny.py with a tokenizer and a chat template, for tests of conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from edgellama.model import LlamaForCausalLM
from support.tiny import VOCAB, artifact
from support.toy_model import model_of
from support.toy_tokenizers import LLAMA3_STYLE

CONTEXT = 512
LETTERS = "abcdefghijklmnopqrstuvwxyzĠĊ"
SPECIAL = ["<s>", "</s>", "<|start|>", "<|end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
LLAMA2_LIKE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + 'inst ' + m.content + ' tsni' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3_STYLE, "llama2": LLAMA2_LIKE}


def tokenizer() -> tokenizers.Tokenizer:
    """Returns a tokenizer of letters and pairs of letters, ids 0..49.

    The toy rarely writes text with the ids that this tokenizer would give it.
    """
    vocab = {c: i for i, c in enumerate(LETTERS)}
    merges = [(c, c) for c in LETTERS[: VOCAB - len(LETTERS) - len(SPECIAL)]]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    model = tokenizers.Tokenizer(models.BPE(vocab, merges))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(SPECIAL)
    assert model.get_vocab_size() == VOCAB
    return model


def write_files(folder: Path, template: str | None = CHATML) -> None:
    """Writes tokenizer.json and tokenizer_config.json, with a chat template unless it is None."""
    tokenizer().save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", **({"chat_template": template} if template else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def toy(folder: Path, template: str | None = CHATML, **changes: Any) -> LlamaForCausalLM:
    """Returns the toy's model with the tokenizer of this module; `changes` are arguments of `tiny.manifest`."""
    opened = artifact(folder, **{"context": CONTEXT, "eos_token_id": (), **changes})
    write_files(folder, template)
    return model_of(opened)
