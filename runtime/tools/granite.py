"""Granite 3: <|tool_call|>[{"name": ..., "arguments": {...}}, ...] at the end of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from .json_calls import MarkedCalls, call_list, marked_answer
from .syntax import AnswerReader, GrammarRules, ToolChoice

BEGIN = "<|tool_call|>"


class GraniteSyntax:
    """The syntax `granite`."""

    name = "granite"
    markers = (BEGIN,)

    def matches(self, template: str) -> bool:
        """Whether a chat template asks for this syntax."""
        return BEGIN in template

    def reader(self, names: Sequence[str]) -> AnswerReader:
        """A reader of one answer."""
        return MarkedCalls(BEGIN)

    def rules(self, choice: ToolChoice, writer: GrammarRules) -> str:
        """The rule of an answer: a marker and a list of calls."""
        return marked_answer(choice, writer, BEGIN, call_list(choice, writer))
