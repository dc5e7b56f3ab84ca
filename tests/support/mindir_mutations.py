"""Damages graph files of artifacts as a stranger could, and recomputes every size, hash and digest.

- `structured(data, seed)`: one change that knows MindIR's fields: values, types, names, order, references.
- `of_bytes(data, seed)`: one change of raw bytes.
- `with_graph(source, out, data)`: a copy of an artifact with another graph file, whose manifest agrees with it.

Equal seeds give equal results. The tree of fields is read and written here, without the code under test except for the
table of MindIR's messages.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellama.artifact.manifest import digest, file_entry
from edgellama.mindir.schema import MESSAGES

NUMBERS = (0, 1, -1, -2, 2, 7, 127, 128, 255, 65_535, 1 << 20, (1 << 31) - 1, 1 << 31, -(1 << 31), (1 << 63) - 1)
REALS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    "x",
    "/etc/passwd",
    "../manifest.json",
    "../../../../etc/passwd",
    "a" * 5000,
    "tokens",
    "constant",
    "\x00",
    "🙂",
)
WIDE = 1 << 64  # a varint of this size has more than 64 bits


@dataclass
class Field:
    """One field of a message: its number, wire type and value (int, bytes or a list of fields)."""

    number: int
    wire: int
    value: Any
    message: str = ""  # the kind of message in `value`

    def encode(self) -> bytes:
        tag = varint(self.number << 3 | self.wire)
        if isinstance(self.value, int):  # also with another wire type, which an earlier mutation has given it
            return tag + varint(self.value)
        data = self.value if isinstance(self.value, bytes) else b"".join(field.encode() for field in self.value)
        return tag + (varint(len(data)) + data if self.wire == 2 else data)


def varint(number: int) -> bytes:
    """Encodes a whole number; one above 64 bits too, which no message may have."""
    number = number if number >= 0 else number + (1 << 64)
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def tree(data: bytes, message: str = "ModelProto") -> list[Field]:
    """Returns the fields of a message that is well formed."""
    found, at = [], 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = number()
        kind = MESSAGES[message][tag >> 3].kind
        if tag & 7 == 0:
            found.append(Field(tag >> 3, 0, number()))
            continue
        size = number() if tag & 7 == 2 else {1: 8, 5: 4}[tag & 7]
        value: Any = data[at : at + size]
        at += size
        if kind in MESSAGES:
            found.append(Field(tag >> 3, 2, tree(value, kind), kind))
        else:
            found.append(Field(tag >> 3, tag & 7, value))
    return found


def encode(fields: list[Field]) -> bytes:
    """Returns the bytes of a message."""
    return b"".join(field.encode() for field in fields)


def walk(fields: list[Field], message: str = "ModelProto") -> Iterator[tuple[list[Field], int, str]]:
    """Yields every field, as the list that holds it and its place there, and its name."""
    for at, field in enumerate(fields):
        yield fields, at, f"{message}.{MESSAGES[message][field.number].name}"
        if field.message:
            yield from walk(field.value, field.message)


def structured(data: bytes, seed: int) -> tuple[str, bytes]:
    """Returns what was changed, and the changed file, which differs from `data`."""
    rng = random.Random(seed)
    while True:
        fields = tree(data)
        what = rng.choice(MUTATORS)(fields, rng)
        changed = encode(fields)
        if what is not None and changed != data:
            return what, changed


def of_bytes(data: bytes, seed: int) -> tuple[str, bytes]:
    """Returns what was changed, and the changed file, which differs from `data`."""
    rng = random.Random(seed)
    while True:
        changed = bytearray(data)
        at, size = rng.randrange(len(data)), rng.choice((1, 1, 2, 4, 16, 200))
        kind = rng.choice(("bit", "byte", "bytes", "insert", "delete", "cut", "repeat", "zero", "append"))
        if kind == "bit":
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            changed[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == "bytes":
            changed[at : at + size] = rng.randbytes(size)
        elif kind == "insert":
            changed[at:at] = rng.randbytes(size)
        elif kind == "delete":
            del changed[at : at + size]
        elif kind == "cut":
            del changed[at:]
        elif kind == "repeat":
            changed[at:at] = changed[at : at + size]
        elif kind == "zero":
            changed[at : at + size] = bytes(len(changed[at : at + size]))
        else:
            changed += rng.randbytes(size)
        if changed != data:
            return f"{kind} at byte {at}", bytes(changed)


def _any(
    fields: list[Field], rng: random.Random, fits: Callable[[Field, str], bool]
) -> tuple[list[Field], int, str] | None:
    """Returns one field that fits; each name has the same chance, however often it occurs."""
    by_name: dict[str, list[tuple[list[Field], int, str]]] = {}
    for found in walk(fields):
        if fits(found[0][found[1]], found[2]):
            by_name.setdefault(found[2], []).append(found)
    return rng.choice(by_name[rng.choice(sorted(by_name))]) if by_name else None


def _named(*names: str) -> Callable[[Field, str], bool]:
    return lambda _, name: name in names


def change_number(fields: list[Field], rng: random.Random) -> str | None:
    found = _any(fields, rng, lambda field, _: field.wire == 0)
    if found is None:
        return None
    holder, at, name = found
    holder[at].value = rng.choice((*NUMBERS, holder[at].value + 1, holder[at].value ^ 1, rng.getrandbits(63)))
    return f"{name} = {holder[at].value}"


def widen_number(fields: list[Field], rng: random.Random) -> str | None:
    found = _any(fields, rng, lambda field, _: field.wire == 0)
    if found is None:
        return None
    holder, at, name = found
    holder[at].value = WIDE << rng.randrange(40)
    return f"{name} has more than 64 bits"


def change_dims(fields: list[Field], rng: random.Random) -> str | None:
    found = _any(fields, rng, _named("TensorProto.dims"))
    if found is None:
        return None
    holder, at, name = found
    kind = rng.choice(("change", "add", "remove"))
    if kind == "remove":
        del holder[at]
    elif kind == "add":
        holder.insert(at, Field(1, 0, rng.choice(NUMBERS)))
    else:
        holder[at].value = rng.choice(NUMBERS)
    return f"{name}: {kind}"


def change_real(fields: list[Field], rng: random.Random) -> str | None:
    found = _any(fields, rng, lambda field, name: field.wire == 5 or name == "TensorProto.raw_data")
    if found is None:
        return None
    holder, at, name = found
    number = rng.choice(REALS)
    holder[at].value = struct.pack("<f", number)
    return f"{name} = {number}"


def change_text(fields: list[Field], rng: random.Random) -> str | None:
    found = _any(fields, rng, lambda field, _: field.wire == 2 and not field.message)
    if found is None:
        return None
    holder, at, name = found
    old = holder[at].value
    holder[at].value = rng.choice((*(text.encode() for text in TEXTS), old + b".1", old[:-1], old.upper(), b"\xff\xfe"))
    return f"{name} = {holder[at].value[:40]!r}"


def exchange_texts(fields: list[Field], rng: random.Random) -> str | None:
    """Exchanges two values of one field anywhere: names, inputs, operators, attributes."""
    found = _any(fields, rng, lambda field, _: field.wire == 2 and not field.message)
    if found is None:
        return None
    others = [other for other in walk(fields) if other[2] == found[2]]
    one, two = (holder[at] for holder, at, _ in (found, rng.choice(others)))
    one.value, two.value = two.value, one.value
    return f"two of {found[2]} exchanged"


def read_later_value(fields: list[Field], rng: random.Random) -> str | None:
    """Lets a node read the result of a later one, of itself, or of none: cycles and missing inputs."""
    found = _any(fields, rng, _named("NodeProto.input"))
    outputs = [holder[at].value for holder, at, name in walk(fields) if name == "NodeProto.output"]
    if found is None:
        return None
    holder, at, _ = found
    holder[at].value = rng.choice((outputs[-1], rng.choice(outputs), b"nowhere", b""))
    return f"a node reads {holder[at].value!r}"


def delete(fields: list[Field], rng: random.Random) -> str | None:
    found = _any(fields, rng, lambda *_: True)
    assert found is not None
    holder, at, name = found
    del holder[at]
    return f"{name} deleted"


def duplicate(fields: list[Field], rng: random.Random) -> str | None:
    found = _any(fields, rng, lambda *_: True)
    assert found is not None
    holder, at, name = found
    for _ in range(rng.choice((1, 1, 50))):
        holder.insert(rng.choice((at, len(holder))), copy.deepcopy(holder[at]))
    return f"{name} duplicated"


def reorder(fields: list[Field], rng: random.Random) -> str | None:
    holder, _, name = _any(fields, rng, lambda *_: True)  # type: ignore[misc]
    rng.shuffle(holder)
    return f"{name.partition('.')[0]} shuffled"


def wrong_wire_type(fields: list[Field], rng: random.Random) -> str | None:
    found = _any(fields, rng, lambda *_: True)
    assert found is not None
    holder, at, name = found
    wire = rng.choice([wire for wire in (0, 1, 2, 3, 4, 5, 6, 7) if wire != holder[at].wire])
    size = {1: 8, 5: 4}.get(wire, rng.randrange(12))
    holder[at] = Field(holder[at].number, wire, bytes(size) if wire else rng.choice(NUMBERS))
    return f"{name} with wire type {wire}"


def other_field(fields: list[Field], rng: random.Random) -> str | None:
    """Gives a value to another field, which the message may know or not."""
    found = _any(fields, rng, lambda *_: True)
    assert found is not None
    holder, at, name = found
    holder[at].number = rng.choice((*range(1, 22), 1000, 19_000, (1 << 29) - 1))
    return f"{name} as field {holder[at].number}"


def other_type(fields: list[Field], rng: random.Random) -> str | None:
    found = _any(fields, rng, _named("AttributeProto.type", "TensorProto.data_type", "PrimitiveProto.prim_type"))
    if found is None:
        return None
    holder, at, name = found
    holder[at].value = rng.choice([*range(42), 255, -1])
    return f"{name} = {holder[at].value}"


def nest(fields: list[Field], rng: random.Random) -> str | None:
    found = _any(fields, rng, lambda field, _: field.message == "AttributeProto")
    if found is None:
        return None
    holder, at, name = found
    inner = holder[at].value
    depth = rng.choice((1, 30, 200, 2000))
    data = encode(inner)
    for _ in range(depth):
        data = varint(17 << 3 | 2) + varint(len(data)) + data
    holder[at] = Field(holder[at].number, 2, data)
    return f"{name} nested {depth} times"


def other_file(fields: list[Field], rng: random.Random) -> str | None:
    """Points weights at other places: other files, other offsets, other lengths."""
    found = _any(
        *(fields, rng),
        lambda field, name: (
            name.startswith("ExternalDataProto.") and isinstance(field.value, bytes) == name.endswith("location")
        ),
    )
    if found is None:
        return None
    holder, at, name = found
    if name.endswith("location"):
        holder[at].value = rng.choice(TEXTS).encode()
    else:
        holder[at].value = rng.choice((*NUMBERS, 64, holder[at].value + 64, max(holder[at].value - 64, 0)))
    return f"{name} = {holder[at].value!r}"


MUTATORS: tuple[Callable[[list[Field], random.Random], str | None], ...] = (
    change_number,
    widen_number,
    change_dims,
    change_real,
    change_text,
    exchange_texts,
    read_later_value,
    delete,
    duplicate,
    reorder,
    wrong_wire_type,
    other_field,
    other_type,
    nest,
    other_file,
)


def with_graph(source: Path, out: Path, data: bytes, number: int = 0) -> Path:
    """Writes a copy of the artifact `source` with another graph file, and returns its folder.

    The other files are links to the same data. The manifest has the size and hash of the new file, and a new digest.

    - number: of the graph in the manifest.
    """
    if out.exists():
        shutil.rmtree(out)
    shutil.copytree(source, out, copy_function=os.link)
    values = json.loads((source / "manifest.json").read_text())
    entry = values["graphs"][number]
    (out / entry["file"]).unlink()
    (out / entry["file"]).write_bytes(data)
    found = file_entry(out, entry["file"])
    entry["sha256"], entry["bytes"] = found.sha256, found.bytes
    body = {key: value for key, value in values.items() if key != "digest"}
    (out / "manifest.json").unlink()
    (out / "manifest.json").write_text(json.dumps({**body, "digest": digest(body)}))
    return out
