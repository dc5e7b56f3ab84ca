"""Reads protobuf's wire format strictly, by the messages of schema.py, with limits.

protobuf's own parser accepts what this one refuses: a field with the wire type of another kind, a second value of a
field that holds one, numbers in more bytes than they need, text that is not UTF-8.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from .schema import MESSAGES

DEEPEST = 40  # messages within one another
MOST_FIELDS = 1_000_000
LONGEST_TEXT = 10_000  # bytes
WIRE_TYPES = {"int": 0, "double": 1, "float": 5}  # the other kinds: 2
FIXED = {"double": "<d", "float": "<f"}


class MalformedError(ValueError):
    """The bytes are no message, or exceed a limit. The text continues "<path>: "."""


class Item(NamedTuple):
    """One field of a message, or one of its values if it is repeated.

    Attributes:
        path: for example "graph.node[3].name".
        name: of the field.
        value: int, float, str, memoryview (bytes) or Message.
    """

    path: str
    name: str
    value: object


class Message:
    """A message: its fields in the order of the file."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items

    def all(self, name: str) -> list[Item]:
        """Return every value of a field."""
        return [item for item in self.items if item.name == name]

    def messages(self, name: str) -> Iterator[tuple[str, Message]]:
        """Yield the path and value of every message in a field."""
        for item in self.items:
            if item.name == name and isinstance(item.value, Message):
                yield item.path, item.value

    def numbers(self, name: str) -> list[int]:
        """Return the whole numbers in a field."""
        return [item.value for item in self.items if item.name == name and isinstance(item.value, int)]

    def texts(self, name: str) -> list[str]:
        """Return the texts in a field."""
        return [item.value for item in self.items if item.name == name and isinstance(item.value, str)]

    def text(self, name: str) -> str:
        """Return the text in a field; "" if it has none."""
        return next(iter(self.texts(name)), "")

    def number(self, name: str) -> int:
        """Return the whole number in a field; 0 if it has none."""
        return next(iter(self.numbers(name)), 0)

    def walk(self) -> Iterator[Item]:
        """Yield every item, and those of the messages in it."""
        for item in self.items:
            yield item
            if isinstance(item.value, Message):
                yield from item.value.walk()


class Reader:
    """Reads one file.

    Attributes:
        unknown: accept fields that the schema does not have, as protobuf does; they are left out.
    """

    def __init__(self, data: memoryview, *, unknown: bool = False) -> None:
        self._data = data
        self._unknown = unknown
        self._fields = 0

    def read(self) -> Message:
        """Return the whole file as a ModelProto. Raises MalformedError."""
        return self._message("ModelProto", 0, len(self._data), "", 0)

    def _message(self, kind: str, at: int, end: int, path: str, depth: int) -> Message:
        if depth > DEEPEST:
            raise MalformedError(f"byte {at:,}: {path[-80:]} is nested more than {DEEPEST} levels deep")
        fields, items, counts = MESSAGES[kind], [], dict[int, int]()
        while at < end:
            begin = at
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            self._fields += 1
            if self._fields > MOST_FIELDS:
                raise MalformedError(f"it has more than {MOST_FIELDS:,} fields")
            field = fields.get(number)
            if field is None:
                if not self._unknown or number == 0:
                    raise MalformedError(f"byte {begin:,}: {path or kind} has no field of number {number}")
                at = self._skip(wire, at, end)
                continue
            where = f"{path}.{field.name}" if path else field.name
            count = counts[number] = counts.get(number, -1) + 1
            if field.repeated:
                where = f"{where}[{count}]"
            elif count:
                raise MalformedError(f"byte {begin:,}: {where} occurs twice")
            needed = WIRE_TYPES.get(field.kind, 2)
            if wire != needed:
                raise MalformedError(f"byte {begin:,}: {where} has wire type {wire}; needed: {needed}")
            value: object
            if needed == 0:
                value, at = self._varint(at, end)
                value -= (value >> 63) << 64
            elif needed != 2:
                form = FIXED[field.kind]
                at += struct.calcsize(form)
                if at > end:
                    raise MalformedError(f"byte {begin:,}: {where} is cut off")
                (value,) = struct.unpack_from(form, self._data, at - struct.calcsize(form))
            else:
                size, at = self._varint(at, end)
                if size > end - at:
                    raise MalformedError(f"byte {begin:,}: {where} has {size:,} bytes; {end - at:,} are left")
                value = self._block(field.kind, at, at + size, where, depth)
                at += size
            items.append(Item(where, field.name, value))
        return Message(items)

    def _block(self, kind: str, at: int, end: int, where: str, depth: int) -> object:
        if kind == "bytes":
            return self._data[at:end]
        if kind != "text":
            return self._message(kind, at, end, where, depth + 1)
        if end - at > LONGEST_TEXT:
            raise MalformedError(
                f"byte {at:,}: {where} is a text of {end - at:,} bytes, at most {LONGEST_TEXT:,} are read"
            )
        try:
            return str(self._data[at:end], "utf-8")
        except UnicodeDecodeError as error:
            raise MalformedError(f"byte {at + error.start:,}: {where} is not UTF-8") from error

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        begin, number, shift = at, 0, 0
        while at < end:
            byte = self._data[at]
            at += 1
            number |= (byte & 127) << shift
            if byte < 128:
                if (byte == 0 and shift) or number >> 64:
                    raise MalformedError(f"byte {begin:,}: a number has more bytes than it needs, or more than 64 bits")
                return number, at
            shift += 7
            if shift > 63:
                break
        raise MalformedError(f"byte {begin:,}: a number is cut off or has more than 64 bits")

    def _skip(self, wire: int, at: int, end: int) -> int:
        begin = at
        if wire == 0:
            return self._varint(at, end)[1]
        if wire == 2:
            size, at = self._varint(at, end)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise MalformedError(f"byte {begin:,}: wire type {wire} is not read")
        if size > end - at:
            raise MalformedError(f"byte {begin:,}: a field has {size:,} bytes; {end - at:,} are left")
        return at + size
