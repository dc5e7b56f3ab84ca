"""Changes inputs in ways that keep their form, so that they reach the code behind the parser.

libFuzzer's own mutations change bytes: they find errors of the parsers. These change values: one JSON value, the header
of a safetensors file, one key or tensor of a GGUF file.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from support import json_mutations, mindir_mutations

Mutate = Callable[[bytes, int], bytes]  # libFuzzer's own: data, largest size

ODD: tuple[Any, ...] = (
    *json_mutations.ODD,
    *(False, 3, 64, 255, 256, 65_536, 1 << 32, 1 << 53, 10**60, -0.0, 1e-300),
    *("/etc/passwd", "a\nb", "\x1b[31m", "\u00e9", "\U0001f600", "x" * 300),
    *([[]], [None], ["a", "b"], {"content": 1}, [{"a": {}}], [[1, 2], [3]]),
)


def mutated(form: str, data: bytes, largest: int, seed: int, mutate: Mutate) -> bytes:
    """Return a changed input of a target.

    Args:
        form: as in Target.
        data: the input.
        largest: bytes of the result.
        seed: decides what changes.
        mutate: changes bytes.
    """
    rng = random.Random(seed)
    function = {"json": _json, "safetensors": _safetensors, "gguf": _gguf, "mindir": _mindir}.get(form)
    if function is not None and rng.random() < 0.85:
        try:
            return function(data, rng, mutate)[:largest]
        except (ValueError, RecursionError, struct.error, IndexError, KeyError, OverflowError):
            pass  # not of this form any more
    return mutate(data, largest)


def _json(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    return _text(_changed(json.loads(data), rng, mutate))


def _text(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _changed(value: Any, rng: random.Random, mutate: Mutate) -> Any:
    """Change one to four values within a JSON value."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        places = list(_places(value))
        if not places:
            return rng.choice(ODD)
        parent, key = rng.choice(places)
        _change(parent, key, places, rng, mutate)
    return value


def _places(value: Any) -> Any:
    """Yield (list or object, index or key) of each value within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:2000]:
        yield value, key
        yield from _places(item)


def _change(parent: Any, key: Any, places: list[Any], rng: random.Random, mutate: Mutate) -> None:
    old = parent[key]
    kind = rng.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        other, place = rng.choice(places)  # a value from elsewhere, which is a copy: no value contains itself
        parent[key] = json.loads(json.dumps(other[place]))
    elif kind == 2 and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), json.loads(json.dumps(old)))
    elif kind == 2:
        parent[rng.choice([other for _, other in places if isinstance(other, str)] or ["x"])] = parent.pop(key)
    elif kind == 3:
        parent[key] = rng.choice(([old], {"a": old}, str(old)))
    elif isinstance(old, (int, float)) and not isinstance(old, bool) and kind < 7:
        parent[key] = old + rng.choice((-1, 1, 64, -64)) if kind < 6 else old * rng.choice((-1, 2, 0.5, 1 << 20))
    elif isinstance(old, str) and kind < 7:
        parent[key] = mutate(old.encode("utf-8", "surrogatepass"), len(old) + 8).decode("utf-8", "replace")
    else:
        parent[key] = rng.choice(ODD)


def _safetensors(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Change the header, the data or the length of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    if rng.random() < 0.2:
        rest = mutate(rest, len(rest) + 64)
    else:
        header = _changed(header, rng, mutate)
    text = _text(header)
    length = len(text) + (rng.choice((-1, 1, 1 << 40)) if rng.random() < 0.05 else 0)
    return max(length, 0).to_bytes(8, "little") + text + rest


def _mindir(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Change one field of a graph file."""
    if len(data) < LEAST_MINDIR:
        raise ValueError("too little is left of the graph")
    return mindir_mutations.structured(data, rng.getrandbits(32))[1]


LEAST_MINDIR = 200  # bytes

# A scalar's format and size by its number in GGUF: uint8, int8, uint16, int16, uint32, int32, float32, bool, then text,
# array, and uint64, int64, float64.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9


class _Gguf:
    """Reads and writes a GGUF file without judging it: values are pairs (type, bytes)."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4
        self.version, tensors, fields = self._numbers("IQQ")
        self.fields = [[self._text(), *self._value()] for _ in range(min(fields, 1000))]
        self.tensors = [self._tensor() for _ in range(min(tensors, 1000))]
        self.rest = data[self.at :]

    def written(self) -> bytes:
        out = [b"GGUF", struct.pack("<IQQ", self.version, len(self.tensors), len(self.fields))]
        for key, kind, value in self.fields:
            out += [_framed(key), struct.pack("<I", kind), value]
        for name, shape, kind, offset in self.tensors:
            sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *(size % (1 << 64) for size in shape))
            out += [_framed(name), sizes, struct.pack("<IQ", kind % (1 << 32), offset % (1 << 64))]
        return b"".join(out) + self.rest

    def _numbers(self, code: str) -> tuple[Any, ...]:
        size = struct.calcsize("<" + code)
        self.at += size
        return struct.unpack("<" + code, self.data[self.at - size : self.at])

    def _text(self) -> bytes:
        (length,) = self._numbers("Q")
        self.at += length
        return self.data[self.at - length : self.at]

    def _value(self) -> tuple[int, bytes]:
        (kind,) = self._numbers("I")
        begin = self.at
        self._skip(kind)
        return kind, self.data[begin : self.at]

    def _skip(self, kind: int) -> None:
        if kind == TEXT:
            self._text()
        elif kind == ARRAY:
            inner, count = self._numbers("IQ")
            for _ in range(min(count, len(self.data))):
                self._skip(inner)
        else:
            self._numbers(SCALARS.get(kind, "I"))

    def _tensor(self) -> list[Any]:
        name = self._text()
        (rank,) = self._numbers("I")
        shape = list(self._numbers(f"{min(rank, 64)}Q"))
        return [name, shape, *self._numbers("IQ")]


def _framed(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _gguf(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Change one key, value or tensor of a GGUF file."""
    file = _Gguf(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if file.fields and rng.random() < 0.7:
            _change_field(file.fields, rng, mutate)
        elif file.tensors:
            _change_tensor(file.tensors, rng, mutate)
    if rng.random() < 0.05:
        file.rest = file.rest[: rng.randrange(len(file.rest) + 1)]
    return file.written()


def _change_field(fields: list[list[Any]], rng: random.Random, mutate: Mutate) -> None:
    at = rng.randrange(len(fields))
    field, kind = fields[at], rng.randrange(6)
    if kind == 0:
        del fields[at]
    elif kind == 1:
        field[0] = rng.choice(fields)[0] if rng.random() < 0.5 else mutate(field[0], len(field[0]) + 8)
    elif kind == 2:
        field[1:] = rng.choice(fields)[1:]
    elif kind == 3:
        field[1:] = [TEXT, _framed(mutate(field[2][:40], 48))]
    elif kind == 4 and field[1] == ARRAY:
        inner, _ = struct.unpack("<IQ", field[2][:12])
        width = struct.calcsize("<" + SCALARS.get(inner, "Q"))
        count = rng.choice((0, 1, 2, 5))
        field[2] = struct.pack("<IQ", inner, count) + (field[2][12:] + bytes(64))[: count * width]
    else:
        number = rng.choice(list(SCALARS))
        size = struct.calcsize("<" + SCALARS[number])
        value = rng.choice((0, 1, 2, 3, 5, 64, 1 << 31, (1 << 64) - 1, rng.getrandbits(64)))
        field[1:] = [number, value.to_bytes(8, "little")[:size]]


def _change_tensor(tensors: list[list[Any]], rng: random.Random, mutate: Mutate) -> None:
    at = rng.randrange(len(tensors))
    tensor, kind = tensors[at], rng.randrange(6)
    if kind == 0:
        del tensors[at]
    elif kind == 1:
        tensor[0] = rng.choice(tensors)[0] if rng.random() < 0.5 else mutate(tensor[0], len(tensor[0]) + 8)
    elif kind == 2:
        tensors.insert(at, list(tensor))
    elif kind == 3:
        tensor[2] = rng.choice((0, 1, 2, 3, 8, 10, 14, 16, 30, 39, rng.getrandbits(32)))
    elif kind == 4:
        tensor[3] += rng.choice((-32, 1, 32, 1 << 40, 1 << 63))
    else:
        shape = tensor[1] = list(tensor[1])
        place = rng.randrange(len(shape) + 1)
        shape[place : place + rng.randrange(2)] = [rng.choice((0, 1, 2, 32, 64, 1 << 31, 1 << 32, (1 << 64) - 1))]
