"""Decode JSON into frozen dataclasses. The types of the fields are the schema.

Unknown fields, missing fields and values of another type are errors.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ..errors import UserError

T = TypeVar("T")
LARGEST_INTEGER = (1 << 63) - 1  # of int64, which native code takes


def decode(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from a JSON object.

    Supports str, int, float, bool, X | None, tuple[X, ...], dict[str, X] and nested dataclasses. A field with a default
    may be absent. Raises UserError with the field, the value found and the value needed.

    Args:
        where: the path of the object in the file, such as "cache.", for messages
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(f"unknown field {where}{unknown[0][:60]} (value {_short(values[unknown[0]])})")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _value(hints[name], values[name], where + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"field {where}{name} is missing; needed: {_describe(hints[name])}")
    return cls(**arguments)


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _value(arguments[1], item, f"{where}.{key[:60]}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return decode(kind, value, where + ".")  # type: ignore[arg-type]
    if kind is Any or (kind in (str, bool) and isinstance(value, kind)):
        return value
    if kind in (int, float) and isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise UserError(f"field {where} is {_short(value)}; needed: at most {LARGEST_INTEGER}")
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise UserError(f"field {where} is {_short(value)}; needed: {_describe(kind)}")


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
