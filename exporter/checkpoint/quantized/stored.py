"""Reads parts of the tensors of safetensors files, also of types that numpy lacks: bfloat16 and the 8-bit floats."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes  # the import registers bfloat16 with numpy, which safetensors needs
import numpy as np
from numpy.typing import NDArray

from edgellama.artifact.safetensors import read_header

FLOATS = ("F32", "F16", "BF16")
_FLOAT8 = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}
FLOATS8 = tuple(_FLOAT8)
_TABLES = {code: np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32) for code, dtype in _FLOAT8.items()}


class StoredTensors:
    """The tensors of some safetensors files, by name.

    Args:
        path: the folder, for messages.
        readers: each file, opened by safetensors.safe_open, which has checked its header.
    """

    def __init__(self, path: Path, readers: Mapping[Path, Any]) -> None:
        self.path = path
        self._readers = readers
        self._home: dict[str, Path] = {}
        for file, reader in readers.items():
            self._home |= dict.fromkeys(reader.keys(), file)

    def __contains__(self, name: str) -> bool:
        return name in self._home

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._home)

    def dtype(self, name: str) -> str:
        """Return the format's code of a tensor's dtype: "F32", "I32", ..."""
        return str(self._slice(name).get_dtype())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._slice(name).get_shape())

    def read(self, name: str, *parts: slice) -> NDArray[Any]:
        """Return a part of a tensor, one slice for each of its first dimensions. Reads these bytes only.

        Floats of any size are returned as float32.
        """
        code = self.dtype(name)
        if code in _FLOAT8:  # the library cannot give them to numpy
            return _TABLES[code][np.asarray(self._bytes(name)[parts])]
        if not self.shape(name):
            values = self._readers[self._home[name]].get_tensor(name)
        else:
            values = self._slice(name)[parts or slice(None)]
        return float32(values) if code in FLOATS else values

    def _slice(self, name: str) -> Any:
        return self._readers[self._home[name]].get_slice(name)

    def _bytes(self, name: str) -> NDArray[np.uint8]:
        """Return a view of the file's bytes that hold a tensor of a 1-byte type, with the tensor's shape."""
        path = self._home[name]
        table, data = self._headers[path]
        shape = self.shape(name)
        begin, end = table[name]["data_offsets"]
        whole = np.memmap(path, np.uint8, "r", offset=data + begin, shape=(end - begin,)) if end > begin else None
        return (np.zeros(0, np.uint8) if whole is None else whole).reshape(shape)

    @cached_property
    def _headers(self) -> dict[Path, tuple[dict[str, Any], int]]:
        headers = {}
        for path in self._readers:
            with path.open("rb") as file:
                headers[path] = read_header(file)
        return headers


def float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return float32, float16 or bfloat16 values as float32."""
    if values.dtype != ml_dtypes.bfloat16:
        return values.astype(np.float32, copy=False)
    # A bfloat16 is the upper half of a float32. A shift in numpy is ten times faster than ml_dtypes' conversion.
    bits = np.empty(values.shape, np.uint32)
    np.left_shift(values.view(np.uint16), 16, out=bits, dtype=np.uint32, casting="unsafe")
    return bits.view(np.float32)
