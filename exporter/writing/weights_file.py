"""Writes weights.safetensors: the weights that graphs take as inputs.

The safetensors library writes from a dictionary of all tensors, and a model must not be in memory at once. So this
module writes the file itself, as a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from edgellama.artifact.manifest import FileEntry, TensorSpec
from edgellama.artifact.safetensors import ALIGNMENT, encode_header

from ..checkpoint.row_blocks import Piece
from .tensor_stream import HashedFile, write_tensors


def write_weights(
    folder: Path,
    name: str,
    specs: Sequence[TensorSpec],
    pieces: Callable[[str], Iterable[Piece]],
    done: Callable[[int], None] = lambda _: None,
) -> FileEntry:
    """Write folder/name with the tensors of `specs`, in order. Return its entry.

    Args:
        specs, pieces, done: as in `write_tensors`.
    """
    with HashedFile(folder / name) as file:
        file.write(encode_header(specs, alignment=ALIGNMENT))
        write_tensors(file, specs, pieces, ALIGNMENT, done)
    return FileEntry(name, file.sha256, file.size)
