"""One answer on its way: its prompt, how its tokens are chosen, and the text that it has shown so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from runtime.generation.config import GenerationConfig
from runtime.generation.sampler import NotNumbersError
from runtime.generation.sequences import Texts
from runtime.generation.token_selector import Chooser, LogitsProcessor
from runtime.text.detokenizer import TextStream
from runtime.text.tokenizer import Tokenizer


class Logprobs(NamedTuple):
    """The model's own log-probability of a token, and of the likeliest ones in its place, likeliest first.

    offset: where the token's text begins in the answer's, in characters.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    offset: int


class Event(NamedTuple):
    """What a step adds to an answer. `text` may be empty, or hold what was held back before; `logprobs` are those of
    tokens whose text begins in it. The last event has a finish_reason ("eos", "stop_string", "length"), or the error
    that ended the answer; then there is no token."""

    token: int | None
    text: str = ""
    logprobs: tuple[Logprobs, ...] = ()
    finish_reason: str | None = None
    error: Exception | None = None
    first: bool = False


class Answer:
    """A row's worth of work. The scheduler alone changes it, in the engine's thread.

    row: where it runs, -1 before. cached: tokens of the prompt that were in the cache already. done: tokens
    of its text that are in the cache. last: its newest token, which the next decode pass takes.
    """

    def __init__(
        self,
        prompt: Sequence[int] | np.ndarray,
        limit: int,
        config: GenerationConfig,
        tokenizer: Tokenizer,
        vocab_size: int,
        send: Callable[[Event], None],
        *,
        seed: Sequence[int] = (0,),
        processors: Sequence[LogitsProcessor] = (),
        top_logprobs: int | None = None,
        reuse: bool = True,
        continues: bool = False,
    ) -> None:
        """limit: most new tokens. send: gets the Events, in the engine's thread. top_logprobs: None for no logprobs at
        all. reuse: whether what the cache holds of the prompt may be taken; it may round otherwise, in the last digits,
        where another answer's tokens were written one by one. continues: the answer goes on with the prompt's text,
        instead of being one of its own. The stop strings of `config` end the text before them."""
        self.texts = Texts([np.asarray(prompt, np.int64)], [limit])
        self.send = send
        self.row = -1
        self.reuse = reuse
        self.cached = 0
        self.done = 0
        self.last = int(prompt[-1])
        self.cancelled = False
        self.finished = False
        self._chooser = Chooser(config, vocab_size, [np.random.default_rng(seed)], processors)
        self._tokenizer = tokenizer
        self._eos = frozenset(config.eos_token_id)
        self._text = ShownText(
            tokenizer.text_stream(behind=self.prompt.tolist() if continues else ()), config.stop_strings
        )
        self._top_logprobs = top_logprobs
        self._unshown: deque[Logprobs] = deque()  # of tokens whose text is held back, and may yet be cut off

    @property
    def prompt(self) -> np.ndarray:
        return self.texts.ids[0, : self.texts.prompt_length[0]]

    def take(self, logits: np.ndarray) -> None:
        """Choose the next token from logits [V], and send it.

        Raises UserError where the settings leave no token, RuntimeError for logits that are not numbers.
        """
        try:
            normaliser = None if self._top_logprobs is None else self._chooser.plain.log_normaliser(logits)
            picked = self._chooser(self.texts, logits[None])
        except NotNumbersError as error:
            raise RuntimeError(f"logits are not numbers after {self.done} tokens") from error
        self.texts.push(picked)
        (token,) = picked
        self.last = token
        if token in self._eos:
            text, reason = self._text.flush(), "eos"
        else:
            if normaliser is not None and not self._tokenizer.is_special_token(token):
                self._unshown.append(self._logprobs(logits, normaliser, token))
            text, reason = self._text.push(token), None
            if self._text.stopped:
                reason = "stop_string"
            elif self.texts.steps == self.texts.limit:
                text, reason = text + self._text.flush(), "length"
        self.finished = reason is not None
        self.send(Event(token, text, self._shown_logprobs(), reason, first=self.texts.steps == 1))

    def fail(self, error: Exception) -> None:
        """End here, and say why."""
        self.finished = True
        self.send(Event(None, error=error))

    def _logprobs(self, logits: np.ndarray, normaliser: float, token: int) -> Logprobs:
        count = min(self._top_logprobs or 0, logits.size)
        top = np.argpartition(logits, logits.size - count)[logits.size - count :] if count else np.array([], np.int64)
        top = top[np.argsort(-logits[top], kind="stable")]
        alternatives = tuple((int(i), float(logits[i]) - normaliser) for i in top)
        return Logprobs(token, float(logits[token]) - normaliser, alternatives, self._text.end)

    def _shown_logprobs(self) -> tuple[Logprobs, ...]:
        """Those of tokens that are shown by now, in part at least, and were not before."""
        shown = []
        while self._unshown and self._unshown[0].offset < self._text.shown:
            shown.append(self._unshown.popleft())
        return tuple(shown)


class ShownText:
    """Text as it comes, up to the first stop string; what a stop string may begin with is held back.

    shown: how many characters of it are shown.
    """

    def __init__(self, stream: TextStream, stops: Sequence[str]) -> None:
        self.stopped = False
        self.shown = 0
        self._decoded = 0  # characters, shown or not
        self._stream = stream
        self._stops = stops
        self._held = ""

    @property
    def end(self) -> int:
        """How many characters there are, shown or not: where the next token's text begins."""
        return self._decoded + self._stream.held

    def push(self, token: int) -> str:
        """What this token lets be shown."""
        return self._show(self._stream.push(token))

    def flush(self) -> str:
        """The rest, at the end of the answer."""
        text = self._show(self._stream.flush()) + self._held
        self.shown, self._held = self.shown + len(self._held), ""
        return text

    def _show(self, piece: str) -> str:
        text = self._held + piece
        self._decoded += len(piece)
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        self.stopped = bool(found)
        held = 0 if found else max((overlap(text, stop) for stop in self._stops), default=0)
        end = min(found) if found else len(text) - held
        self.shown, self._held = self.shown + end, text[len(text) - held :]
        return text[:end]


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are a beginning of `stop`, at most all but one of its."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
