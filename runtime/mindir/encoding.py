"""Encodes the parts of a MindIR file that an export writes, byte for byte as protobuf's own encoder.

The bytes are the canonical ones: fields in the order of their numbers, each number in as few bytes as possible.
https://protobuf.dev/programming-guides/encoding. The numbers of the fields are those of schema.py.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence

# AttributeProto.AttributeType
FLOAT, UINT8, INT32, INT64, STRING, BOOL, TENSORS, TUPLE, LIST = 1, 2, 6, 7, 8, 9, 19, 20, 21
# TensorProto.DataType
DTYPES = {"float32": 1, "uint8": 2, "int8": 3, "int16": 5, "int32": 6, "int64": 7, "float16": 10}


@functools.lru_cache(maxsize=4096)
def varint(number: int) -> bytes:
    """Encode a whole number; a negative one as its 64-bit complement."""
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def whole(field: int, number: int) -> bytes:
    """Encode a field that holds a whole number, a truth value or a member of an enum."""
    return varint(field << 3) + varint(number)


def block(field: int, data: bytes | str) -> bytes:
    """Encode a field that holds bytes, a text or a message."""
    if isinstance(data, str):
        return _text(field, data)
    return varint(field << 3 | 2) + varint(len(data)) + data


@functools.lru_cache(maxsize=4096)  # the graphs of all buckets have the same names
def _text(field: int, data: str) -> bytes:
    return block(field, data.encode())


def float32(field: int, number: float) -> bytes:
    """Encode a field that holds a float32."""
    return varint(field << 3 | 5) + struct.pack("<f", number)


def tensor(
    shape: Sequence[int],
    dtype: str,
    *,
    name: str = "",
    raw: bytes = b"",
    external: tuple[str, int, int] | None = None,
) -> bytes:
    """Encode a TensorProto.

    Args:
        name: empty for none.
        raw: its bytes; empty for a declaration.
        external: file, offset and length of the bytes of a weight.
    """
    out = [whole(1, size) for size in shape] + [whole(2, DTYPES[dtype])]
    if name:
        out.append(block(7, name))
    if raw:
        out.append(block(9, raw))
    if external is not None:
        location, offset, length = external
        out += [block(12, block(1, location) + whole(2, offset) + whole(3, length)), block(13, name), whole(16, 0)]
    return b"".join(out)


def integer(name: str, number: int, kind: int = INT64) -> bytes:
    """Encode an AttributeProto that holds a whole number or a truth value."""
    return block(1, name) + whole(3, number) + whole(16, kind)


def real(name: str, number: float) -> bytes:
    """Encode an AttributeProto that holds a float32."""
    return block(1, name) + float32(2, number) + whole(16, FLOAT)


def text(name: str, value: str) -> bytes:
    """Encode an AttributeProto that holds a text."""
    return block(1, name) + block(5, value) + whole(16, STRING)


def integers(name: str, numbers: Sequence[int]) -> bytes:
    """Encode an AttributeProto that holds a tuple of whole numbers."""
    items = [block(17, whole(10, number) + whole(16, INT64)) for number in numbers]
    return b"".join([block(1, name), whole(16, TUPLE), *items])


def texts(name: str, values: Sequence[str]) -> bytes:
    """Encode an AttributeProto that holds a list of texts."""
    items = [block(17, block(11, value) + whole(16, STRING)) for value in values]
    return b"".join([block(1, name), whole(16, LIST), *items])


def array(name: str, value: bytes) -> bytes:
    """Encode an AttributeProto that holds a tensor, given as TensorProto."""
    return block(1, name) + block(12, value) + whole(16, TENSORS)


def tuple_of(tensors: Sequence[bytes]) -> bytes:
    """Encode the fields of an AttributeProto that describes a tuple of tensors (TensorProto each), without its name."""
    items = [block(17, block(12, value) + whole(16, TENSORS)) for value in tensors]
    return b"".join([whole(16, TUPLE), *items, block(18, whole(1, 0))])


@functools.lru_cache(maxsize=4096)
def _bytes(value: str) -> bytes:
    """Encode a text as a list of bytes: an AttributeProto in the field `values`."""
    items = [block(17, whole(10, byte) + whole(16, UINT8)) for byte in value.encode()]
    return block(17, whole(16, LIST) + b"".join(items))


def named_texts(name: str, values: Sequence[tuple[str, str]]) -> bytes:
    """Encode an AttributeProto with the attributes of a custom kernel: names, each followed by a list of bytes."""
    items = [block(17, block(11, key) + whole(16, STRING)) + _bytes(value) for key, value in values]
    return b"".join([block(1, name), whole(16, LIST), *items])
