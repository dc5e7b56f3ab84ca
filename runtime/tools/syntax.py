"""What every syntax of tool calls has: its name, a reader of answers, and a grammar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: letters, digits, _ and -.
        parameters: JSON schema of its arguments, an object.
        description: for the model.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: NO_PARAMETERS)
    description: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The tool as chat templates expect it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


class AnswerDelta(NamedTuple):
    """What a part of the answer's text adds.

    Attributes:
        content: text for the user.
        reasoning: text of the model's thoughts.
        call: index of the tool call that `name` and `arguments` belong to; None without a call.
        name: of the called function, in the first delta of a call.
        arguments: a part of the call's arguments, as JSON.
    """

    content: str = ""
    reasoning: str = ""
    call: int | None = None
    name: str = ""
    arguments: str = ""


class AnswerReader(Protocol):
    """Reads an answer that arrives in pieces."""

    def feed(self, text: str) -> Iterator[AnswerDelta]:
        """Yield what the next piece of the text adds."""

    def end(self) -> Iterator[AnswerDelta]:
        """Yield what was held back, at the end of the text."""


@dataclass(frozen=True)
class ToolChoice:
    """Which calls an answer may have.

    Attributes:
        tools: the functions that may be called, at least one.
        required: whether the answer consists of calls; otherwise it may be text, with calls or without.
        parallel: whether it may have several calls.
    """

    tools: Sequence[Tool]
    required: bool = False
    parallel: bool = True


class ToolSyntax(Protocol):
    """A syntax of tool calls."""

    @property
    def name(self) -> str:
        """Its name, for --tool-parser."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that may be special tokens. The text of an answer must show them."""

    def matches(self, template: str) -> bool:
        """Whether a chat template asks for this syntax."""

    def reader(self, names: Sequence[str]) -> AnswerReader:
        """A reader of one answer. names: of the tools."""

    def rules(self, choice: ToolChoice, writer: GrammarRules) -> str:
        """Add the rules of the answer to a grammar. Returns the name of the rule for the whole answer."""


class GrammarRules(Protocol):
    """What a syntax needs of lark.py's GrammarWriter."""

    def rule(self, body: str, *, lazy: bool = False, name: str = "") -> str:
        """Add a rule and return its name, a new one or one of `new_name`."""

    def new_name(self) -> str:
        """A name for a rule that refers to itself."""

    def marker(self, text: str) -> str:
        """A rule for a text that may be a special token."""

    def leading(self, text: str) -> str:
        """A rule for a marker at the beginning of an answer that may as well be any text."""

    def up_to(self, text: str) -> str:
        """A rule for any text up to a marker, and the marker."""

    def any_text(self, *, not_beginning: str = "") -> str:
        """A rule for any text, which does not begin with the given regular expression."""

    def schema(self, schema: Mapping[str, Any]) -> str:
        """A rule for JSON of a schema."""
