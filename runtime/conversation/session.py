"""A text that grows from call to call, and can be saved to a file together with its part of the KV cache."""

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
    """A text that continues from call to call, made by `LlamaForCausalLM.session`.

    Only the new part is computed, as long as other generations do not need the session's row of the cache. After that
    the whole text is computed once more, with the same result.

    Attributes:
        model: generates the text.
        ids: token ids of the text so far, given and generated.
        adapter: the number of the LoRA adapter that the latest part was computed with; 0: none.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self.ids: list[int] = []
        self.adapter = 0

    def stream(self, more: str | Sequence[int], **settings: Any) -> Stream:
        """Append `more`, continue the text, and yield a Piece per new token.

        Args:
            more: text or token ids; with each new token they become part of the session.
            settings: those of `LlamaForCausalLM.stream`.

        Raises:
            UserError: the text leaves no room in the context, or a setting does not fit.
            TypeError: an unknown keyword.
        """
        given = self._encoded(more) if isinstance(more, str) else [int(i) for i in more]
        stream = self.model.stream([*self.ids, *given], **{"reuse_prefix": True, **settings})
        stream.listeners.append(self._record)
        self.ids += given
        self.adapter = stream.adapter
        return stream

    def generate(self, more: str | Sequence[int], **settings: Any) -> np.ndarray:
        """Return the new tokens at once, int64 [n]; arguments and errors are those of `stream`."""
        return np.array([piece.id for piece in self.stream(more, **settings) if piece.id is not None], np.int64)

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Write the text and its part of the cache to a safetensors file; only positions in use are written.

        Args:
            path: the file.
            notes: further metadata.

        Raises:
            UserError: the session is empty, or the file cannot be written.
        """
        if not self.ids:
            raise UserError("the session is empty, so there is nothing to save. Generate something first")
        with self.model.engine.engine_lock.take():
            session_file.save(path, self.model.engine, np.array(self.ids, np.int64), notes or {}, self.adapter)

    def load(self, path: str | Path) -> dict[str, str]:
        """Replace text and cache by those of a file that `save` wrote, and return its notes.

        Raises:
            UserError: the file belongs to another artifact, was saved with a LoRA adapter that is not loaded, or is
                damaged; then nothing has changed.
        """
        with self.model.engine.engine_lock.take():
            ids, notes, self.adapter = session_file.restore(path, self.model.engine)
        self.ids = ids.tolist()
        return notes

    def _encoded(self, text: str) -> list[int]:
        return self.model.tokenizer.encode(text, add_special_tokens=not self.ids)  # bos occurs once

    def _record(self, piece: Piece) -> None:
        if piece.id is not None:
            self.ids.append(piece.id)
