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
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CJK = "[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED: dict[str, list[str]] = {
    "smollm": [r"\p{N}", GPT2],
    "gpt-2": [GPT2],
    "llama-bpe": [LLAMA3],
    "smaug-bpe": [LLAMA3],
    "qwen2": [QWEN2],
    "deepseek-r1-qwen": [QWEN2],
    "falcon3": [LLAMA3],
    "dbrx": [LLAMA3],
    "stablelm2": [QWEN2],
    "exaone4": [GPT2],
    "refact": [r"\p{N}", GPT2],
    "tekken": [TEKKEN],
    "gpt-4o": [O200K],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}"],
    "deepseek-v3": [r"\p{N}{1,3}", CJK, DEEPSEEK_V3],
    "hunyuan-dense": [r"\p{N}{1,3}", CJK, DEEPSEEK_V3],
    "hunyuan": [QWEN2],
    "minicpm5": [r"\p{N}{1,3}", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")],
    # from llama.cpp: punctuation, then words, then numbers, then groups of three ASCII digits
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2.removesuffix(r"|\s+"), r"\p{N}+", "[0-9][0-9][0-9]"],
}
NFC = ("qwen2", "deepseek-r1-qwen")
IGNORE_MERGES = ("llama-bpe", "falcon3", "tekken", "minicpm5")


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


def merge_ranks(merges: Sequence[str]) -> dict[tuple[str, ...], int]:
    """Returns the rank of each merge, which is written as two pieces with a space between them."""
    return {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}


def byte_level_bpe(
    text: str, kind: str, vocabulary: Mapping[str, int], ranks: Mapping[tuple[str, ...], int]
) -> list[int]:
    """Returns the ids of a text; `kind` is the pre-tokenizer's name in PUBLISHED."""
    alphabet = byte_alphabet()
    ids = []
    for piece in split(unicodedata.normalize("NFC", text) if kind in NFC else text, PUBLISHED[kind]):
        symbols = [alphabet[byte] for byte in piece.encode()]
        if kind in IGNORE_MERGES and "".join(symbols) in vocabulary:
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
