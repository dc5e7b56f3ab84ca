"""SmolLM2: <tool_call>[{"name": ..., "arguments": {...}}, ...]</tool_call>, one list of calls."""

from __future__ import annotations

from collections.abc import Sequence

from .hermes import BEGIN, END
from .json_calls import MarkedCalls, call_list, marked_answer
from .syntax import AnswerReader, GrammarRules, ToolChoice


class SmolLMSyntax:
    """The syntax `smollm`."""

    name = "smollm"
    markers = (BEGIN, END)

    def matches(self, template: str) -> bool:
        """Whether a chat template asks for this syntax."""
        return f"{BEGIN}[" in template

    def reader(self, names: Sequence[str]) -> AnswerReader:
        """A reader of one answer."""
        return MarkedCalls(BEGIN, END)

    def rules(self, choice: ToolChoice, writer: GrammarRules) -> str:
        """The rule of an answer: a tag with a list of calls."""
        return marked_answer(choice, writer, BEGIN, call_list(choice, writer), END)
