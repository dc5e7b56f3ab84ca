"""A lower bound for the number of tokens of a text, found without encoding the text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import models

from .components import byte_letters, components

CONTINUATION = bytes(range(0x80, 0xC0))  # the bytes of a UTF-8 character after its first byte


class LengthBound:
    """The bound for one tokenizer: it knows how many characters one token can stand for."""

    def __init__(self, model: tokenizers.Tokenizer) -> None:
        self._reach = _reach(model)

    def fewest_tokens(self, text: str) -> int:
        """Return a number of tokens that `text` has at least; 0 if this tokenizer allows no bound."""
        if self._reach is None:
            return 0
        reach, uncounted = self._reach
        return math.ceil(len(text.encode(errors="replace").translate(None, uncounted)) / reach)


def _reach(model: tokenizers.Tokenizer) -> tuple[int, bytes] | None:
    """Return the most characters that one token stands for, and the bytes of a text that count as no character.

    None if a token may stand for any number of characters.
    """
    if any(token.lstrip or token.rstrip for token in model.get_added_tokens_decoder().values()):
        return None  # such a token includes all whitespace beside it
    normalizers, splitters = components(model.normalizer), components(model.pre_tokenizer)
    shrunk = [_shrinks(part) for part in normalizers]
    vocabulary = model.get_vocab()
    dropped = _dropped(model.model, vocabulary, splitters)
    if None in shrunk or not all(map(_keeps, splitters)) or dropped is None or (dropped and normalizers):
        return None
    return max(map(len, vocabulary)) * math.prod(filter(None, shrunk)), CONTINUATION + dropped


def _dropped(model: Any, vocabulary: Mapping[str, int], splitters: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Return the bytes of a text that become no token; None if one unknown token may stand for many characters.

    Such bytes exist: SmolLM2's vocabulary, for example, lacks some bytes that its training text never had.
    """
    if not isinstance(model, models.BPE):
        return None
    if any(part["type"] == "ByteLevel" for part in splitters):
        missing = bytes(byte for letter, byte in byte_letters().items() if letter not in vocabulary)
        return None if missing and model.unk_token is not None and model.fuse_unk else missing
    whole = model.byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    return b"" if whole else None


def _shrinks(normalizer: Mapping[str, Any]) -> int | None:
    """Return the most characters that this normalizer turns into one; None if unknown."""
    kind = normalizer["type"]
    if kind == "NFC":
        return 4  # no character has a longer canonical decomposition (Unicode's UAX #15)
    if kind == "Replace":
        string = normalizer["pattern"].get("String")
        return 1 if string is not None and len(normalizer["content"]) >= len(string) else None
    return 1 if kind in ("Prepend", "NFD") else None


def _keeps(splitter: Mapping[str, Any]) -> bool:
    """Whether this pre-tokenizer keeps every character of the text."""
    known = splitter["type"] in ("ByteLevel", "Metaspace", "Digits", "Split", "Punctuation")
    return known and splitter.get("behavior") != "Removed"
