"""One answer that arrives token by token, and the means to stop it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING

from ..engine.engine_lock import Cancelled, EngineLock
from ..text.detokenizer import TextStream
from ..text.graphemes import Graphemes
from ..text.tokenizer import Tokenizer
from .batch import Batch
from .decode import GenerationTimings
from .output import Piece

if TYPE_CHECKING:
    from ..tools.functions import CallCollector


@dataclass
class _TextBefore:
    """The text before an answer: its token ids, which decide how the first tokens of the answer are written."""

    tokenizer: Tokenizer
    prefix_ids: Sequence[int]
    special_tokens: bool = False  # whether the answer's text shows them

    def text_stream(self) -> TextStream:
        hidden = not self.special_tokens
        return self.tokenizer.text_stream(skip_special_tokens=hidden, prefix_ids=self.prefix_ids)


class Stream(Iterator[Piece]):
    """Yields the pieces of one answer.

    The stream takes the engine's lock with the first piece and releases it after the last. `cancel` ends the stream
    with a last piece. `close`, leaving a `with` block, an exception of a listener, or dropping the stream ends it
    without one. `break` in `for piece in model.stream(...)` drops it.

    Attributes:
        listeners: each is called with a piece before the caller gets it.
        adapter: the number of the adapter that it uses (engine/adapters.py); 0: none.
    """

    def __init__(self, batch: Batch, lock: EngineLock, tokenizer: Tokenizer) -> None:
        self.listeners: list[Callable[[Piece], None]] = []
        self.adapter = batch.adapters[0]
        self._cancelled = batch.call.cancelled
        self._before = _TextBefore(tokenizer, batch.sequences.row(0).tolist())
        # The generator must not refer to this object. In a cycle, a dropped stream would hold the engine's lock until
        # the next garbage collection.
        self._pieces = _pieces(batch, lock, self._before)
        self._collector: CallCollector | None = None

    def read_calls(self, collector: CallCollector) -> None:
        """Separate tool calls from the text, from the first piece on. Listeners get the text as it was written."""
        self._collector, self._before.special_tokens = collector, True

    @property
    def prefix_ids(self) -> Sequence[int]:
        """The tokens of the text that the answer continues.

        Set to (), before the first piece, the answer is a text by itself.
        """
        return self._before.prefix_ids

    @prefix_ids.setter
    def prefix_ids(self, tokens: Sequence[int]) -> None:
        self._before.prefix_ids = tokens

    def __next__(self) -> Piece:
        piece = next(self._pieces)
        if self._collector is not None and piece.finish_reason == "eos" and piece.id is not None:
            written = self._before.tokenizer.decode_token(piece.id, False)
            piece = replace(piece, text=piece.text.removesuffix(written))
        try:
            for listener in self.listeners:
                listener(piece)
        except BaseException:
            self.close()
            raise
        if self._collector is None:
            return piece
        last = piece.finish_reason is not None
        text = self._collector.push(piece.text, last)
        return replace(piece, text=text, tool_calls=self._collector.calls() if last else ())

    def cancel(self) -> None:
        """Stop before the next pass of the model, or while waiting for the first; at any time.

        A last piece with finish_reason "cancelled" follows. May be called from any thread, or a signal handler.
        """
        self._cancelled.set()

    def close(self) -> None:
        """End the stream. Call it from the thread that iterates; other threads call `cancel`."""
        self._pieces.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _pieces(batch: Batch, lock: EngineLock, before: _TextBefore) -> Generator[Piece, None, None]:
    timings = GenerationTimings()
    characters, graphemes = before.text_stream(), Graphemes()
    try:
        with lock.take(batch.call.cancelled):
            for (token,) in batch.decode(timings):
                text, reason = graphemes.push(characters.push(token)), batch.sequences.finish_reasons[0]
                logprob = float(batch.selector.logprobs.pop()[0])
                if reason is None:
                    yield Piece(token, text, logprob)
                else:
                    text += graphemes.push(characters.flush()) + graphemes.flush()
                    yield Piece(token, text, logprob, reason, timings)
            if batch.sequences.finish_reasons[0] != "cancelled":
                return
    except Cancelled:  # while it waited for the lock
        pass
    text = graphemes.push(characters.flush()) + graphemes.flush()
    yield Piece(None, text, None, "cancelled", timings)
