"""Hermes, Qwen, SmolLM3 and Granite 4: <tool_call>{"name": ..., "arguments": {...}}</tool_call> for each call."""

from __future__ import annotations

from collections.abc import Sequence

from .json_calls import MarkedCalls, call_objects, marked_answer
from .syntax import AnswerReader, GrammarRules, ToolChoice

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesSyntax:
    """The syntax `hermes`."""

    name = "hermes"
    markers = (BEGIN, END)

    def matches(self, template: str) -> bool:
        """Whether a chat template asks for this syntax. Others write XML between the same tags."""
        return BEGIN in template and not any(other in template for other in ("<function=", "<arg_key>", f"{BEGIN}["))

    def reader(self, names: Sequence[str]) -> AnswerReader:
        """A reader of one answer."""
        return MarkedCalls(BEGIN, END)

    def rules(self, choice: ToolChoice, writer: GrammarRules) -> str:
        """The rule of an answer: a tag for each call."""
        return marked_answer(choice, writer, BEGIN, call_objects(choice, writer), END)
