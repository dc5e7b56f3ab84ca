"""A text that grows turn by turn, and can be put away in a file with its part of the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..generation.output import Piece
from ..generation.stream import Stream
from . import session_file

if TYPE_CHECKING:
    from ..model import LlamaForCausalLM


class Session:
    """`ids` is the text so far: what was given, and what was generated. Only what is new of it is computed, as long as
    its row of the cache is not needed for other texts; after that it is computed once more, with the same result."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self.ids: list[int] = []

    def stream(self, more: str | Sequence[int], **settings: Any) -> Stream:
        """Continue behind the text so far and `more` (text, or token ids), as `LlamaForCausalLM.stream` does. Both
        `more` and each new token then belong to the text. Raises UserError where it leaves no room in the context."""
        given = self._encoded(more) if isinstance(more, str) else [int(i) for i in more]
        stream = self.model.stream([*self.ids, *given], **{"reuse_prefix": True, **settings})
        stream.listeners.append(self._heard)
        self.ids += given
        return stream

    def generate(self, more: str | Sequence[int], **settings: Any) -> np.ndarray:
        """As `stream`, at once: the new tokens, int64 [n]."""
        return np.array([piece.id for piece in self.stream(more, **settings) if piece.id is not None], np.int64)

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Write text and cache to a file (safetensors), of the positions in use only. notes: further metadata."""
        if not self.ids:
            raise UserError("the session is empty, so there is nothing to save. Generate something first")
        with self.model.engine.turn.take():
            session_file.save(path, self.model.engine, np.array(self.ids, np.int64), notes or {})

    def load(self, path: str | Path) -> dict[str, str]:
        """Take text and cache from a file that `save` wrote, and return its notes. Raises UserError, without changing
        anything, for a file of another artifact or a damaged one."""
        with self.model.engine.turn.take():
            ids, notes = session_file.restore(path, self.model.engine)
        self.ids = ids.tolist()
        return notes

    def _encoded(self, text: str) -> list[int]:
        return self.model.tokenizer.encode(text, add_special_tokens=not self.ids)  # bos comes once

    def _heard(self, piece: Piece) -> None:
        if piece.id is not None:
            self.ids.append(piece.id)
