"""Decode JSON into frozen dataclasses. The types of the fields are the schema.

Unknown fields, missing fields and values of another type are errors.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..errors import UserError

T = TypeVar("T")
LARGEST_INTEGER = (1 << 63) - 1  # of int64, which native code takes
Decoder = Callable[[Any], Any]


class _MisfitError(Exception):
    """A value that does not fit the schema.

    Attributes:
        kind: "field" or "unknown field".
        path: the field, seen from the object that is being decoded; each level puts its own part before it.
        text: what is wrong with it.
    """

    def __init__(self, kind: str, path: str, text: str) -> None:
        self.kind, self.path, self.text = kind, path, text


def decode(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from a JSON object.

    Supports str, int, float, bool, X | None, tuple[X, ...], dict[str, X] and nested dataclasses. A field with a default
    may be absent. Raises UserError with the field, the value found and the value needed.

    Args:
        where: the path of the object in the file, such as "cache.", for messages
    """
    try:
        found: T = _object_decoder(cls)(values)  # type: ignore[arg-type]
    except _MisfitError as error:
        raise UserError(f"{error.kind} {where}{error.path} {error.text}") from None
    return found


@functools.cache
def _object_decoder(cls: type[Any]) -> Decoder:
    """Return the decoder of a dataclass. It is made once: looking types up takes longer than decoding with them."""
    hints = typing.get_type_hints(cls)
    decoders = {field.name: _decoder(hints[field.name]) for field in dataclasses.fields(cls)}
    required = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]

    def decode_object(values: Mapping[str, Any]) -> Any:
        arguments = {}
        name = ""
        try:
            for name, value in values.items():
                decoder = decoders.get(name)
                if decoder is None:
                    raise _MisfitError("unknown field", "", f"(value {_short(value)})")
                arguments[name] = decoder(value)
        except _MisfitError as error:
            error.path = name[:60] + error.path
            raise
        for name in required:
            if name not in arguments:
                raise _MisfitError("field", name, f"is missing; needed: {_describe(hints[name])}")
        return cls(**arguments)

    return decode_object


@functools.cache
def _decoder(kind: Any) -> Decoder:
    """Return the function that checks a JSON value against a type and converts it. It raises _MisfitError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = _decoder(next(a for a in arguments if a is not type(None)))
        return (lambda value: None if value is None else inner(value)) if type(None) in arguments else inner
    if origin is tuple:
        return _list_decoder(kind, _decoder(arguments[0]))
    if origin is dict:
        return _dict_decoder(kind, _decoder(arguments[1]))
    if dataclasses.is_dataclass(kind):
        return _nested_decoder(kind, _object_decoder(kind))  # type: ignore[arg-type]
    return (lambda value: value) if kind is Any else _scalar_decoder(kind)


def _list_decoder(kind: Any, item: Decoder) -> Decoder:
    def decode_list(values: Any) -> tuple[Any, ...]:
        if not isinstance(values, list):
            raise _wrong(kind, values)
        found: list[Any] = []
        try:
            for value in values:
                found.append(item(value))
        except _MisfitError as error:
            error.path = f"[{len(found)}]{error.path}"
            raise
        return tuple(found)

    return decode_list


def _dict_decoder(kind: Any, item: Decoder) -> Decoder:
    def decode_dict(values: Any) -> dict[str, Any]:
        if not isinstance(values, dict):
            raise _wrong(kind, values)
        found = {}
        key = ""
        try:
            for key, value in values.items():
                found[key] = item(value)
        except _MisfitError as error:
            error.path = f".{key[:60]}{error.path}"
            raise
        return found

    return decode_dict


def _nested_decoder(kind: Any, decode_object: Decoder) -> Decoder:
    def decode_nested(values: Any) -> Any:
        if not isinstance(values, dict):
            raise _wrong(kind, values)
        try:
            return decode_object(values)
        except _MisfitError as error:
            error.path = f".{error.path}"
            raise

    return decode_nested


def _scalar_decoder(kind: Any) -> Decoder:
    def decode_scalar(value: Any) -> Any:
        if kind in (str, bool):
            if isinstance(value, kind):
                return value
        elif isinstance(value, int):
            if abs(value) > LARGEST_INTEGER:
                raise _MisfitError("field", "", f"is {_short(value)}; needed: at most {LARGEST_INTEGER}")
            if not isinstance(value, bool):
                return kind(value)
        elif kind is float and isinstance(value, float):
            return value
        raise _wrong(kind, value)

    return decode_scalar


def _wrong(kind: Any, value: Any) -> _MisfitError:
    return _MisfitError("field", "", f"is {_short(value)}; needed: {_describe(kind)}")


def _describe(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    if kind in words:
        return words[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _describe(a) for a in arguments)
    return "a list" if origin is tuple else "an object"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
