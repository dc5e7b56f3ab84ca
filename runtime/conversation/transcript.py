"""Conversations as token ids that only grow, though a template writes the whole text anew each turn.

What a model generated need not be what the tokenizer makes of its text, and a template may write an earlier answer
otherwise (trimmed, say). Encoding each turn's whole text would then differ from what lies in the cache somewhere in the
middle, and all behind it would be computed again. So an answer keeps the ids that it was generated with, and of the
text only what follows it is encoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..generation.output import Piece
from ..text.tokenizer import Tokenizer

KEPT = 64  # turns, of all conversations: an edited or repeated message continues an earlier turn


@dataclass
class Transcript:
    """One turn. text: what the template wrote for all messages up to it; ids: the same as tokens, then the answer's;
    answer: its text; eos: whether its last id is an end-of-sequence token."""

    text: str
    ids: list[int]
    answer: str = ""
    eos: bool = field(default=False)

    def heard(self, piece: Piece) -> None:
        """A further piece of the answer."""
        if piece.id is not None:
            self.ids.append(piece.id)
        self.answer += piece.text
        self.eos = piece.finish_reason == "eos"

    def followed(self, text: str, tokenizer: Tokenizer) -> list[int] | None:
        """The ids of a longer conversation, whose `text` begins with this one's and its answer (white space around the
        answer apart); None where it does not, or where a token could reach across the answer's end."""
        if not text.startswith(self.text):
            return None
        rest, answer = text[len(self.text) :].lstrip(), self.answer.strip()
        if not rest.startswith(answer):
            return None
        behind = tokenizer.encode(rest[len(answer) :].lstrip(), add_special_tokens=False)
        if not behind or not tokenizer.is_added_token(behind[0]):  # these are never joined with what is before
            return None
        return [*(self.ids[:-1] if self.eos else self.ids), *behind]  # the template writes the end of an answer itself


class Transcripts:
    """The latest turns of a model's conversations."""

    def __init__(self) -> None:
        self._turns: deque[Transcript] = deque(maxlen=KEPT)

    def begin(
        self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> Transcript:
        """The turn that answers `messages`, without its answer yet: behind the longest earlier turn that it continues,
        or encoded as a whole. variables: the template's. Raises UserError as `Tokenizer.render_chat` does."""
        text = tokenizer.render_chat(messages, **variables)
        for turn in sorted(self._turns, key=lambda turn: len(turn.text), reverse=True):
            ids = turn.followed(text, tokenizer)
            if ids is not None:
                return Transcript(text, ids)
        return Transcript(text, tokenizer.encode(text, add_special_tokens=False))

    def keep(self, turn: Transcript) -> None:
        self._turns.append(turn)
