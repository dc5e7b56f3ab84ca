"""A sequence that the server generates: its prompt, its token selector, and the text that it has sent so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ..backend.cpu_head import CpuHead
from ..generation.config import GenerationConfig
from ..generation.sequences import Sequences
from ..generation.token_selector import LogitsProcessor, TokenSelector
from ..text.detokenizer import TextStream
from ..text.tokenizer import Tokenizer
from ..tools.syntax import AnswerReader

FIRST_SURROGATE, SURROGATES = 0xD800, 0x800  # decoded UTF-8 contains none of them


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one position, from the model's logits before any processing.

    Attributes:
        token: the selected token
        logprob: its natural log-probability; None for the first token of a prompt
        top: (token, log-probability) of the most likely tokens, the most likely first
        offset: where the token's text begins in the sequence's text, in characters
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    offset: int


class SequenceEvent(NamedTuple):
    """What one step adds to a sequence.

    Attributes:
        token: the new token; None in an event with an error, and in that of a prompt
        text: the text to send. May be empty, and may include text that earlier events held back
        logprobs: of the tokens whose text begins in `text`
        finish_reason: "eos", "stop_string" or "length" in the last event, otherwise None
        error: what ended the sequence; such an event is the last one
        first: whether this is the first new token
    """

    token: int | None
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None
    error: Exception | None = None
    first: bool = False


class StatesReader(Protocol):
    """Reads the hidden states of a prompt."""

    def read(self, head: CpuHead, states: np.ndarray) -> None:
        """Take the states [n, hidden_size] of the next n tokens of the prompt."""


class Echo(NamedTuple):
    """A prompt that the answer begins with.

    Attributes:
        text: of the prompt.
        entries: the log-probabilities of its tokens, filled while the prompt is computed; None without them.
    """

    text: str
    entries: Sequence[TokenLogprobs] | None


class ServedSequence:
    """A prompt and its new tokens in one row of the engine. Only the scheduler changes it, in the engine's thread.

    Attributes:
        row: the engine's row; -1 before the scheduler assigns one
        cached_tokens: prompt tokens that were in the cache before the prefill
        accepted_tokens, rejected_tokens: guesses that were right, and others
        computed_tokens: tokens of the sequence that are in the cache
        last_token: the newest token, which the next decode pass reads
        cancelled: the client has gone; the scheduler frees the row
        reader: reads the text, in the event loop
        finished: the last event has been sent
        states: reads the hidden states of the whole prompt; None if nothing does
    """

    def __init__(
        self,
        prompt: Sequence[int] | np.ndarray,
        max_new_tokens: int,
        config: GenerationConfig,
        tokenizer: Tokenizer,
        vocab_size: int,
        send: Callable[[SequenceEvent], None],
        *,
        seed: Sequence[int] = (0,),
        processors: Sequence[LogitsProcessor] = (),
        top_logprobs: int | None = None,
        reuse_prefix: bool = True,
        continues_prompt: bool = False,
        adapter: int = 0,
        shown: Mapping[int, str] | None = None,
        reader: AnswerReader | None = None,
        states: StatesReader | None = None,
        echo: Echo | None = None,
    ) -> None:
        """Args:
        prompt: token ids [n], n > 0
        max_new_tokens: limit, including a final eos; 0 computes the prompt only
        config: sampling settings, eos ids and stop strings. The text ends before a stop string
        send: receives each SequenceEvent, in the engine's thread
        seed: of the sequence's random generator
        processors: logits processors in addition to those of `config`
        top_logprobs: how many alternatives per token; None turns log-probabilities off
        reuse_prefix: whether a prefix of the prompt may be taken from the cache. Its last digits may differ from
            those of a fresh prefill, because decode steps of another sequence may have written it
        shown: special tokens that the text shows, by id
        reader: separates thoughts and tool calls from the text; None if there are none
        continues_prompt: whether the text continues the prompt's text; if false it is a separate message
        adapter: the number of its LoRA adapter (engine/adapters.py); 0: none
        states: reads the hidden states of the prompt. Then no prefix is taken from the cache
        echo: what the answer begins with
        """
        self.tokens = Sequences([np.asarray(prompt, np.int64)], [max_new_tokens])
        self.send = send
        self.row = -1
        self.reuse_prefix = reuse_prefix and states is None
        self.adapter = adapter
        self.cached_tokens = 0
        self.accepted_tokens = self.rejected_tokens = 0
        self.computed_tokens = 0
        self.last_token = int(prompt[-1])
        self.cancelled = False
        self.finished = False
        self._selector = TokenSelector(config, vocab_size, [np.random.default_rng(seed)], processors)
        self._tokenizer = tokenizer
        self._eos = frozenset(config.eos_token_id)
        self._text = VisibleText(
            tokenizer.text_stream(prefix_ids=self.prompt.tolist() if continues_prompt else ()),
            config.stop_strings,
            tokenizer.special_texts if config.stop_strings else {},
            shown or {},
        )
        self.reader = reader
        self.states = states
        self._echo = echo
        self._top_logprobs = top_logprobs
        self._held_logprobs: deque[TokenLogprobs] = deque()  # of tokens whose text is held back and may be cut off

    @property
    def prompt(self) -> np.ndarray:
        """Token ids [n] of the prompt."""
        return self.tokens.ids[0, : self.tokens.prompt_length[0]]

    @property
    def new_tokens(self) -> int:
        """How many tokens have been generated."""
        return self.tokens.steps

    @property
    def is_decoding(self) -> bool:
        """Whether the prompt is computed and the first token is selected."""
        return self.tokens.steps > 0

    def end_prompt(self) -> None:
        """Send the echo, once the prompt is computed. A sequence without new tokens ends."""
        self.finished = self.tokens.limit == 0
        if self.finished or self._echo is not None:
            text, entries = self._echo or Echo("", None)
            self.send(SequenceEvent(None, text, tuple(entries or ()), "length" if self.finished else None))

    def select_token(self, logits: np.ndarray) -> None:
        """Select the next token from logits [V] float32, and send it.

        Raises UserError if the settings allow no token, NotNumbersError for logits that are not numbers.
        """
        normaliser = None if self._top_logprobs is None else self._selector.plain.logsumexp(logits)
        picked = self._selector(self.tokens, logits[None])
        self.tokens.push(picked)
        (token,) = picked
        self.last_token = token
        is_eos = token in self._eos
        if normaliser is not None and (self._all_entries or not (is_eos or self._tokenizer.is_special_token(token))):
            self._held_logprobs.append(self._logprobs(logits, normaliser, token))
        if is_eos:
            text, reason = self._text.flush(), "eos"
        else:
            text, reason = self._text.push(token), None
            if self._text.stopped:
                reason = "stop_string"
            elif self.tokens.steps == self.tokens.limit:
                text, reason = text + self._text.flush(), "length"
        self.finished = reason is not None
        self.send(SequenceEvent(token, text, self._release_logprobs(reason), reason, first=self.tokens.steps == 1))

    def fail(self, error: Exception) -> None:
        """End the sequence with an error event."""
        self.finished = True
        self.send(SequenceEvent(None, error=error))

    @property
    def _all_entries(self) -> bool:
        """Whether special tokens have log-probabilities too: who scores prompts counts tokens, not texts."""
        return self._echo is not None and self._echo.entries is not None

    def _logprobs(self, logits: np.ndarray, normaliser: float, token: int) -> TokenLogprobs:
        top = most_likely(logits, normaliser, self._top_logprobs or 0)
        return TokenLogprobs(token, float(logits[token]) - normaliser, top, self._text.decoded_length)

    def _release_logprobs(self, reason: str | None) -> tuple[TokenLogprobs, ...]:
        """The held log-probabilities of tokens whose text is now visible, at least in part.

        After an echoed prompt, those of tokens without text, too.
        """
        rest = self._all_entries and reason in ("eos", "length")
        before = 0 if self._echo is None else len(self._echo.text)
        released = []
        while self._held_logprobs and (rest or self._held_logprobs[0].offset < self._text.visible_length):
            entry = self._held_logprobs.popleft()
            released.append(entry._replace(offset=before + entry.offset))
        return tuple(released)


def most_likely(logits: np.ndarray, normaliser: float, count: int) -> tuple[tuple[int, float], ...]:
    """The most likely tokens of logits [V] and their log-probabilities, the most likely first; at most `count`."""
    count = min(count, logits.size)
    top = np.argpartition(logits, logits.size - count)[logits.size - count :] if count else np.array([], np.int64)
    top = top[np.argsort(-logits[top], kind="stable")]
    return tuple((int(i), float(logits[i]) - normaliser) for i in top)


class VisibleText:
    """The decoded text up to the first stop string. Holds back characters that may be the start of a stop string.

    A stop string may name special tokens, which the text does not show. Here a special token is a mark: a character
    that no text contains, half of a surrogate pair.

    Attributes:
        stopped: whether a stop string was found
        visible_length: characters returned so far
    """

    def __init__(
        self,
        stream: TextStream,
        stop_strings: Sequence[str],
        special: Mapping[int, str] | None = None,
        shown: Mapping[int, str] | None = None,
    ) -> None:
        """Begin a text.

        Args:
            stream: decodes the tokens, without special ones.
            stop_strings: the text ends before the first of them.
            special: the text of each special token, by id.
            shown: special tokens that the text shows.
        """
        self.stopped = False
        self.visible_length = 0
        self._received_length = 0  # characters that the stream has returned
        self._stream = stream
        self._marks: dict[int, str] = {}  # token -> its mark
        marked = list(stop_strings)
        self._shown = dict(shown or {})
        for token, text in sorted((special or {}).items(), key=lambda item: -len(item[1])):
            if (
                text
                and token not in self._shown
                and len(self._marks) < SURROGATES
                and any(text in stop for stop in marked)
            ):
                mark = self._marks[token] = chr(FIRST_SURROGATE + len(self._marks))
                marked = [stop.replace(text, mark) for stop in marked]
        # the model may also write the name of a special token as plain text
        self._stop_strings = list(dict.fromkeys([*stop_strings, *marked]))
        self._held = ""

    @property
    def decoded_length(self) -> int:
        """Characters decoded so far, visible or not: where the next token's text begins."""
        return self._received_length + self._stream.held

    def push(self, token: int) -> str:
        """Add a token. Returns the text that becomes visible."""
        piece = self._stream.push(token)
        if token in self._shown:
            piece += self._shown[token]
        return self._show(piece, self._marks.get(token, ""))

    def flush(self) -> str:
        """Returns the rest of the text, at the end of the sequence."""
        text = self._show(self._stream.flush())
        rest, self._held = self._without_marks(self._held), ""
        self.visible_length += len(rest)
        return text + rest

    def _show(self, piece: str, mark: str = "") -> str:
        text = self._held + piece + mark
        self._received_length += len(piece)
        found = [at for at in (text.find(stop) for stop in self._stop_strings) if at >= 0]
        self.stopped = bool(found)
        held = 0 if found else max((partial_match(text, stop) for stop in self._stop_strings), default=0)
        end = min(found) if found else len(text) - held
        self._held = text[len(text) - held :]
        shown = self._without_marks(text[:end])
        self.visible_length += len(shown)
        return shown

    def _without_marks(self, text: str) -> str:
        return "".join(c for c in text if not "\ud800" <= c <= "\udfff") if self._marks else text


def partial_match(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`, in characters."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
