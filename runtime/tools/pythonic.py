"""Llama 3.2 and 4, pythonic: the whole answer is a list of Python calls, [f(a=1, b="x"), g()]."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from keyword import iskeyword
from typing import Any

from ..errors import UserError, shown
from .lark import quoted
from .syntax import AnswerDelta, AnswerReader, GrammarRules, Tool, ToolChoice

MAX_CALL = 1 << 16  # characters of one call; more is text
MAX_NAME = 256  # characters that decide whether an answer is a list of calls
# Python literals, as rules of the grammar
STRING = r'/"(\\.|[^"\\\n])*"|\'(\\.|[^\'\\\n])*\'/'
INTEGER, NUMBER = r"/-?(0|[1-9][0-9]{0,18})/", r"/-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?/"
BOOLEAN = '"True" | "False"'


class PythonicSyntax:
    """The syntax `pythonic`."""

    name = "pythonic"
    markers: tuple[str, ...] = ()

    def matches(self, template: str) -> bool:
        """Whether a chat template asks for this syntax."""
        return "[func_name1(" in template

    def reader(self, names: Sequence[str]) -> AnswerReader:
        """A reader of one answer."""
        return _LeadingList(names)

    def rules(self, choice: ToolChoice, writer: GrammarRules) -> str:
        """The rule of an answer. It is a list of calls if it begins like one."""
        for tool in choice.tools:
            _check_names(tool)
        literals = _Literals(writer)
        names = "|".join(re.escape(tool.name) for tool in choice.tools)
        first, others = [], []
        for tool in choice.tools:
            rest = f"{literals.arguments(tool)} {quoted(')')}"
            head = writer.rule(rf"/\s*\[\s*{re.escape(tool.name)}\(/", lazy=True)
            first.append(writer.rule(f"{head} {rest}"))
            others.append(writer.rule(f"{quoted(tool.name + '(')} {rest}"))
        call = writer.rule(" | ".join(others))
        more = f"({quoted(',')} SPACE? {call})*" if choice.parallel else ""
        calls = writer.rule(f"({' | '.join(first)}) {more} {quoted(']')}")
        if choice.required:
            return calls
        text = writer.any_text(not_beginning=rf"\s*\[\s*({names})\(")
        return writer.rule(f"{calls} | {text}")


def _check_names(tool: Tool) -> None:
    for name in (tool.name, *tool.parameters.get("properties", {})):
        if not all(part.isidentifier() and not iskeyword(part) for part in name.split(".")):
            raise UserError(
                f"{shown(name)} is no name in Python, and this model writes calls as Python. Use letters, digits and _"
            )


class _Literals:
    """Rules for Python literals that fit a JSON schema as far as types and enumerations go."""

    def __init__(self, rules: GrammarRules) -> None:
        self._rules = rules
        self._any = rules.new_name()
        self._string = rules.rule(STRING)
        self._kinds = {"string": self._string, "integer": rules.rule(INTEGER), "number": rules.rule(NUMBER)}
        self._kinds |= {"boolean": rules.rule(BOOLEAN), "object": self._dictionary(), "null": quoted("None")}
        scalars = " | ".join(self._kinds[kind] for kind in ("string", "number", "boolean", "null", "object"))
        rules.rule(f"{scalars} | {self._list(self._any)}", name=self._any)

    def arguments(self, tool: Tool) -> str:
        """A rule for the keyword arguments of a call, in the order of the schema."""
        required = set(tool.parameters.get("required", ()))
        # Rules for the arguments from each one on: if an argument precedes, and if none does.
        behind = alone = quoted("")
        for name, schema in reversed(list(tool.parameters.get("properties", {}).items())):
            item = f"{quoted(name + '=')} {self._value(schema)} {behind}"
            with_comma, first = f"{quoted(',')} SPACE? {item}", item
            if name not in required:
                with_comma, first = f"{with_comma} | {behind}", f"{first} | {alone}"
            behind, alone = self._rules.rule(with_comma), self._rules.rule(first)
        return alone

    def _value(self, schema: Any) -> str:
        if not isinstance(schema, Mapping):
            return self._any
        values = schema.get("enum")
        if isinstance(values, list) and values:
            written = {text for value in values for text in (repr(value), *_double_quoted(value))}
            return self._rules.rule(" | ".join(map(quoted, sorted(written))))
        if schema.get("type") == "array":
            return self._list(self._value(schema.get("items")))
        kind = schema.get("type")
        return self._kinds.get(kind, self._any) if isinstance(kind, str) else self._any

    def _list(self, item: str) -> str:
        more = f"({quoted(',')} SPACE? {item})*"
        return self._rules.rule(f"{quoted('[')} ({item} {more})? {quoted(']')}")

    def _dictionary(self) -> str:
        entry = f"{self._string} {quoted(':')} SPACE? {self._any}"
        more = f"({quoted(',')} SPACE? {entry})*"
        return self._rules.rule(f"{quoted('{')} ({entry} {more})? {quoted('}')}")


def _double_quoted(value: object) -> tuple[str, ...]:
    return (json.dumps(value, ensure_ascii=False),) if isinstance(value, str) else ()


class _LeadingList:
    """Reads an answer that is text or a list of calls, by its first characters. Sends each call when it is complete."""

    def __init__(self, names: Sequence[str]) -> None:
        self._beginnings = tuple(f"[{name}(" for name in names)
        self._held = ""
        self._is_text = self._is_list = False
        self._scanned = self._begin = 0  # of _held: what has been read, and where the next call begins
        self._depth = 0
        self._quote = ""
        self._calls = 0

    def feed(self, text: str) -> Iterator[AnswerDelta]:
        """Yield what the text adds."""
        self._held += text
        if not (self._is_text or self._is_list):
            compact = "".join(self._held[:MAX_NAME].split())
            self._is_list = compact.startswith(self._beginnings)
            self._is_text = not self._is_list and not any(start.startswith(compact) for start in self._beginnings)
            self._scanned = self._begin = len(self._held) - len(self._held.lstrip()) + 1 if self._is_list else 0
        if self._is_list:
            yield from self._read()
        if self._is_text and self._held:
            yield AnswerDelta(content=self._held)
            self._held = ""

    def end(self) -> Iterator[AnswerDelta]:
        """Yield what was held back: text, or a call that is not complete."""
        unread = self._held[self._begin :] if self._calls else self._held
        if unread.strip() or (unread and not self._calls):
            yield AnswerDelta(content=unread)
        self._held = ""

    def _read(self) -> Iterator[AnswerDelta]:
        while self._scanned < len(self._held):
            character = self._held[self._scanned]
            self._scanned += 1
            if self._quote:
                if character == "\\":
                    if self._scanned == len(self._held):
                        self._scanned -= 1
                        return
                    self._scanned += 1
                elif character == self._quote:
                    self._quote = ""
            elif character in "\"'":
                self._quote = character
            elif character in "([{":
                self._depth += 1
            elif character in ")]}":
                self._depth -= 1
                if self._depth == 0:
                    call = parsed_call(self._held[self._begin : self._scanned].lstrip(" ,\n"))
                    if call is None:
                        break
                    yield AnswerDelta(call=self._calls, name=call[0], arguments=call[1])
                    self._calls, self._begin = self._calls + 1, self._scanned
                elif self._depth < 0:
                    self._held, self._is_list, self._is_text = self._held[self._scanned :].lstrip(), False, True
                    return
        else:
            return
        self._held = self._held[self._begin :] if self._calls else self._held
        self._is_list, self._is_text = False, True


def parsed_call(text: str) -> tuple[str, str] | None:
    """Return the function's name and its arguments as JSON; None if the text is no call with literal arguments."""
    if len(text) > MAX_CALL:
        return None
    try:
        tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args or any(keyword.arg is None for keyword in tree.keywords):
            return None
        arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in tree.keywords}
        return ast.unparse(tree.func), json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
