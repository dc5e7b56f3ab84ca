"""Read weights.safetensors through a memory map: all graphs and processes share one copy in memory.

The runtime does not depend on the safetensors library. The format is a header (8 bytes of size, then JSON) followed by
the tensors: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import UserError
from .manifest import TensorSpec
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
LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
ALIGNMENT = 64  # each tensor begins at a multiple of so many bytes: the kernels use aligned loads
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
            add(f"{tensor.name}.alignment", "U8", [filler], filler)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % max(alignment, 8))
    return len(text).to_bytes(8, "little") + text


def read_header(file: Readable) -> tuple[dict[str, Any], int]:
    """Read the header at the start of a file. Return it, and the offset of the first tensor's bytes.

    Raises ValueError, which says what the header is, if it is not valid.
    """
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(min(length, LARGEST_HEADER)))  # a damaged file gives any length
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise ValueError(f"a JSON {type(header).__name__}, not an object")
    return header, 8 + length


class MappedWeights:
    """The tensors of a safetensors file as read-only views of the mapped file."""

    def __init__(self, path: Path, remedy: str = REMEDY) -> None:
        """Map the file and check its header. Raises UserError, which ends with `remedy`, if the file is damaged."""
        self.path = path
        self._remedy = remedy
        with path.open("rb") as file:
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:  # an empty file
                raise UserError(f"{path}: 0 bytes. {remedy}") from error
        try:
            self._header, self._data = read_header(self._map)
        except ValueError as error:
            raise UserError(f"{path}: its header is {error}. {remedy}") from error

    @property
    def metadata(self) -> dict[str, str]:
        """The writer's metadata: the `__metadata__` of the header, empty without one."""
        metadata = self._header.get("__metadata__")
        return metadata if isinstance(metadata, dict) else {}

    def __contains__(self, name: str) -> bool:
        return name in self._header

    def array(self, name: str) -> np.ndarray:
        """Return a view of the tensor with this name. Reading the view reads the file.

        A name such as `model.layers.0.*` returns the range of the file that holds all tensors below that name, as uint8
        [bytes]. Raises UserError if the tensor is missing, or its range is not valid.
        """
        if name.endswith(STRETCH):
            return self._stretch(name)
        if name not in self._header:
            raise UserError(f"{self.path}: has no tensor {name!r}, which the graph needs. {self._remedy}")
        entry = self._header[name]
        try:
            begin, end = entry["data_offsets"]
            dtype = np.dtype(DTYPES[entry["dtype"]])
            count = math.prod(entry["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}: its header has no valid entry for {name!r}. {self._remedy}") from error
        if count * dtype.itemsize != end - begin or self._data + end > len(self._map):
            raise UserError(f"{self.path}: tensor {name!r} ends outside the file or has a wrong size. {self._remedy}")
        return np.frombuffer(self._map, dtype, count, self._data + begin).reshape(entry["shape"])

    def _stretch(self, name: str) -> np.ndarray:
        below = name.removesuffix("*")
        places = sorted(entry["data_offsets"] for key, entry in self._header.items() if key.startswith(below))
        if not places or any(end != begin for (_, end), (begin, _) in pairwise(places)):
            raise UserError(
                f"{self.path}: the tensors {name!r} are not one contiguous range, which the graph needs. {REMEDY}"
            )
        begin, end = places[0][0], places[-1][1]
        if self._data + end > len(self._map):
            raise UserError(f"{self.path}: the tensors {name!r} end outside the file. {REMEDY}")
        return np.frombuffer(self._map, np.uint8, end - begin, self._data + begin)
