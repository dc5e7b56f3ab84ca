"""Writes the grammar of an answer with tool calls, in the Lark dialect of llguidance.

Free text and calls are parts of one grammar, so the constraint begins with the first token of a call. Lexemes are
greedy and never given back, except lazy ones, which end at their first match: a lazy lexeme ends the free text with the
marker of a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

SPACE = "SPACE?"
# Between JSON tokens: a line break and its indentation, or a space, as in runtime/grammar.py.
JSON_WHITESPACE = r"\n? {0,16}"
OPTIONS = "x-guidance"  # the keyword of a schema for the grammar library


class GrammarWriter:
    """The rules of one grammar."""

    def __init__(self, token_ids: Mapping[str, int], excluded: str = "") -> None:
        """Args:
        token_ids: the markers that are special tokens, which no text lexeme matches.
        excluded: a regular expression that no `any_text` begins with.
        """
        self._ids = token_ids
        self._excluded = excluded
        self._names = 0
        self._rules: list[str] = [r"SPACE: /[ \n]{1,16}/", r"TEXT: /(.|\n)*/"]

    def text(self, start: str) -> str:
        """The grammar, in which the answer is the rule `start`."""
        return "\n".join(["%llguidance {}", f"start: {start}", *self._rules]) + "\n"

    def rule(self, body: str, *, lazy: bool = False, name: str = "") -> str:
        """Add a rule and return its name, a new one or one of `new_name`."""
        name = name or self.new_name()
        self._rules.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        return name

    def new_name(self) -> str:
        """A name for a rule that refers to itself."""
        self._names += 1
        return f"r{self._names}"

    def marker(self, text: str) -> str:
        """A rule for a text that may be a special token. The model may also write it letter by letter."""
        token = self._ids.get(text)
        return quoted(text) if token is None else self.rule(f"<[{token}]> | {quoted(text)}")

    def leading(self, text: str) -> str:
        """A rule for a marker at the beginning of an answer that may as well be any text."""
        written = self.rule(rf"/\s*{re.escape(text)}/", lazy=True)
        token = self._ids.get(text)
        return written if token is None else self.rule(f"SPACE? <[{token}]> | {written}")

    def up_to(self, text: str) -> str:
        """A rule for any text up to a marker, and the marker."""
        written = self.rule(f"TEXT {quoted(text)}", lazy=True)
        token = self._ids.get(text)
        return written if token is None else self.rule(f"TEXT <[{token}]> | {written}")

    def any_text(self, *, not_beginning: str = "") -> str:
        """A rule for any text, which does not begin with the given regular expression."""
        not_beginning = "|".join(filter(None, (not_beginning, self._excluded)))
        if not not_beginning:
            return self.rule("TEXT")
        name = self.new_name().upper()
        self._rules.append(rf"{name}: /(.|\n)*/ & ~/({not_beginning})(.|\n)*/")
        return self.rule(name)

    def schema(self, schema: Mapping[str, Any]) -> str:
        """A rule for JSON of a schema."""
        options = {"whitespace_pattern": JSON_WHITESPACE}
        return self.rule("%json " + json.dumps({**schema, OPTIONS: options}, allow_nan=False))


def quoted(text: str) -> str:
    """A text as a literal of the grammar."""
    return json.dumps(text)


def spaced(*parts: str) -> str:
    """The parts in order, with optional white space between them."""
    return f" {SPACE} ".join(parts)
