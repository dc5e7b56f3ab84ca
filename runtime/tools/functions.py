"""Python functions as tools: their JSON schemas from signatures and docstrings, and the calls that an answer has.

The schemas are those of transformers' get_json_schema, without the description of what a function returns.
"""

from __future__ import annotations

import inspect
import json
import re
import secrets
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..errors import UserError, shown
from .syntax import AnswerReader, Tool

TYPES: Mapping[Any, str] = {
    **{int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"},
    **{list: "array", tuple: "array", dict: "object"},
}
SCALARS = (int, float, str, bool, type(None))
CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.DOTALL | re.IGNORECASE)
SECTION = re.compile(r"^[ \t]*(Args|Arguments|Returns|Raises|Yields|Example|Examples|Note):[ \t]*$", re.MULTILINE)
ENTRY = re.compile(r"^([ \t]*)(\w+)(?:[ \t]*\([^()\n]*\))?:[ \t]*(.*)$")


@dataclass(frozen=True)
class CalledFunction:
    """A call that the model wants to make.

    Attributes:
        name: of the function.
        arguments: by name; None if the answer ended inside of them.
        text: the arguments as the model wrote them.
        id: of the call, for the message with its result.
        function: the Python function, if it was given as a tool.
    """

    name: str
    arguments: Mapping[str, Any] | None
    text: str
    id: str
    function: Callable[..., Any] | None = None

    def run(self) -> Any:
        """Call the function with the arguments, and return what it returns.

        Raises UserError if the arguments are not complete, or no Python function has this name.
        """
        if self.arguments is None:
            raise UserError(f"the arguments of {self.name} end too early: {shown(self.text)}. Raise max_new_tokens")
        if self.function is None:
            raise UserError(f"the model calls {self.name!r}, which is no Python function here. Give it in tools")
        return self.function(**self.arguments)

    def message(self, result: Any) -> dict[str, Any]:
        """Return the message with the result, to append behind the answer: text as it is, other values as JSON."""
        content = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        return {"role": "tool", "tool_call_id": self.id, "name": self.name, "content": content}

    def as_dict(self) -> dict[str, Any]:
        """Return the call as chat templates expect it in the answer's message."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments or {}}}


class CallCollector:
    """Reads one answer: its text without calls and thoughts, and the calls at its end."""

    def __init__(self, reader: AnswerReader, functions: Mapping[str, Callable[..., Any]]) -> None:
        """Take the reader of the answer, and the Python functions by name."""
        self._reader, self._functions = reader, functions
        self._calls: dict[int, tuple[str, str]] = {}
        self.thoughts = ""

    def push(self, text: str, last: bool) -> str:
        """Return the part for the user of the next piece of the text; `last`: the answer ends with it."""
        content = ""
        for delta in [*self._reader.feed(text), *(self._reader.end() if last else ())]:
            content += delta.content
            self.thoughts += delta.reasoning
            if delta.call is not None:
                name, arguments = self._calls.get(delta.call, ("", ""))
                self._calls[delta.call] = (name + delta.name, arguments + delta.arguments)
        return content

    def calls(self) -> tuple[CalledFunction, ...]:
        """Return the calls so far."""
        return tuple(
            CalledFunction(name, _arguments(text), text, secrets.token_hex(5)[:9], self._functions.get(name))
            for _, (name, text) in sorted(self._calls.items())
        )


def read_tools(
    given: Sequence[Callable[..., Any] | Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[Tool], dict[str, Callable[..., Any]]]:
    """Return tools as chat templates expect them, as `Tool`, and the Python functions by name.

    Args:
        given: functions with type hints and a docstring, or JSON schemas as OpenAI's API takes them.

    Raises:
        UserError: a function cannot be described, or something else is given.
    """
    described, functions = [], {}
    for one in given:
        if isinstance(one, Mapping):
            described.append(dict(one))
        elif callable(one):
            described.append(function_schema(one))
            functions[described[-1]["function"]["name"]] = one
        else:
            raise UserError(f"tools holds {shown(one)}; needed: Python functions, or JSON schemas of functions")
    tools = []
    for tool in described:
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UserError(f'tools holds {shown(tool)}; needed: {{"type": "function", "function": {{"name": ...}}}}')
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        tools.append(Tool(function["name"], parameters, str(function.get("description", ""))))
    return described, tools, functions


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the JSON schema of a function for chat templates.

    Each argument has a type hint and a line in the section "Args:" of the docstring, which may end in
    `(choices: ["a", "b"])`.

    Raises:
        UserError: a type hint or a description is missing, or a type has no JSON schema.
    """
    name = getattr(function, "__name__", type(function).__name__)
    description, documented = _docstring(inspect.getdoc(function) or "")
    if not description:
        raise UserError(f"the tool {name} has no docstring, from which the model learns what it does. Write one")
    hints = typing.get_type_hints(function)
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "cls") and parameter.name not in hints:
            continue
        if parameter.name not in hints:
            raise UserError(f"the argument {parameter.name} of the tool {name} has no type hint. Write one")
        if parameter.name not in documented:
            raise UserError(
                f"the docstring of the tool {name} does not describe {parameter.name}. Add a section\n"
                f"    Args:\n        {parameter.name}: what it is"
            )
        text = documented[parameter.name]
        schema = _schema(hints[parameter.name], f"{parameter.name} of the tool {name}")
        if choices := CHOICES.search(text):
            schema["enum"], text = _choices(choices[1], name), text[: choices.start()].strip()
        properties[parameter.name] = {**schema, "description": text}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, **({"required": required} if required else {})}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _schema(hint: Any, what: str) -> dict[str, Any]:
    """Return the JSON schema of a type hint; `what` names it in an error."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _one_of([member.value for member in hint], what)
    if origin is None and hint in TYPES:
        return {"type": TYPES[hint]}
    if origin is typing.Literal:
        return _one_of(list(arguments), what)
    if origin in (typing.Union, types.UnionType):
        found = [_schema(one, what) for one in arguments if one is not type(None)]
        plain = all(one.keys() == {"type"} and isinstance(one["type"], str) for one in found)
        names = sorted({one["type"] for one in found}) if plain else []
        several: dict[str, Any] = {"type": names[0] if len(names) == 1 else names} if plain else {"anyOf": found}
        schema = found[0] if len(found) == 1 else several
        return {**schema, "nullable": True} if type(None) in arguments else schema
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], what)}
    if origin is tuple and ... not in arguments and len(arguments) > 1:
        return {"type": "array", "prefixItems": [_schema(one, what) for one in arguments]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], what)}
    raise UserError(
        f"the type hint {hint!r} of {what} has no JSON schema. Use int, float, str, bool, list, dict, Literal, Enum or "
        "Optional, or give the tool as a JSON schema"
    )


def _one_of(values: list[Any], what: str) -> dict[str, Any]:
    if not values or any(type(value) not in SCALARS for value in values):
        raise UserError(f"the values {shown(values)} of {what} cannot be written as JSON. Use texts or numbers")
    names = list(dict.fromkeys(TYPES[type(value)] for value in values))
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the description of a Google docstring, and the descriptions of its arguments."""
    sections = list(SECTION.finditer(text))
    description = text[: sections[0].start() if sections else None].strip()
    documented: dict[str, str] = {}
    for index, section in enumerate(sections):
        if section[1] not in ("Args", "Arguments"):
            continue
        end = sections[index + 1].start() if index + 1 < len(sections) else None
        indent, name = "", ""
        for line in text[section.end() : end].splitlines():
            entry = ENTRY.match(line)
            if entry and (not name or len(entry[1]) <= len(indent)):
                indent, name = entry[1], entry[2]
                documented[name] = entry[3].strip()
            elif name and line.strip():
                documented[name] = f"{documented[name]} {line.strip()}".strip()
    return description, documented


def _choices(text: str, name: str) -> list[str]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"the choices {text} of the tool {name} are no JSON list. Write ['a', 'b'] with \"") from error
    return [value.strip() for value in values]


def _arguments(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
