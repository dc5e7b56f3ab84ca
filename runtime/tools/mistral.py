"""Mistral: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], or [TOOL_CALLS]NAME[ARGS]{...} for each call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .json_calls import Braces, MarkedCalls, call_list, held_back, marked_answer
from .lark import quoted
from .syntax import AnswerDelta, AnswerReader, GrammarRules, ToolChoice

BEGIN, ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"


class MistralSyntax:
    """The syntax `mistral`: one list of calls."""

    name = "mistral"
    markers = (BEGIN,)

    def matches(self, template: str) -> bool:
        """Whether a chat template asks for this syntax."""
        return BEGIN in template and ARGUMENTS not in template

    def reader(self, names: Sequence[str]) -> AnswerReader:
        """A reader of one answer."""
        return MarkedCalls(BEGIN)

    def rules(self, choice: ToolChoice, writer: GrammarRules) -> str:
        """The rule of an answer: a marker and a list of calls."""
        return marked_answer(choice, writer, BEGIN, call_list(choice, writer))


class MistralArgsSyntax:
    """The syntax `mistral-args`: a name and its arguments for each call."""

    name = "mistral-args"
    markers = (BEGIN, ARGUMENTS)

    def matches(self, template: str) -> bool:
        """Whether a chat template asks for this syntax."""
        return BEGIN in template and ARGUMENTS in template

    def reader(self, names: Sequence[str]) -> AnswerReader:
        """A reader of one answer."""
        return _NamedCalls()

    def rules(self, choice: ToolChoice, writer: GrammarRules) -> str:
        """The rule of an answer: markers around the name, then the arguments."""
        arguments = writer.marker(ARGUMENTS)
        calls = [f"{quoted(tool.name)} {arguments} {writer.schema(tool.parameters)}" for tool in choice.tools]
        body = writer.rule(" | ".join(writer.rule(call) for call in calls))
        begin = writer.marker(BEGIN)
        more = f"({begin} {body})*" if choice.parallel else ""
        if choice.required:
            return writer.rule(f"{begin} {body} {more}")
        return writer.rule(f"{writer.any_text()} | {writer.up_to(BEGIN)} {body} {more}")


class _NamedCalls:
    """Reads `[TOOL_CALLS]NAME[ARGS]{...}`, any number of them."""

    def __init__(self) -> None:
        self._held = ""
        self._count = 0
        self._in_name = False
        self._braces: Braces | None = None  # while arguments are read

    def feed(self, text: str) -> Iterator[AnswerDelta]:
        """Yield what the text adds."""
        text, self._held = self._held + text, ""
        while text:
            if self._braces is not None:
                size = self._arguments_size(self._braces, text)
                yield AnswerDelta(call=self._count - 1, arguments=text[:size])
                text = text[size:]
            elif self._in_name:
                name, found, text_behind = text.partition(ARGUMENTS)
                if not found:
                    self._held = text
                    return
                # an id may stand between: NAME[CALL_ID]...[ARGS]
                yield AnswerDelta(call=self._count, name=name.partition("[")[0].strip())
                self._count, self._in_name, self._braces, text = self._count + 1, False, Braces(), text_behind
            else:
                before, found, text_behind = text.partition(BEGIN)
                kept = len(before.rstrip()) if found else held_back(text, BEGIN)
                if kept:
                    yield AnswerDelta(content=text[:kept])
                self._in_name = bool(found)
                if not found:
                    self._held = text[kept:]
                    return
                text = text_behind

    def end(self) -> Iterator[AnswerDelta]:
        """Yield what was held back."""
        unread = (BEGIN if self._in_name else "") + self._held
        if unread.strip() or (unread and not self._count):
            yield AnswerDelta(content=unread)
        self._held, self._in_name = "", False

    def _arguments_size(self, braces: Braces, text: str) -> int:
        """How much of the text belongs to the arguments."""
        for at, character in enumerate(text):
            if braces.add(character) and braces.depth <= 0:
                self._braces = None
                return at + 1
        return len(text)
