"""From events to OpenAI's JSON objects: complete responses, and the chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from ..text.tokenizer import Tokenizer
from ..tools.syntax import AnswerReader
from .answers.parts import AnswerParts
from .request import ChatRequest, GenerationRequest, requested_top_logprobs
from .sequence import SequenceEvent, ServedSequence, TokenLogprobs

ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
FINISH_REASONS = {"eos": "stop", "stop_string": "stop", "length": "length"}  # ours -> OpenAI's


def usage(sequences: Sequence[ServedSequence], n: int) -> dict[str, Any]:
    """OpenAI's `usage`. Each prompt counts once, however many of the n answers it has."""
    prompts = sum(len(sequence.prompt) for sequence in sequences[::n])
    new = sum(sequence.new_tokens for sequence in sequences)
    return {
        "prompt_tokens": prompts,
        "completion_tokens": new,
        "total_tokens": prompts + new,
        "completion_tokens_details": {
            "accepted_prediction_tokens": sum(sequence.accepted_tokens for sequence in sequences),
            "rejected_prediction_tokens": sum(sequence.rejected_tokens for sequence in sequences),
        },
        "prompt_tokens_details": {"cached_tokens": sum(sequence.cached_tokens for sequence in sequences[::n])},
    }


def to_json(value: object) -> bytes:
    """Compact JSON in UTF-8."""
    return ENCODER.encode(value).encode()


def sse(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"


def token_text(data: bytes, prefix: str = "") -> str:
    """A token's bytes as text. Bytes that are not valid UTF-8 are escaped after `prefix`, as OpenAI does."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return prefix + data.decode(errors="backslashreplace")


class ResponseWriter:
    """Writes the JSON objects of one response; all of them have the same id and time."""

    def __init__(
        self,
        request: GenerationRequest,
        model: str,
        tokenizer: Tokenizer,
        readers: Sequence[AnswerReader | None] = (),
    ) -> None:
        """Args:
        request: what is answered
        model: the name that the response states
        tokenizer: gives the bytes of tokens for log-probabilities
        readers: of the choices of a chat, which separate thoughts and tool calls from the text
        """
        self._parts = {index: AnswerParts(reader) for index, reader in enumerate(readers) if reader is not None}
        self.is_chat = isinstance(request, ChatRequest)
        self.request = request
        self.tokenizer = tokenizer
        self._choices_with_logprobs: set[int] = set()  # choices whose first log-probability has been written
        self._text_frames: dict[int, tuple[bytes, bytes]] = {}  # choice -> JSON before and after a chunk's text
        self._head = {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def complete(self, events: Sequence[Sequence[SequenceEvent]], sequences: Sequence[ServedSequence]) -> bytes:
        """The complete response. events[i] are all events of choice i."""
        choices = []
        for index, choice_events in enumerate(events):
            text = "".join(event.text for event in choice_events)
            parts = self._parts.get(index) or AnswerParts(None)
            content = {"message": parts.message(text)} if self.is_chat else {"text": text}
            choices.append(
                {
                    "index": index,
                    **content,
                    "logprobs": None
                    if requested_top_logprobs(self.request) is None
                    else self._logprobs(index, choice_events),
                    "finish_reason": self._finish_reason(index, choice_events[-1].finish_reason or "length"),
                }
            )
        kind = "chat.completion" if self.is_chat else "text_completion"
        return to_json({**self._head, "object": kind, "choices": choices, "usage": usage(sequences, self.request.n)})

    def first_frames(self, count: int) -> bytes:
        """The server-sent events that begin a stream of `count` choices."""
        chunks = [self.first_chunk(index) for index in range(count)]
        return b"".join(sse(chunk) for chunk in chunks if chunk is not None)

    def next_frames(self, index: int, events: Sequence[SequenceEvent]) -> bytes:
        """The server-sent events that these events add to a choice."""
        chunk = self.next_chunk(index, events)
        return b"" if chunk is None else sse(chunk)

    def last_frames(self, sequences: Sequence[ServedSequence]) -> bytes:
        """The server-sent events that end a stream."""
        used = sse(self.usage_chunk(sequences)) if self.request.stream_options.include_usage else b""
        return used + sse(b"[DONE]")

    def error_frames(self, body: dict[str, Any]) -> bytes:
        """The server-sent event that ends a stream that has failed. body: OpenAI's error object."""
        return sse(to_json(body))

    def first_chunk(self, index: int) -> bytes | None:
        """The chunk that begins a choice of a chat: the role. None for a completion."""
        if not self.is_chat:
            return None
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
        return to_json(self._chunk([{**choice, "finish_reason": None}]))

    def next_chunk(self, index: int, events: Sequence[SequenceEvent]) -> bytes | None:
        """The chunk that these events add to a choice; None if they add nothing visible."""
        text = "".join(event.text for event in events)
        reason = events[-1].finish_reason
        logprobs = self._logprobs(index, events) if any(event.logprobs for event in events) else None
        if (parts := self._parts.get(index)) is not None:
            delta = parts.delta(text, last=reason is not None)
            finish = None if reason is None else self._finish_reason(index, reason)
            if not delta and finish is None and logprobs is None:
                return None
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return to_json(self._chunk([choice]))
        if reason is None and logprobs is None:
            return self._text_chunk(index, text) if text else None
        return to_json(self._choice_chunk(index, text, logprobs, None if reason is None else FINISH_REASONS[reason]))

    def usage_chunk(self, sequences: Sequence[ServedSequence]) -> bytes:
        """The last chunk of a stream whose request sets stream_options.include_usage."""
        return to_json({**self._chunk([]), "usage": usage(sequences, self.request.n)})

    def _choice_chunk(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        content = {"delta": {"content": text} if text or logprobs else {}} if self.is_chat else {"text": text}
        return self._chunk([{"index": index, **content, "logprobs": logprobs, "finish_reason": finish}])

    def _finish_reason(self, index: int, reason: str) -> str:
        found = FINISH_REASONS[reason]
        called = index in self._parts and self._parts[index].calls > 0
        return "tool_calls" if called and found == "stop" else found

    def _text_chunk(self, index: int, text: str) -> bytes:
        """A chunk that holds text only. Most chunks do, so all JSON around the text is encoded once."""
        if index not in self._text_frames:
            placeholder = secrets.token_hex(16)
            chunk = to_json(self._choice_chunk(index, placeholder, None, None))
            before, _, after = chunk.partition(to_json(placeholder))
            self._text_frames[index] = before, after
        before, after = self._text_frames[index]
        return before + to_json(text) + after

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head, "object": "chat.completion.chunk" if self.is_chat else "text_completion"}
        if self.request.stream_options.include_usage:
            chunk["usage"] = None
        return {**chunk, "choices": choices}

    def _logprobs(self, index: int, events: Sequence[SequenceEvent]) -> dict[str, Any]:
        """OpenAI's `logprobs` of the tokens in the text of these events."""
        entries = [entry for event in events for entry in event.logprobs]
        if self.is_chat:
            return {"content": [self._chat_entry(index, entry) for entry in entries], "refusal": None}
        return {
            "tokens": [self._completion_token(entry.token) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [None if entry.logprob is None else self._completion_top(entry) for entry in entries],
            "text_offset": [entry.offset for entry in entries],
        }

    def _chat_entry(self, index: int, entry: TokenLogprobs) -> dict[str, Any]:
        first = index not in self._choices_with_logprobs
        self._choices_with_logprobs.add(index)
        shown: tuple[tuple[int, float | None], ...] = entry.top
        if shown and all(token != entry.token for token, _ in shown):  # drawn, and not among the most likely
            shown = (*shown, (entry.token, entry.logprob))
        top = [self._chat_token(token, value, first) for token, value in shown]
        return {**self._chat_token(entry.token, entry.logprob, first), "top_logprobs": top}

    def _chat_token(self, token: int, logprob: float | None, first: bool) -> dict[str, Any]:
        data = self.tokenizer.token_bytes(token, first=first)
        return {"token": token_text(data), "logprob": logprob, "bytes": list(data)}

    def _completion_top(self, entry: TokenLogprobs) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for token, value in entry.top:
            # Two tokens may have the same text. The more likely one comes first and stays.
            found.setdefault(self._completion_token(token), value)
        found.setdefault(self._completion_token(entry.token), entry.logprob)
        return found

    def _completion_token(self, token: int) -> str:
        return token_text(self.tokenizer.token_bytes(token), "bytes:")
