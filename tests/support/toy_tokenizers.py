"""Small tokenizers of the two kinds that Llama models use, and a chat template."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from edgellama.text.tokenizer import Tokenizer

LLAMA3_STYLE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '\n\n' + message['content'] | trim + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n\n' }}{% endif %}"
)


def byte_level() -> tokenizers.Tokenizer:
    """Returns byte-level BPE like Llama 3's: every byte, some merges, special tokens; the post-processor adds bos."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    merges = [("Ġ", "t"), ("h", "e"), ("Ã", "©"), ("ð", "Ł"), ("ðŁ", "Ļ"), ("â", "Ĥ")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    model = tokenizers.Tokenizer(models.BPE(vocab, merges))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(["<s>", "</s>", "<|start|>"])
    model.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", model.token_to_id("<s>"))])
    return model


def sentencepiece() -> tokenizers.Tokenizer:
    """Returns SentencePiece BPE with byte fallback like Llama 2's: the decoder drops the first space of a text."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for piece in ["▁", "a", "b", "t", "h", "e", "é", "▁the", "▁a", "€"]:
        vocab[piece] = len(vocab)
    model = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return model


def save(folder: Path, model: tokenizers.Tokenizer, **config: object) -> Tokenizer:
    """Writes tokenizer.json and a tokenizer_config.json with `config`; returns the Tokenizer of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_folder(folder)


BYTE_LEVEL = Tokenizer(byte_level(), {}, None)
SENTENCEPIECE = Tokenizer(sentencepiece(), {}, None)
