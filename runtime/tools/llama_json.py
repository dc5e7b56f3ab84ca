"""Llama 3.1 and 3.2: the whole answer is {"name": ..., "parameters": {...}}; semicolons separate several calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .json_calls import JsonCalls, call_parameters
from .lark import quoted
from .syntax import AnswerDelta, AnswerReader, GrammarRules, ToolChoice

TAG = "<|python_tag|>"  # may precede calls
BEGINNINGS = ('{"name"', '{"type":"function"')  # of a call, without white space


class LlamaJsonSyntax:
    """The syntax `llama-json`."""

    name = "llama-json"
    markers = (TAG,)

    def matches(self, template: str) -> bool:
        """Whether a chat template asks for this syntax."""
        return '{"name": function name, "parameters":' in template or TAG in template

    def reader(self, names: Sequence[str]) -> AnswerReader:
        """A reader of one answer."""
        return _LeadingCalls()

    def rules(self, choice: ToolChoice, writer: GrammarRules) -> str:
        """The rule of an answer. It is a call if it begins like one."""
        head = writer.rule(r'/\s*\{\s*"name"/', lazy=True)
        call = call_parameters(choice, writer, head)
        more = f"(SPACE? {quoted(';')} {call})*" if choice.parallel else ""
        calls = writer.rule(f"{call} {more}")
        if choice.required:
            return calls
        text = writer.any_text(not_beginning=r'\s*\{\s*"name"')
        return writer.rule(f"{text} | {calls} | {writer.marker(TAG)} {calls}")


class _LeadingCalls:
    """Reads an answer that is text or calls, by its first characters."""

    def __init__(self) -> None:
        self._held = ""
        self._is_text = False
        self._calls: JsonCalls | None = None

    def feed(self, text: str) -> Iterator[AnswerDelta]:
        """Yield what the text adds."""
        if self._is_text:
            yield AnswerDelta(content=text)
        elif self._calls is not None:
            yield from self._read_calls(text)
        else:
            self._held += text
            compact = "".join(self._held.split()).removeprefix(TAG)
            if any(compact.startswith(beginning) for beginning in BEGINNINGS):
                self._calls = JsonCalls()
                held, self._held = self._held, ""
                yield from self._read_calls(held.strip().removeprefix(TAG) if TAG in held else held)
            elif not any(part.startswith(compact) for part in (*BEGINNINGS, TAG)):
                self._is_text = True
                text, self._held = self._held, ""
                yield AnswerDelta(content=text)

    def end(self) -> Iterator[AnswerDelta]:
        """Yield what was held back."""
        unread = self._held if self._calls is None else self._calls.end()
        if unread:
            yield AnswerDelta(content=unread)
        self._held = ""

    def _read_calls(self, text: str) -> Iterator[AnswerDelta]:
        if self._calls is not None:
            yield from self._calls.feed(text)
            if self._calls.done:
                self._is_text = True
                if self._calls.rest:
                    yield AnswerDelta(content=self._calls.rest)
