"""Slow and simple byte-level BPE and SentencePiece BPE, written from their definitions; tests compare with them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise

import regex

# The published pre-tokenizers, from their tokenizer.json files.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED: dict[str, list[str]] = {
    "smollm": [r"\p{N}", GPT2],
    "gpt-2": [GPT2],
    "llama-bpe": [LLAMA3],
    "smaug-bpe": [LLAMA3],
    "qwen2": [LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")],
    # from llama.cpp: punctuation, then words, then numbers, then groups of three ASCII digits
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2.removesuffix(r"|\s+"), r"\p{N}+", "[0-9][0-9][0-9]"],
}


def byte_alphabet() -> list[str]:
    """Returns GPT-2's letter for each byte: printable bytes map to themselves, the others to letters from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def split(text: str, patterns: Sequence[str]) -> list[str]:
    """Splits the text by one pattern after the other, into the matches and the text between them."""
    pieces = [text]
    for pattern in patterns:
        cut = []
        for piece in pieces:
            end = 0
            for match in regex.finditer(pattern, piece):
                cut += [piece[end : match.start()], match.group()]
                end = match.end()
            cut.append(piece[end:])
        pieces = [piece for piece in cut if piece]
    return pieces


def byte_level_bpe(text: str, kind: str, vocabulary: Mapping[str, int], merges: Sequence[str]) -> list[int]:
    """Returns the ids of a text; `kind` is the pre-tokenizer's name in PUBLISHED."""
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    alphabet = byte_alphabet()
    ids = []
    for piece in split(unicodedata.normalize("NFC", text) if kind == "qwen2" else text, PUBLISHED[kind]):
        symbols = [alphabet[byte] for byte in piece.encode()]
        if kind == "llama-bpe" and "".join(symbols) in vocabulary:
            symbols = ["".join(symbols)]
        # without an unknown token, unknown bytes are dropped
        symbols = [symbol for symbol in symbols if symbol in vocabulary]
        while known := [pair for pair in pairwise(symbols) if pair in ranks]:
            best = min(known, key=lambda pair: ranks[pair])
            at = next(i for i, pair in enumerate(pairwise(symbols)) if pair == best)
            symbols[at : at + 2] = ["".join(best)]
        ids += [vocabulary[symbol] for symbol in symbols]
    return ids


def sentencepiece_bpe(text: str, vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[int]:
    """Joins the neighbours with the best score, of equal ones the leftmost; unknown characters become bytes."""
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        known = [
            (-scores[vocabulary[left + right]], at)
            for at, (left, right) in enumerate(pairwise(symbols))
            if left + right in vocabulary
        ]
        if not known:
            break
        at = min(known)[1]
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
    ids = []
    for symbol in symbols:
        ids += [vocabulary[symbol]] if symbol in vocabulary else [vocabulary[f"<0x{b:02X}>"] for b in symbol.encode()]
    return ids
