"""One answer as it comes: pieces of text, token by token, and the means to stop it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from types import TracebackType

from ..engine.engine_lock import Cancelled, Turn
from ..text.detokenizer import TextStream
from ..text.graphemes import Graphemes
from ..text.tokenizer import Tokenizer
from .batch import Wave
from .decode import Timings
from .output import Piece


class Stream(Iterator[Piece]):
    """Iterate over it for the Pieces; the engine's turn is taken with the first and given back after the last.

    `cancel` ends it with a last Piece; `close`, leaving a `with` block, or dropping the stream ends it without.
    Each of `listeners` is called with a Piece before it is handed out. `behind` are the tokens of the text that it goes
    on with; none, before the first piece is asked for, makes it a text of its own.
    """

    def __init__(self, wave: Wave, turn: Turn, tokenizer: Tokenizer) -> None:
        self.listeners: list[Callable[[Piece], None]] = []
        self.behind: Sequence[int] = wave.texts.row(0).tolist()
        self._cancelled = wave.call.cancelled
        self._pieces = _pieces(wave, turn, lambda: tokenizer.text_stream(behind=self.behind))

    def __next__(self) -> Piece:
        piece = next(self._pieces)
        for listener in self.listeners:
            listener(piece)
        return piece

    def cancel(self) -> None:
        """Stop before the next pass of the model, or waiting for the first: a last Piece with finish_reason "cancelled"
        follows. From any thread, or a signal handler; at any time, also before the first piece and after the last."""
        self._cancelled.set()

    def close(self) -> None:
        """End here. By the thread that iterates over it; another one calls `cancel`."""
        self._pieces.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _pieces(wave: Wave, turn: Turn, text_stream: Callable[[], TextStream]) -> Generator[Piece, None, None]:
    timings = Timings()
    characters, graphemes = text_stream(), Graphemes()
    try:
        with turn.take(wave.call.cancelled):
            for (token,) in wave.decode(timings):
                text, reason = graphemes.push(characters.push(token)), wave.texts.finish_reasons[0]
                logprob = float(wave.chooser.logprobs.pop()[0])
                if reason is None:
                    yield Piece(token, text, logprob)
                else:
                    text += graphemes.push(characters.flush()) + graphemes.flush()
                    yield Piece(token, text, logprob, reason, timings)
            if wave.texts.finish_reasons[0] != "cancelled":
                return
    except Cancelled:  # while it waited its turn
        pass
    text = graphemes.push(characters.flush()) + graphemes.flush()
    yield Piece(None, text, None, "cancelled", timings)
