"""Reads weights.safetensors and session files: checks the table of tensors, and gives views of their bytes.

The runtime does not depend on the safetensors library. The format is a header (8 bytes of size, then JSON) followed by
the tensors: https://github.com/huggingface/safetensors#format. Opening a file checks its whole table: each tensor has a
known dtype, a shape, and as many bytes as both need; the tensors cover the file without gaps and overlaps.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import UserError
from .json_reader import LARGEST, parse_object
from .manifest import TensorSpec
from .private_copy import copied
from .step_graph import STRETCH

CODES = {  # numpy's name of a dtype -> the format's
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "float16": "F16",
    "int32": "I32",
    "float32": "F32",
    "int64": "I64",
}
DTYPES = {code: dtype for dtype, code in CODES.items()} | {"BF16": "uint16"}  # the bits: numpy has no bfloat16
HIGHEST_RANK = 8
ALIGNMENT = 64  # each tensor begins at a multiple of so many bytes: the kernels use aligned loads
FILLER = ".alignment"  # ends the name of the bytes between two tensors
REMEDY = "Copy the whole folder again or export again"


class Readable(Protocol):
    """A file opened for reading bytes, or a memory map."""

    def read(self, size: int, /) -> bytes: ...


def encode_header(
    tensors: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None, alignment: int = 1
) -> bytes:
    """Return the first bytes of a file with these tensors in this order: the header's length, then the header.

    alignment: each tensor begins at a multiple of so many bytes. The format allows no gaps, so the header lists
    the bytes between two tensors as a tensor too: `<name>.alignment`.
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0

    def add(name: str, code: str, shape: Sequence[int], size: int) -> None:
        nonlocal offset
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size

    for tensor in tensors:
        add(tensor.name, CODES[tensor.dtype], tensor.shape, tensor.nbytes)
        if filler := -tensor.nbytes % alignment:
            add(f"{tensor.name}{FILLER}", "U8", [filler], filler)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % max(alignment, 8))
    return len(text).to_bytes(8, "little") + text


def read_header(file: Readable) -> tuple[dict[str, Any], int]:
    """Read the header at the start of a file. Return it, and the offset of the first tensor's bytes.

    Raises ValueError, which says what the header is, if it is not valid.
    """
    length = int.from_bytes(file.read(8), "little")  # a damaged file gives any length
    text = file.read(min(length, LARGEST))
    try:
        header = parse_object(text)
    except ValueError as error:
        if length > LARGEST:
            raise ValueError(f"not valid JSON: it has {length:,} bytes, at most {LARGEST:,} are read") from error
        raise
    if len(text) != length:
        raise ValueError(f"{length:,} bytes long, and the file ends after {len(text):,} of them")
    return header, 8 + length


class Entry(NamedTuple):
    """One tensor of a file.

    Attributes:
        dtype: the format's code, such as "F32"
        begin, end: its bytes, from the start of the data
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_table(header: Mapping[str, Any], size: int) -> dict[str, Entry]:
    """Return the tensors of a header, in the order of their bytes.

    Args:
        header: without errors in its JSON.
        size: bytes of data behind the header.

    Raises:
        ValueError: an entry is not valid, or the tensors do not cover the data exactly; the message says which.
    """
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its __metadata__ is no object of strings")
    table = {name: _entry(name, entry) for name, entry in header.items() if name != "__metadata__"}
    table = dict(sorted(table.items(), key=lambda item: (item[1].begin, item[1].end)))
    place = 0
    for name, entry in table.items():
        if entry.begin != place:
            what = "overlaps the one before" if entry.begin < place else f"leaves {entry.begin - place:,} bytes unused"
            raise ValueError(f"tensor {_short(name)} {what}")
        if entry.end > size:
            raise ValueError(
                f"tensor {_short(name)} ends outside the file: at byte {entry.end:,} of {size:,} bytes of data"
            )
        place = entry.end
    if place != size:
        raise ValueError(f"{size - place:,} bytes follow its last tensor")
    return table


def _entry(name: str, entry: Any) -> Entry:
    invalid = f"its header has no valid entry for {_short(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{invalid}; needed: dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{invalid}: dtype {_short(dtype)}; known: {', '.join(DTYPES)}")
    if not _are_sizes(shape) or len(shape) > HIGHEST_RANK:
        raise ValueError(f"{invalid}: shape {_short(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{invalid}: data_offsets {_short(offsets)}")
    needed = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if offsets[1] - offsets[0] != needed:
        raise ValueError(f"{invalid}: {offsets[1] - offsets[0]:,} bytes; {dtype} {shape} has {needed:,}")
    return Entry(dtype, tuple(shape), *offsets)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class TensorFile:
    """The tensors of a safetensors file as read-only views of its bytes."""

    def __init__(self, path: Path, remedy: str = REMEDY, data: np.ndarray | None = None) -> None:
        """Check the table of a file.

        Args:
            path: the file.
            remedy: ends the messages of errors.
            data: its bytes, uint8 [size]; None copies the file to private memory.

        Raises:
            UserError: the file is damaged or cannot be read.
        """
        self.path = path
        self._remedy = remedy
        self._bytes = copied(path, remedy) if data is None else data
        length = min(int.from_bytes(self._bytes[:8].tobytes(), "little"), LARGEST)  # of the header, if it is right
        try:
            header, self._data = read_header(io.BytesIO(self._bytes[: 8 + length].tobytes()))
        except ValueError as error:
            raise UserError(f"{path}: its header is {error}. {remedy}") from error
        try:
            self._table = read_table(header, len(self._bytes) - self._data)
        except ValueError as error:
            raise UserError(f"{path}: {error}. {remedy}") from error
        self._stretches: dict[str, tuple[int, int]] = {}
        self.metadata: dict[str, str] = header.get("__metadata__", {})

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def names(self) -> list[str]:
        """Return the names of the tensors, in the order of their bytes, without those that only align the next."""
        return [name for name in self._table if not self._is_filler(name)]

    def array(self, name: str) -> np.ndarray:
        """Return a view of the tensor with this name.

        A name such as `model.layers.0.*` returns the range of the file that holds all tensors below that name, as uint8
        [bytes]. Raises UserError if the tensor is missing, or its range is not valid.
        """
        if name.endswith(STRETCH):
            begin, end = self._stretch(name)
            return np.frombuffer(self._bytes, np.uint8, end - begin, self._data + begin)
        if name not in self._table:
            raise UserError(f"{self.path}: has no tensor {name!r}, which the graph needs. {self._remedy}")
        entry = self._table[name]
        count = math.prod(entry.shape)
        return np.frombuffer(self._bytes, DTYPES[entry.dtype], count, self._data + entry.begin).reshape(entry.shape)

    def check(self, wanted: Sequence[TensorSpec], members: Mapping[str, Sequence[TensorSpec]], alignment: int) -> None:
        """Check the table against what the graphs take from the file, before native code gets a pointer into it.

        Args:
            wanted: the graphs' inputs that come from this file.
            members: the name of an input such as `model.layers.0.*` -> the tensors that its kernel reads there, in
                order.
            alignment: each tensor begins at a multiple of so many bytes.

        Raises:
            UserError: a tensor is missing, surplus, misplaced, or has another dtype or shape.
        """
        stored: list[TensorSpec] = []
        names = self.names()
        for spec in wanted:
            if not spec.name.endswith(STRETCH):
                stored.append(spec)
                continue
            begin, end = self._stretch(spec.name)
            if spec.shape != (end - begin,):
                raise self._wrong(spec, f"uint8 [{end - begin}]")
            needed = [member.name for member in members[spec.name]]
            found = [name for name in names if name.startswith(spec.name.removesuffix("*"))]
            if found != needed:
                differing = next((x for x in zip(found, needed, strict=False) if x[0] != x[1]), (found, needed))
                raise UserError(
                    f"{self.path}: {spec.name!r} has {_short(differing[0])} where the kernel reads "
                    f"{_short(differing[1])}. {self._remedy}"
                )
            stored += members[spec.name]
        for spec in stored:
            array = self.array(spec.name)
            entry = self._table[spec.name]
            if (entry.dtype, entry.shape) != (CODES[spec.dtype], spec.shape):
                raise self._wrong(spec, f"{array.dtype} {list(array.shape)}")
            if (self._data + entry.begin) % alignment:
                raise UserError(
                    f"{self.path}: tensor {spec.name!r} begins at byte {self._data + entry.begin:,}; needed: a "
                    f"multiple of {alignment}. {self._remedy}"
                )
        surplus = sorted(set(names) - {spec.name for spec in stored})
        if surplus:
            raise UserError(f"{self.path}: has a tensor {_short(surplus[0])} that no graph takes. {self._remedy}")

    def _wrong(self, spec: TensorSpec, found: str) -> UserError:
        return UserError(
            f"{self.path}: tensor {spec.name!r} is {found}; the graph takes {spec.dtype} {list(spec.shape)}. "
            f"{self._remedy}"
        )

    def _is_filler(self, name: str) -> bool:
        return name.endswith(FILLER) and name.removesuffix(FILLER) in self._table

    def _stretch(self, name: str) -> tuple[int, int]:
        """Return the bytes of all tensors below a name, from the start of the data."""
        if name in self._stretches:
            return self._stretches[name]
        below = name.removesuffix("*")
        inside = [entry for key, entry in self._table.items() if key.startswith(below)]
        if not inside or any(first.end != second.begin for first, second in pairwise(inside)):
            raise UserError(
                f"{self.path}: the tensors {name!r} are not one contiguous range, which the graph needs. {self._remedy}"
            )
        self._stretches[name] = inside[0].begin, inside[-1].end
        return self._stretches[name]
