"""Calls that are JSON objects, {"name": ..., "arguments": {...}}: read as they arrive, and as a grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator

from .lark import quoted, spaced
from .syntax import AnswerDelta, GrammarRules, ToolChoice

# The beginning of a call up to its arguments, in the order that models are trained on.
HEADER = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)', re.DOTALL)
MAX_HEADER = 1024  # characters; a name has at most 64


class Braces:
    """Follows the nesting of a JSON object, character by character.

    Attributes:
        depth: braces and brackets that are open.
    """

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = self._escaped = False

    def add(self, character: str) -> bool:
        """Add a character. Returns whether it is a brace or bracket outside of strings."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
            return False
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self.depth += 1
            return True
        elif character in "}]":
            self.depth -= 1
            return True
        return False


class JsonCalls:
    """Reads call objects, one after the other or as a list, up to the first character of something else.

    Attributes:
        calls: how many calls have begun.
        done: whether the calls have ended; `rest` is the text behind them.
    """

    def __init__(self, calls: int = 0) -> None:
        """calls: how many calls the answer has before these."""
        self.calls = calls
        self.done = False
        self.rest = ""
        self._in_list = False
        self._object = ""  # the text of the object that is being read
        self._braces = Braces()
        self._sent: int | None = None  # characters of `_object` that are sent; None before the arguments
        self._arguments_end: int | None = None

    def feed(self, text: str) -> Iterator[AnswerDelta]:
        """Yield what the text adds to the calls."""
        for at, character in enumerate(text):
            if self._braces.depth or character == "{":
                yield from self._read(character)
            elif character == "[" and not self._in_list:
                self._in_list = True
            elif self._in_list and character == "]":
                self.done, self.rest = True, text[at + 1 :]
                return
            elif not (character.isspace() or character in ",;"):
                self.done, self.rest = True, text[at:]
                return
        yield from self._send()

    def end(self) -> str:
        """Return the text of an object that is no call, or not yet one, at the end of the answer."""
        unread = self._object if self._sent is None else ""
        self._object = ""
        return unread

    def _read(self, character: str) -> Iterator[AnswerDelta]:
        self._object += character
        if not self._braces.add(character):
            return
        depth = self._braces.depth
        if character == "{" and depth == 2 and self._sent is None and len(self._object) <= MAX_HEADER:
            yield from self._begin()
        elif depth == 1 and self._sent is not None and self._arguments_end is None:
            self._arguments_end = len(self._object)
        elif depth == 0:
            yield from self._complete()
            self._object, self._sent, self._arguments_end = "", None, None

    def _begin(self) -> Iterator[AnswerDelta]:
        header = HEADER.match(self._object)
        if header is not None and header.end() == len(self._object) - 1:
            name = _decoded(header[1])
            if isinstance(name, str):
                self._sent = header.end()
                yield AnswerDelta(call=self.calls, name=name)
                self.calls += 1

    def _send(self) -> Iterator[AnswerDelta]:
        if self._sent is not None:
            end = len(self._object) if self._arguments_end is None else self._arguments_end
            if end > self._sent:
                yield AnswerDelta(call=self.calls - 1, arguments=self._object[self._sent : end])
                self._sent = end

    def _complete(self) -> Iterator[AnswerDelta]:
        """The object has ended. One in another order than HEADER's is sent as a whole; one that is no call is text."""
        if self._sent is not None:
            yield from self._send()
            return
        found = _decoded(self._object)
        if isinstance(found, dict) and isinstance(found.get("name"), str):
            arguments = found.get("arguments", found.get("parameters", {}))
            written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            yield AnswerDelta(call=self.calls, name=found["name"], arguments=written)
            self.calls += 1
        else:
            yield AnswerDelta(content=self._object)


class MarkedCalls:
    """Reads an answer whose calls follow a marker, anywhere in the text: <tool_call>{...}</tool_call>."""

    def __init__(self, begin: str, end: str = "") -> None:
        """Args:
        begin: the marker before calls.
        end: the marker behind them.
        """
        self._begin, self._end = begin, end
        self._held = ""  # text that may be the beginning of a marker, and white space that a call may follow
        self._calls: JsonCalls | None = None
        self._skipped = ""  # the end marker, where it may come next
        self._count = 0

    def feed(self, text: str) -> Iterator[AnswerDelta]:
        """Yield what the text adds."""
        while text:
            if self._calls is None:
                text = yield from self._read_text(text)
                continue
            yield from self._calls.feed(text)
            text = ""
            if self._calls.done:
                text, self._count = self._calls.rest, self._calls.calls
                self._calls = None
                self._skipped = self._end

    def end(self) -> Iterator[AnswerDelta]:
        """Yield what was held back."""
        if self._calls is not None:
            unread = self._calls.end()
            if unread:
                yield AnswerDelta(content=self._begin + unread)
        elif self._held and not (self._count and self._skipped.startswith(self._held.strip())):
            yield AnswerDelta(content=self._held)  # but no white space and no part of the end marker behind calls
        self._held = ""

    def _read_text(self, text: str) -> Generator[AnswerDelta, None, str]:
        """Yield text up to the next calls; return what follows their marker."""
        text, self._held = self._held + text, ""
        if self._skipped:
            bare = text.lstrip()
            if bare.startswith(self._skipped):
                text, self._skipped = bare[len(self._skipped) :], ""
            elif self._skipped.startswith(bare):
                self._held = text
                return ""
            else:
                self._skipped = ""
        at = text.find(self._begin)
        if at >= 0:
            if before := text[:at].rstrip():
                yield AnswerDelta(content=before)
            self._calls = JsonCalls(self._count)
            return text[at + len(self._begin) :]
        kept = held_back(text, self._begin)
        self._held = text[kept:]
        if kept:
            yield AnswerDelta(content=text[:kept])
        return ""


def held_back(text: str, marker: str) -> int:
    """Where the end of the text begins that may belong to a marker: its first letters, and white space before them."""
    cut = next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if text.endswith(marker[:n])), 0)
    return len(text[: len(text) - cut].rstrip())


def call_objects(choice: ToolChoice, rules: GrammarRules) -> str:
    """Add a rule for one call object of any of the tools; return its name."""
    name = quoted('"name"')
    return _objects(choice, rules, spaced(quoted("{"), name), "arguments")


def call_parameters(choice: ToolChoice, rules: GrammarRules, head: str) -> str:
    """Add a rule for one call object whose arguments are in "parameters"; return its name.

    Args:
        choice: which tools may be called.
        rules: the grammar.
        head: the rule for the beginning of the object, up to and with its first key, "name".
    """
    return _objects(choice, rules, head, "parameters")


def _objects(choice: ToolChoice, rules: GrammarRules, head: str, key: str) -> str:
    colon, comma, last = quoted(":"), quoted(","), quoted("}")
    objects = [
        spaced(head, colon, quoted(json.dumps(tool.name)), comma, quoted(json.dumps(key)), colon, schema, last)
        for tool, schema in ((tool, rules.schema(tool.parameters)) for tool in choice.tools)
    ]
    return rules.rule(" | ".join(rules.rule(one) for one in objects))


def call_list(choice: ToolChoice, rules: GrammarRules) -> str:
    """Add a rule for a list of call objects; return its name."""
    one = call_objects(choice, rules)
    more = f"(SPACE? {quoted(',')} SPACE? {one})*" if choice.parallel else ""
    return rules.rule(f"{quoted('[')} SPACE? {one} {more} SPACE? {quoted(']')}")


def marked_answer(choice: ToolChoice, rules: GrammarRules, begin: str, body: str, end: str = "") -> str:
    """Add the rule of an answer whose calls follow the marker `begin`, and return its name.

    Args:
        choice: which calls the answer may have.
        rules: the grammar.
        begin: the marker.
        body: a rule for what follows it.
        end: the marker behind the body, if there is one.
    """
    closed = f"SPACE? {body}" + (f" SPACE? {rules.marker(end)}" if end else "")
    repeated = choice.parallel and bool(end)
    if choice.required:
        call = rules.rule(f"{rules.marker(begin)} {closed}")
        return rules.rule(f"{call} (SPACE? {call})*" if repeated else call)
    call = rules.rule(f"{rules.up_to(begin)} {closed}")
    text = rules.any_text()
    return rules.rule(f"{call}* {text}" if repeated else f"{text} | {call} SPACE?")


def _decoded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
