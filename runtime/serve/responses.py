"""Answers as OpenAI's objects, in JSON: whole ones, and the chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from runtime.serve.answer import Answer, Event, Logprobs
from runtime.serve.schema import ChatRequest, Request, top_logprobs
from runtime.text.tokenizer import Tokenizer

JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
FINISH = {"eos": "stop", "stop_string": "stop", "length": "length"}


def usage(answers: Sequence[Answer], n: int) -> dict[str, Any]:
    """Tokens of the prompts, each counted once however many answers it got, and of the answers."""
    prompts = sum(len(answer.prompt) for answer in answers[::n])
    new = sum(answer.texts.steps for answer in answers)
    return {
        "prompt_tokens": prompts,
        "completion_tokens": new,
        "total_tokens": prompts + new,
        "prompt_tokens_details": {"cached_tokens": sum(answer.cached for answer in answers[::n])},
    }


def encoded(value: object) -> bytes:
    return JSON.encode(value).encode()


def written(data: bytes, mark: str = "") -> str:
    """A token's bytes as text. What is no whole text is written as OpenAI does, after `mark`: "\\xf0\\x9f"."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return mark + data.decode(errors="backslashreplace")


class Writer:
    """The objects of one response. Its id and time are the same in all of them."""

    def __init__(self, request: Request, model: str, tokenizer: Tokenizer) -> None:
        self.chat = isinstance(request, ChatRequest)
        self.request = request
        self.tokenizer = tokenizer
        self._begun: set[int] = set()  # choices of which a token's log-probability was told
        self._frames: dict[int, tuple[bytes, bytes]] = {}  # choice -> what stands around the text of a chunk
        self._head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, events: Sequence[Sequence[Event]], answers: Sequence[Answer]) -> bytes:
        """events: those of each choice."""
        choices = []
        for index, of_choice in enumerate(events):
            text = "".join(event.text for event in of_choice)
            content = (
                {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            )
            choices.append(
                {
                    "index": index,
                    **content,
                    "logprobs": None if top_logprobs(self.request) is None else self._logprobs(index, of_choice),
                    "finish_reason": FINISH[of_choice[-1].finish_reason or "length"],
                }
            )
        kind = "chat.completion" if self.chat else "text_completion"
        used = usage(answers, self.request.n)
        return encoded({**self._head, "object": kind, "choices": choices, "usage": used})

    def first(self, index: int) -> bytes | None:
        """What a choice's stream begins with: who speaks; nothing in a completion."""
        if not self.chat:
            return None
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
        return encoded(self._chunk([{**choice, "finish_reason": None}]))

    def next(self, index: int, events: Sequence[Event]) -> bytes | None:
        """What these events add to a choice; None where that is nothing to be told."""
        text = "".join(event.text for event in events)
        reason = events[-1].finish_reason
        logprobs = self._logprobs(index, events) if any(event.logprobs for event in events) else None
        if reason is None and logprobs is None:
            return self._framed(index, text) if text else None
        return encoded(self._added(index, text, logprobs, None if reason is None else FINISH[reason]))

    def _added(self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
        content = {"delta": {"content": text} if text or logprobs else {}} if self.chat else {"text": text}
        return self._chunk([{"index": index, **content, "logprobs": logprobs, "finish_reason": finish}])

    def _framed(self, index: int, text: str) -> bytes:
        """A chunk of text alone: most are, and all but the text is the same each time."""
        if index not in self._frames:
            place = secrets.token_hex(16)
            before, _, after = encoded(self._added(index, place, None, None)).partition(encoded(place))
            self._frames[index] = before, after
        before, after = self._frames[index]
        return before + encoded(text) + after

    def usage(self, answers: Sequence[Answer]) -> bytes:
        """The chunk that a stream ends with where stream_options ask for it."""
        return encoded({**self._chunk([]), "usage": usage(answers, self.request.n)})

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head, "object": "chat.completion.chunk" if self.chat else "text_completion"}
        if self.request.stream_options.include_usage:
            chunk["usage"] = None
        return {**chunk, "choices": choices}

    def _logprobs(self, index: int, events: Sequence[Event]) -> dict[str, Any]:
        """Of the tokens that the text of these events is made of."""
        entries = [entry for event in events for entry in event.logprobs]
        if self.chat:
            return {"content": [self._chat_logprob(index, entry) for entry in entries], "refusal": None}
        return {
            "tokens": [self._key(entry.token) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [self._top(entry) for entry in entries],
            "text_offset": [entry.offset for entry in entries],
        }

    def _chat_logprob(self, index: int, entry: Logprobs) -> dict[str, Any]:
        first = index not in self._begun
        self._begun.add(index)
        top = [self._entry(token, value, first) for token, value in entry.top]
        return {**self._entry(entry.token, entry.logprob, first), "top_logprobs": top}

    def _entry(self, token: int, logprob: float, first: bool) -> dict[str, Any]:
        data = self.tokenizer.token_bytes(token, first=first)
        return {"token": written(data), "logprob": logprob, "bytes": list(data)}

    def _top(self, entry: Logprobs) -> dict[str, float]:
        found: dict[str, float] = {}
        for token, value in entry.top:
            found.setdefault(self._key(token), value)  # of two that are written alike, the likelier
        return found

    def _key(self, token: int) -> str:
        return written(self.tokenizer.token_bytes(token), "bytes:")
