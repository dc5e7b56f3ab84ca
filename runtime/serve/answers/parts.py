"""From the text of a chat's answer to its message and its deltas: content, thoughts, tool calls."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable
from typing import Any

from ...tools.reasoning import PlainText
from ...tools.syntax import AnswerDelta, AnswerReader

ID_LETTERS, ID_LENGTH = string.ascii_letters + string.digits, 9  # Mistral's templates require this form


class AnswerParts:
    """The parts of one answer, from the texts of its events.

    Attributes:
        calls: how many tool calls have begun.
    """

    def __init__(self, reader: AnswerReader | None) -> None:
        """reader: separates the parts; None for an answer that is text only."""
        self.calls = 0
        self._reader = reader or PlainText()

    def delta(self, text: str, *, last: bool) -> dict[str, Any]:
        """What a further text adds, as OpenAI's `delta`; empty if it adds nothing yet.

        Args:
            text: the text.
            last: whether it ends the answer.
        """
        deltas = list(self._reader.feed(text)) if text else []
        return self._joined([*deltas, *self._reader.end()] if last else deltas)

    def message(self, text: str) -> dict[str, Any]:
        """The message of a whole answer."""
        delta = self.delta(text, last=True)
        calls = delta.get("tool_calls", [])
        for call in calls:
            del call["index"]
        content = delta.get("content", "")
        message = {"role": "assistant", "content": None if calls and not content else content, "refusal": None}
        if "reasoning_content" in delta:
            message["reasoning_content"] = delta["reasoning_content"]
        return {**message, "tool_calls": calls} if calls else message

    def _joined(self, deltas: Iterable[AnswerDelta]) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        calls: dict[int, dict[str, Any]] = {}
        for delta in deltas:
            for name, text in (("content", delta.content), ("reasoning_content", delta.reasoning)):
                if text:
                    joined[name] = joined.get(name, "") + text
            if delta.call is not None:
                if delta.call not in calls:
                    calls[delta.call] = {"index": delta.call, "function": {"arguments": ""}}
                if delta.call >= self.calls:
                    self.calls = delta.call + 1
                    function = {"name": delta.name, "arguments": ""}
                    calls[delta.call] |= {"id": call_id(), "type": "function", "function": function}
                calls[delta.call]["function"]["arguments"] += delta.arguments
        return {**joined, "tool_calls": list(calls.values())} if calls else joined


def call_id() -> str:
    """A new id of a tool call."""
    return "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH))
