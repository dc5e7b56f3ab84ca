"""Incremental detokenization: the text of a sequence that arrives token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import tokenizers

REPLACEMENT = "\ufffd"  # stands for bytes that cannot be decoded
LONGEST_HOLD = 64  # tokens; a character has at most 4 bytes, so more undecodable tokens never become a character
NEAR = 8  # tokens before a text that decide how it begins: a character has at most 4 bytes


class Decoder(Protocol):
    """The parts of a Tokenizer that detokenization uses."""

    model: tokenizers.Tokenizer

    @property
    def decode_token(self) -> Callable[[int, bool], str]:
        """(token, skip_special_tokens) -> the text of this token by itself."""


class TextStream:
    """Detokenizes one sequence: the pieces joined are the text of all ids, and no piece splits a character.

    Tokens are bytes, not characters, so an incomplete UTF-8 sequence at the end is held back until it is complete. Each
    piece is the difference between two decodings: of the tokens already shown, and of those with the new ones. A
    decoder may treat the first token of a sequence differently (for example drop a leading space).

    Attributes:
        held: complete characters that are held back together with the incomplete one behind them.
    """

    def __init__(self, tokenizer: Decoder, skip_special_tokens: bool = True, prefix_ids: Sequence[int] = ()) -> None:
        """Begin a text.

        Args:
            tokenizer: decodes the ids.
            skip_special_tokens: leave special tokens out of the text.
            prefix_ids: the tokens of the text that this one continues.
        """
        self.held = 0
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids = [int(i) for i in prefix_ids[-NEAR:]]  # the last piece's tokens, then those not shown yet
        self._shown = len(self._ids)  # how many of them are shown
        self._text = self._decode() if self._ids else ""  # their decoding
        if self._text.endswith(REPLACEMENT):  # cut within a character: the rest of it is no text by itself
            self._ids, self._shown, self._text = [], 0, ""

    def push(self, token: int) -> str:
        """Add a token and return the text that it completes; often empty."""
        self._ids.append(int(token))
        text = self._decode()
        incomplete = text.endswith(REPLACEMENT) and len(self._ids) - self._shown < LONGEST_HOLD
        if incomplete or len(text) <= len(self._text):
            self.held = max(0, len(text.rstrip(REPLACEMENT)) - len(self._text))
            return ""
        piece = text[len(self._text) :]
        self.held = 0
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        self._text = self._tokenizer.model.decode(self._ids, skip_special_tokens=self._skip)
        return piece

    def flush(self) -> str:
        """End the sequence and return the text that is still held back."""
        text = self._decode()
        piece = text[len(self._text) :]
        self._ids, self._shown, self._text, self.held = [], 0, "", 0
        return piece

    def _decode(self) -> str:
        if len(self._ids) == 1:
            return self._tokenizer.decode_token(self._ids[0], self._skip)
        return self._tokenizer.model.decode(self._ids, skip_special_tokens=self._skip)
