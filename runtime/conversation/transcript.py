"""Conversations as token ids that only grow, although a chat template writes the whole text anew for each turn.

The tokens that a model generated may differ from the tokens that the tokenizer makes of their text, and a template may
write an earlier answer differently (trimmed, for example). If each turn's whole text were encoded, the ids would differ
from the cached ones somewhere in the middle, and everything behind would be computed again. So an answer keeps the ids
that it was generated with, and only the text after it is encoded.
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
    """One turn of a conversation.

    Attributes:
        text: the template's text for all messages of the turn.
        ids: the tokens of the text, then those of the answer.
        answer: the answer's text.
        eos: whether the last id is an end-of-sequence token.
    """

    text: str
    ids: list[int]
    answer: str = ""
    eos: bool = field(default=False)

    def record(self, piece: Piece) -> None:
        """Add a piece of the answer."""
        if piece.id is not None:
            self.ids.append(piece.id)
        self.answer += piece.text
        self.eos = piece.finish_reason == "eos"

    def continued(self, text: str, tokenizer: Tokenizer) -> list[int] | None:
        """Return the ids of a longer conversation that continues this turn.

        Args:
            text: the template's text for the longer conversation.
            tokenizer: encodes the text behind this turn's answer.

        Returns:
            The ids; None if `text` does not begin with this turn's text and answer (white space around the answer may
            differ), or if a token could span the end of the answer.
        """
        if not text.startswith(self.text):
            return None
        rest, answer = text[len(self.text) :].lstrip(), self.answer.strip()
        if not rest.startswith(answer):
            return None
        behind = tokenizer.encode(rest[len(answer) :].lstrip(), add_special_tokens=False)
        if not behind or not tokenizer.is_added_token(behind[0]):  # an added token never joins the text before it
            return None
        return [*(self.ids[:-1] if self.eos else self.ids), *behind]  # the template itself writes the end of an answer


class Transcripts:
    """The latest turns of all conversations with a model."""

    def __init__(self) -> None:
        self._turns: deque[Transcript] = deque(maxlen=KEPT)

    def begin(
        self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> Transcript:
        """Return the turn that answers `messages`, still without its answer.

        It continues the longest earlier turn that fits; otherwise the whole text is encoded.

        Args:
            tokenizer: renders and encodes the messages.
            messages: the whole conversation.
            variables: of the chat template.

        Raises:
            UserError: as `Tokenizer.render_chat`.
        """
        text = tokenizer.render_chat(messages, **variables)
        for turn in sorted(self._turns, key=lambda turn: len(turn.text), reverse=True):
            ids = turn.continued(text, tokenizer)
            if ids is not None:
                return Transcript(text, ids)
        return Transcript(text, tokenizer.encode(text, add_special_tokens=False))

    def keep(self, turn: Transcript) -> None:
        """Keep a turn, so that later ones may continue it."""
        self._turns.append(turn)
