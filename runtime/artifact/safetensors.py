"""Read weights.safetensors through a memory map: all graphs and processes share one copy in memory.

The runtime does not depend on the safetensors library. The format is a header (8 bytes of size, then JSON) followed by
the tensors: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import mmap
from itertools import pairwise
from pathlib import Path

import numpy as np

from runtime.artifact.step_graph import STRETCH
from runtime.errors import UserError

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "F16": "float16",
    "BF16": "uint16",  # the bits: numpy has no bfloat16
    "I32": "int32",
    "F32": "float32",
    "I64": "int64",
}
ALIGNMENT = 64  # each tensor begins at a multiple of so many bytes: the kernels use aligned loads
REMEDY = "Copy the whole folder again or export again"


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
        size = int.from_bytes(self._map[:8], "little")
        self._data = 8 + size
        try:
            self._header: dict[str, dict] = json.loads(self._map[8 : self._data])
        except ValueError as error:
            raise UserError(f"{path}: its header is not valid JSON ({error}). {remedy}") from error
        if not isinstance(self._header, dict):
            raise UserError(f"{path}: its header is a JSON {type(self._header).__name__}, not an object. {remedy}")

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
