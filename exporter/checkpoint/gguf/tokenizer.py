"""Convert the tokenizer in a GGUF file to the files that `tokenizers` and transformers load.

tokenizer.ggml.model is "gpt2" for byte-level BPE and "llama" for SentencePiece's BPE with byte fallback. The file does
not describe how text is split before BPE; tokenizer.ggml.pre names a kind, and pre_kinds.py has their patterns.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edgellama.errors import UserError, shown

from ..tokenizer_files import to_json, tokenizer_files
from .file import GGUFFile
from .pre_kinds import PRE_KINDS, PreKind, kind_without_name


@dataclass(frozen=True)
class _Vocabulary:
    """The tokenizer's metadata, read once."""

    file: GGUFFile
    tokens: list[str]
    types: np.ndarray  # int32 [V], gguf.TokenType

    def get(self, key: str, default: Any = None) -> Any:
        return self.file.fields.get(f"tokenizer.ggml.{key}", default)

    def token(self, key: str) -> str | None:
        """Return the token of `<key>_token_id`, or None if the key is absent."""
        number = self.get(f"{key}_token_id")
        if number is None:
            return None
        if not 0 <= number < len(self.tokens):
            raise UserError(
                f"{self.file.path}: tokenizer.ggml.{key}_token_id = {number} is outside the {len(self.tokens)} tokens. "
                "Convert the model again"
            )
        return self.tokens[number]

    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}


def gguf_tokenizer_files(file: GGUFFile) -> dict[str, bytes]:
    """Return the tokenizer's files, name -> content.

    They are those of `Checkpoint.tokenizer_files`. Raises UserError if the tokenizer's kind is not supported.
    """
    vocabulary = _read(file)
    files = tokenizer_files(build_tokenizer(file), _settings(vocabulary), _templates(file))
    return {**files, "generation_config.json": to_json(gguf_generation_config(file))}


def build_tokenizer(file: GGUFFile) -> Tokenizer:
    """Build the tokenizer from the metadata. Token ids are those of the file."""
    vocabulary = _read(file)
    kind = vocabulary.get("model")
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"{file.path}: tokenizer.ggml.model = {shown(kind)} is not supported; supported: gpt2 and llama. "
            "Export the Hugging Face checkpoint instead, or this file without its tokenizer (TOKENIZER=none)"
        )
    try:
        if kind == "gpt2":
            tokenizer, add_bos = _byte_level_bpe(vocabulary)
        else:
            tokenizer, add_bos = _sentencepiece_bpe(vocabulary), True
        _add_marked_tokens(tokenizer, vocabulary)
        _add_template(tokenizer, vocabulary, add_bos)
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for tokens that it cannot use
        reason = " ".join(str(error).split())[:500]
        raise UserError(f"{file.path}: its tokenizer.ggml keys are damaged ({reason}). Download it again") from error
    return tokenizer


# The required type of each metadata key. In addition, every *_token_id is an int and every add_*_token a bool.
_TYPES: dict[str, type] = {
    **{"model": str, "pre": str, "tokens": list, "merges": list, "token_type": np.ndarray, "scores": np.ndarray},
    **{"add_space_prefix": bool, "remove_extra_whitespaces": bool},
}


def _check_types(file: GGUFFile) -> None:
    for key, value in file.fields.items():
        name = key.removeprefix("tokenizer.ggml.")
        kind = int if name.endswith("_token_id") else bool if name.endswith("_token") else _TYPES.get(name)
        if name != key and kind is not None and type(value) is not kind:
            raise UserError(f"{file.path}: {key} must be of type {kind.__name__}, not {type(value).__name__}. {AGAIN}")
    for key, value in file.fields.items():
        if (key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")) and not isinstance(value, str):
            raise UserError(f"{file.path}: {key} must be of type str. {AGAIN}")


AGAIN = "Convert the model again"
_TEMPLATE = "tokenizer.chat_template"  # others have their name behind it: tokenizer.chat_template.tool_use


def _templates(file: GGUFFile) -> dict[str, str]:
    """Return the chat templates by name."""
    texts = {key: value for key, value in file.fields.items() if key.startswith(f"{_TEMPLATE}.") and value}
    named = {key.removeprefix(f"{_TEMPLATE}."): value for key, value in texts.items()}
    default = file.fields.get(_TEMPLATE)
    return {"default": default, **named} if default else named


def _read(file: GGUFFile) -> _Vocabulary:
    _check_types(file)
    tokens = file.fields.get("tokenizer.ggml.tokens")
    if not tokens:
        raise UserError(
            f"{file.path} has no tokenizer (tokenizer.ggml.tokens); convert it with its vocabulary, or export it "
            "without one: TOKENIZER=none"
        )
    types = file.fields.get("tokenizer.ggml.token_type")
    types = np.ones(len(tokens), np.int32) if types is None else types
    if len(types) != len(tokens):
        raise UserError(f"{file.path}: {len(tokens)} tokens but {len(types)} token types; convert the model again")
    if len(set(tokens)) != len(tokens):
        raise UserError(f"{file.path}: {len(tokens) - len(set(tokens))} tokens appear twice; convert the model again")
    return _Vocabulary(file, tokens, types)


def _byte_level_bpe(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    pre = _pre_kind(vocabulary)
    merges = _merges(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary.ids(), merges=merges, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre.add_bos


def _pre_kind(vocabulary: _Vocabulary) -> PreKind:
    """Return how the file's kind splits text. Warns if the file does not name its kind."""
    name, path = vocabulary.get("pre"), vocabulary.file.path
    if name is None:
        architecture = str(vocabulary.file.fields.get("general.architecture"))
        name = kind_without_name(architecture, vocabulary.tokens)
        warnings.warn(
            f"{path} does not say how its tokenizer splits text (tokenizer.ggml.pre); {name!r} is used. If texts look "
            "wrong, export a newer GGUF file or the Hugging Face checkpoint",
            stacklevel=2,
        )
    if name not in PRE_KINDS:
        raise UserError(
            f"{path}: tokenizer.ggml.pre = {name!r} is not supported; supported: {', '.join(PRE_KINDS)}. Export the "
            "Hugging Face checkpoint instead, or this file without its tokenizer (TOKENIZER=none)"
        )
    return PRE_KINDS[name]


def _merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Return the merges, best first. Each one joins two tokens into a third."""
    merges = vocabulary.get("merges")
    if merges is None:
        raise UserError(f"{vocabulary.file.path}: tokenizer.ggml.merges is missing; convert the model again")
    known, pairs = set(vocabulary.tokens), []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= known:
            raise UserError(
                f"{vocabulary.file.path}: the merge {shown(merge)} does not join two tokens into a token; "
                "convert the model again"
            )
        pairs.append((left, right))
    return pairs


def _sentencepiece_bpe(vocabulary: _Vocabulary) -> Tokenizer:
    scores = vocabulary.get("scores")
    if scores is None or len(scores) != len(vocabulary.tokens):
        raise UserError(f"{vocabulary.file.path}: tokenizer.ggml.scores is missing or short; convert the model again")
    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if np.any(vocabulary.get(key, False)):
            raise UserError(f"{vocabulary.file.path}: tokenizer.ggml.{key} is not supported. Choose a file without it")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids(),
            merges=sentencepiece_merges(vocabulary.tokens, scores, vocabulary.types),
            unk_token=vocabulary.token("unknown") or "<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = vocabulary.get("add_space_prefix", True)
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space] if prefix else [space])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    return tokenizer


def sentencepiece_merges(tokens: Sequence[str], scores: Sequence[float], types: np.ndarray) -> list[tuple[str, str]]:
    """Return the merges that are equivalent to SentencePiece's BPE, the best piece first.

    SentencePiece stores pieces with scores, and joins the neighbours whose union has the best score. A merge list gives
    the same result if it lists every split of a piece into two pieces at the piece's rank.
    """
    joinable = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    pieces = {token: i for i, token in enumerate(tokens) if types[i] in joinable}
    ranked = []
    for piece, i in pieces.items():
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in pieces and right in pieces:
                # Pieces with equal scores: the split with the longer left part comes first.
                ranked.append((-scores[i], -len(left), -len(right), pieces[left], pieces[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _add_marked_tokens(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Add control tokens as special tokens, which text pieces never produce, and user-defined tokens as whole words."""
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    for i, token in enumerate(vocabulary.tokens):
        if vocabulary.types[i] in special:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif vocabulary.types[i] == TokenType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])


def _add_template(tokenizer: Tokenizer, vocabulary: _Vocabulary, add_bos: bool) -> None:
    bos, eos = vocabulary.token("bos"), vocabulary.token("eos")
    before = [bos] if bos and vocabulary.get("add_bos_token", add_bos) else []
    after = [eos] if eos and vocabulary.get("add_eos_token", False) else []
    marks = {token: vocabulary.tokens.index(token) for token in (*before, *after)}
    if not marks:
        return
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)],
        special_tokens=list(marks.items()),
    )


def _settings(vocabulary: _Vocabulary) -> dict[str, Any]:
    marks = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    fields = vocabulary.file.fields
    named = {name: token for name, key in marks.items() if (token := vocabulary.token(key)) is not None}
    return {
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(fields[f"{fields['general.architecture']}.context_length"]),
        **named,
    }


def gguf_generation_config(file: GGUFFile) -> dict[str, Any]:
    """Return the ids that begin, end and pad a sequence.

    "eot" ends a turn and "eom" a message; both also end the generation, so they count as eos.
    """
    _check_types(file)
    get = file.fields.get
    eos = [get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(end for end in eos if end is not None))
    ids = {
        "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": get("tokenizer.ggml.padding_token_id"),
    }
    return {key: value for key, value in ids.items() if value is not None}
