"""Read a GGUF file: metadata, tensor table, and each tensor's blocks through a memory map.

The layout follows the GGUF specification, versions 2 and 3 (little-endian). Block sizes and dequantization come from
the `gguf` package. Its reader is not used, because it keeps one numpy array per token and per merge (10 s and 1 GB for
a vocabulary of 128,000).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from numpy.typing import NDArray

from edgellama.errors import UserError
from edgellama.kernels.weight_format import round_up

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


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor. `shape`: in numpy's order, the reverse of the file's. `offset`: in bytes from the file's start."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, which is a whole number of blocks."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * size

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes


class GGUFFile:
    """A memory-mapped GGUF file.

    Attributes:
        fields: metadata by key: numbers, strings, lists of strings, numpy arrays.
        tensors: the tensor table by name.

    Raises UserError if the file is not GGUF, has another version, is damaged, or is shorter than its header states.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.stat().st_size:
            raise UserError(f"{path} is empty; download it again")
        self._data = np.memmap(path, dtype=np.uint8, mode="r")
        self.fields: dict[str, Any] = {}
        self.tensors: dict[str, GGUFTensor] = {}
        cursor = _Cursor(self._data.data)
        if bytes(self._data[:4]) != b"GGUF":
            raise UserError(f"{path} is not a GGUF file (it begins with {bytes(self._data[:4])!r}, not with b'GGUF')")
        try:
            self._read_header(cursor)
        except (_PastEndError, UnicodeDecodeError, ValueError) as error:
            raise UserError(
                f"{path} ({self.size:,} bytes) is truncated or damaged: its header is unreadable ({error}); "
                "download it again"
            ) from error
        needed = max((t.offset + t.nbytes for t in self.tensors.values()), default=0)
        if needed > self.size:
            raise UserError(
                f"{path} is truncated: it has {self.size:,} bytes, its header describes {needed:,}; download it again"
            )

    @property
    def size(self) -> int:
        return len(self._data)

    def header_size(self) -> int:
        """Return the number of bytes before the first tensor."""
        return min((t.offset for t in self.tensors.values()), default=self.size)

    def blocks(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes as stored, uint8 [rows, bytes per row]: a view of the memory map.

        A vector has one row.
        """
        tensor = self.tensors[name]
        flat = self._data[tensor.offset : tensor.offset + tensor.nbytes]
        return np.asarray(flat).reshape(-1, tensor.row_bytes)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return a tensor dequantized to float32, in its numpy shape: a copy."""
        info = self.tensors[name]
        return self.dequantized(name, self.blocks(name)).reshape(info.shape)

    def dequantized(self, name: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Dequantize rows of the tensor's blocks to float32 [rows, columns]: a copy."""
        values = dequantize(blocks, self.tensors[name].kind)
        return values if values.flags.writeable else values.copy()  # for F32, dequantize returns a view

    def _read_header(self, cursor: _Cursor) -> None:
        cursor.take(4)
        version = cursor.number("<I")
        if version not in (2, 3):
            raise UserError(f"{self.path} is GGUF version {version:#x}; supported: 2 and 3 (little-endian)")
        tensors, fields = cursor.number("<Q"), cursor.number("<Q")
        for _ in range(fields):
            key = cursor.string()
            self.fields[key] = cursor.value(GGUFValueType(cursor.number("<I")))
        table = []
        for _ in range(tensors):
            name = cursor.string()
            shape = tuple(cursor.number("<Q") for _ in range(cursor.number("<I")))[::-1]
            kind = cursor.number("<I")
            table.append((name, shape, kind, cursor.number("<Q")))
        alignment = self.fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment = {alignment!r}")
        start = round_up(cursor.at, alignment)
        for name, shape, kind, offset in table:
            tensor = GGUFTensor(_kind(name, kind), shape or (1,), start + offset)
            if tensor.shape[-1] % GGML_QUANT_SIZES[tensor.kind][0]:
                raise ValueError(f"{name}: rows of {tensor.shape[-1]} do not divide into {tensor.kind.name} blocks")
            self.tensors[name] = tensor


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
        raise UserError(f"tensor {name} has GGML type {number}, which the gguf package does not know") from None
