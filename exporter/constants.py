"""Weights as constants of a graph, in a data file beside it: written one tensor at a time, in the graph's order.

The layout is the one MindSpore writes for models over 1 GB: a header of 64 bytes whose first byte says little-endian,
then each tensor, padded to 64 bytes; the graph refers to (location, offset, length).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.artifact import FileEntry

Model = Any  # mindspore.train.mind_ir_pb2.ModelProto
ALIGNMENT = 64
HEADER = b"\x01" + bytes(ALIGNMENT - 1)


def write_constants(
    model: Model,
    folder: Path,
    location: str,
    value: Callable[[str], NDArray[np.generic]],
    done: Callable[[int], None] = lambda _: None,
) -> FileEntry:
    """Write every parameter of `model` to folder/location and let the model refer to it there.

    value(name) gives one tensor; its shape and dtype must be the parameter's. done(bytes) is called after each.
    Returns the file's entry, `location` relative to `folder`.
    """
    state, offset = hashlib.sha256(HEADER), len(HEADER)
    path = folder / location
    with path.open("wb") as file:
        file.write(HEADER)
        for parameter in model.graph.parameter:
            array = np.ascontiguousarray(value(parameter.name))
            if list(array.shape) != list(parameter.dims):
                raise ValueError(f"{parameter.name}: {array.shape} for a parameter of shape {list(parameter.dims)}")
            data = array.reshape(-1).view(np.uint8).data
            parameter.external_data.location = path.name  # relative to the graph file
            parameter.external_data.offset = offset
            parameter.external_data.length = len(data)
            padding = bytes(-len(data) % ALIGNMENT)
            for piece in (data, padding):
                file.write(piece)
                state.update(piece)
            offset += len(data) + len(padding)
            done(len(data))
    return FileEntry(location, state.hexdigest(), offset)
