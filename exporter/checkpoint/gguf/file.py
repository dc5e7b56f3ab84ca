"""Read a GGUF file: metadata, tensor table, and each tensor's blocks through a memory map.

The layout follows the GGUF specification, versions 2 and 3 (little-endian). Block sizes and dequantization come from
the `gguf` package. Its reader is not used, because it keeps one numpy array per token and per merge (10 s and 1 GB for
a vocabulary of 128,000).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from numpy.typing import NDArray

from edgellama.errors import UserError, shown
from edgellama.kernels.weight_format import round_up

MOST_DIMENSIONS = 4  # of a tensor, as in ggml
_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def part_paths(path: Path, count: int) -> tuple[Path, ...]:
    """Return the files of a split GGUF file, in order.

    Args:
        path: one of them.
        count: how many there are.

    Raises:
        UserError: the file has another name than llama-gguf-split gives, or parts are missing.
    """
    named = _PART.fullmatch(path.name)
    if named is None or int(named[3]) != count:
        raise UserError(
            f"{path} is one of {count} parts, which need names such as NAME-00001-of-{count:05}.gguf. Rename them, "
            "or merge them with `llama-gguf-split --merge`"
        )
    paths = tuple(path.with_name(f"{named[1]}-{number:05}-of-{named[3]}.gguf") for number in range(1, count + 1))
    if absent := [part.name for part in paths if not part.is_file()]:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise UserError(f"{path} lacks {', '.join(absent[:3])}{more}; download all {count} parts into one folder")
    return paths


def whole_name(name: str) -> str:
    """Return the name of a GGUF file without the number of its part: NAME-00001-of-00003.gguf -> NAME.gguf."""
    named = _PART.fullmatch(name)
    return f"{named[1]}.gguf" if named else name


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor.

    Attributes:
        shape: in numpy's order, the reverse of the file's.
        offset: in bytes from the file's start.
        part: the number of its file, for a GGUF file that was split.
    """

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    part: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, which is a whole number of blocks."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * size

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes


class GGUFFile:
    """A memory-mapped GGUF file, or all parts of one that was split (NAME-00001-of-00003.gguf).

    Attributes:
        path: the file that was opened: of a split one, any part.
        paths: all parts, in order.
        fields: metadata by key: numbers, strings, lists of strings, numpy arrays.
        tensors: the tensor table by name.

    Raises UserError if the file is not GGUF, has another version, is damaged, or is shorter than its header states.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.paths: tuple[Path, ...] = (path,)
        self.fields: dict[str, Any] = {}
        self.tensors: dict[str, GGUFTensor] = {}
        self._data: list[NDArray[np.uint8]] = []
        self._read(path)
        count = self.fields.get("split.count")
        if isinstance(count, int) and count > 1:
            self._read_parts(count)

    def _read(self, path: Path) -> None:
        """Add the metadata and the tensors of a file, or of a part of one."""
        if not path.stat().st_size:
            raise UserError(f"{path} is empty; download it again")
        data = np.memmap(path, dtype=np.uint8, mode="r")
        if bytes(data[:4]) != b"GGUF":
            raise UserError(
                f"{path} is not a GGUF file (it begins with {bytes(data[:4])!r}, not with b'GGUF'). Download it again"
            )
        try:
            tensors = self._read_header(path, _Cursor(data.data), len(self._data))
        except (_PastEndError, UnicodeDecodeError, ValueError) as error:
            raise UserError(
                f"{path} ({len(data):,} bytes) is truncated or damaged: its header is unreadable ({error}); "
                "download it again"
            ) from error
        needed = max((t.offset + t.nbytes for t in tensors.values()), default=0)
        if needed > len(data):
            raise UserError(
                f"{path} is truncated: it has {len(data):,} bytes, its header describes {needed:,}; download it again"
            )
        self._data.append(data)
        self.tensors |= tensors

    def _read_parts(self, count: int) -> None:
        """Read all parts of a file that was split. The metadata is that of the first part."""
        total = self.fields.get("split.tensors.count")
        self.paths = part_paths(self.path, count)
        self.tensors.clear()
        self._data.clear()
        first: dict[str, Any] = {}
        for number, path in enumerate(self.paths):
            self.fields = {}
            self._read(path)
            if (found := (self.fields.get("split.no"), self.fields.get("split.count"))) != (number, count):
                raise UserError(f"{path} is part {found[0]} of {found[1]} by its metadata. Download all parts again")
            first = first or self.fields
        self.fields = first
        if total is not None and len(self.tensors) != total:
            raise UserError(
                f"the {count} parts of {self.path} have {len(self.tensors):,} tensors, and its metadata {total:,}. "
                "Download all parts again"
            )

    @property
    def size(self) -> int:
        """Bytes of the file, or of all its parts."""
        return sum(map(len, self._data))

    def header_size(self) -> int:
        """Return the number of bytes before the first tensor, in the first part."""
        return min((t.offset for t in self.tensors.values() if t.part == 0), default=len(self._data[0]))

    def blocks(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes as stored, uint8 [rows, bytes per row]: a view of the memory map.

        A vector has one row.
        """
        tensor = self.tensors[name]
        flat = self._data[tensor.part][tensor.offset : tensor.offset + tensor.nbytes]
        return np.asarray(flat).reshape(-1, tensor.row_bytes)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return a tensor dequantized to float32, in its numpy shape: a copy."""
        info = self.tensors[name]
        return self.dequantized(name, self.blocks(name)).reshape(info.shape)

    def dequantized(self, name: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Dequantize rows of the tensor's blocks to float32 [rows, columns]: a copy."""
        values = dequantize(blocks, self.tensors[name].kind)
        return values if values.flags.writeable else values.copy()  # for F32, dequantize returns a view

    def _read_header(self, path: Path, cursor: _Cursor, part: int) -> dict[str, GGUFTensor]:
        """Read the metadata into `fields`. Returns the tensor table."""
        cursor.take(4)
        version = cursor.number("<I")
        if version not in (2, 3):
            raise UserError(
                f"{path} is GGUF version {version:#x}; supported: 2 and 3 (little-endian). Convert the model again"
            )
        tensors, fields = cursor.number("<Q"), cursor.number("<Q")
        for _ in range(fields):
            key = cursor.string()
            if key in self.fields:
                raise ValueError(f"the key {shown(key)} occurs twice")
            self.fields[key] = cursor.value(GGUFValueType(cursor.number("<I")))
        table = []
        for _ in range(tensors):
            name = cursor.string()
            if (rank := cursor.number("<I")) > MOST_DIMENSIONS:
                raise ValueError(
                    f"tensor {shown(name)} has {rank:,} dimensions, at most {MOST_DIMENSIONS} are possible"
                )
            shape = tuple(cursor.number("<Q") for _ in range(rank))[::-1]
            kind = cursor.number("<I")
            table.append((name, shape, kind, cursor.number("<Q")))
        alignment = self.fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment = {alignment!r}")
        start = round_up(cursor.at, alignment)
        found = {}
        for name, shape, kind, offset in table:
            tensor = GGUFTensor(_kind(name, kind), shape or (1,), start + offset, part)
            if tensor.shape[-1] % GGML_QUANT_SIZES[tensor.kind][0]:
                raise ValueError(
                    f"{shown(name)}: rows of {tensor.shape[-1]} are no multiple of {tensor.kind.name} blocks"
                )
            if offset % alignment:
                raise ValueError(f"{shown(name)} begins at byte {offset:,}; needed: a multiple of {alignment}")
            if name in found:
                raise ValueError(f"the tensor {shown(name)} occurs twice")
            found[name] = tensor
        _check_overlaps(found)
        return found


def _check_overlaps(tensors: Mapping[str, GGUFTensor]) -> None:
    """Raise ValueError if two tensors share bytes."""
    end, last = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.nbytes and tensor.offset < end:
            raise ValueError(f"the tensors {shown(last)} and {shown(name)} overlap")
        end, last = tensor.offset + tensor.nbytes, name


class _PastEndError(Exception):
    """The header continues past the end of the file."""


class _Cursor:
    """Reads the header's values in order. Raises _PastEndError at the end of the file."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> memoryview:
        if self.at + count > len(self.data):
            raise _PastEndError(f"{count:,} bytes needed at {self.at:,}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        return str(self.take(self.number("<Q")), "utf-8")

    def value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind != GGUFValueType.ARRAY:
            return self.number(_SCALARS[kind])
        kind, count = GGUFValueType(self.number("<I")), self.number("<Q")
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            return np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if kind == GGUFValueType.ARRAY:
            raise ValueError("an array of arrays")
        return [self.string() for _ in range(count)]


def _kind(name: str, number: int) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType(number)
    except ValueError:
        raise ValueError(f"tensor {shown(name)} has GGML type {number}, which this release does not know") from None
