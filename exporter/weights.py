"""weights.safetensors: the weights that graphs take as inputs, written one tensor at a time.

The safetensors library writes from a dictionary of every tensor; a model must not be in memory at once, so the file's
header (8 bytes of length, JSON, https://github.com/huggingface/safetensors#format) is written here. Tensors start at
multiples of 64 bytes from the start of the file, for the kernels' loads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.opsets import Input
from runtime.artifact import FileEntry

ALIGNMENT = 64
DTYPES = {"float32": "F32", "float16": "F16", "uint8": "U8", "int8": "I8", "int32": "I32"}


def write_weights(
    folder: Path,
    name: str,
    specs: Sequence[Input],
    value: Callable[[str], NDArray[np.generic]],
    done: Callable[[int], None] = lambda _: None,
) -> FileEntry:
    """Write folder/name with the tensors of `specs` in order; value(name) gives one. done(bytes) after each."""
    header: dict[str, dict[str, object]] = {}
    offset = 0
    for spec in specs:
        size = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        header[spec.name] = {
            "dtype": DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
        if size % ALIGNMENT:
            # The format allows no holes, so what fills one is a tensor too.
            filler = -size % ALIGNMENT
            header[f"{spec.name}.alignment"] = {
                "dtype": "U8",
                "shape": [filler],
                "data_offsets": [offset, offset + filler],
            }
            offset += filler
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    state = hashlib.sha256()
    with (folder / name).open("wb") as file:

        def write(data: bytes | memoryview) -> None:
            file.write(data)
            state.update(data)

        write(len(text).to_bytes(8, "little"))
        write(text)
        for spec in specs:
            array = np.ascontiguousarray(value(spec.name))
            if array.shape != spec.shape or array.dtype != spec.dtype:
                raise ValueError(f"{spec.name}: {array.dtype} {array.shape} for a {spec.dtype} of {spec.shape}")
            write(array.reshape(-1).view(np.uint8).data)
            write(bytes(-array.nbytes % ALIGNMENT))
            done(array.nbytes)
    return FileEntry(name, state.hexdigest(), (folder / name).stat().st_size)
