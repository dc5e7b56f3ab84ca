"""Writes the weights of a graph as constants, into a data file beside the graph file.

The layout is that of MindSpore for models over 1 GB: a header of 64 bytes, whose first byte says little-endian, then
the tensors in the graph's order, each padded to 64 bytes. The graph refers to a tensor by (location, offset, length).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edgellama.artifact.manifest import FileEntry
from edgellama.mindir.builder import ALIGNMENT, HEADER

from ..checkpoint.row_blocks import Piece
from ..mindir.lower import parameters
from .tensor_stream import HashedFile, write_tensors

Model = Any  # mindspore.train.mind_ir_pb2.ModelProto


def write_constants(
    model: Model,
    folder: Path,
    location: str,
    pieces: Callable[[str], Iterable[Piece]],
    done: Callable[[int], None] = lambda _: None,
) -> FileEntry:
    """Write every parameter of `model` to folder/location, and make the model refer to it there.

    Args:
        pieces, done: as in `write_tensors`.

    Returns the entry of the file, with its path relative to `folder`.
    """
    path = folder / location
    with HashedFile(path) as file:
        file.write(HEADER)
        places = write_tensors(file, parameters(model), pieces, ALIGNMENT, done)
    for parameter in model.graph.parameter:
        parameter.external_data.location = path.name  # relative to the graph file
        parameter.external_data.offset, parameter.external_data.length = places[parameter.name]
    return FileEntry(location, file.sha256, file.size)
