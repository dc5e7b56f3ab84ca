"""weights.safetensors: the weights that graphs take as inputs, written piece by piece.

The safetensors library writes from a dictionary of every tensor; a model must not be in memory at once, so the file's
header (8 bytes of length, JSON, https://github.com/huggingface/safetensors#format) is written here. Tensors start at
multiples of 64 bytes from the start of the file, for the kernels' loads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from exporter.checkpoint.row_blocks import Piece
from exporter.graph_spec import Input
from exporter.writing.tensor_stream import HashedFile, write_tensors
from runtime.artifact.manifest import FileEntry
from runtime.artifact.safetensors import ALIGNMENT

DTYPES = {"float32": "F32", "float16": "F16", "uint8": "U8", "int8": "I8", "int32": "I32"}


def write_weights(
    folder: Path,
    name: str,
    specs: Sequence[Input],
    pieces: Callable[[str], Iterable[Piece]],
    done: Callable[[int], None] = lambda _: None,
) -> FileEntry:
    """Write folder/name with the tensors of `specs` in order; the arguments are those of `write_tensors`."""
    with HashedFile(folder / name) as file:
        text = header(specs)
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        write_tensors(file, specs, pieces, ALIGNMENT, done)
    return FileEntry(name, file.sha256, file.size)


def header(specs: Sequence[Input]) -> bytes:
    """The length-less header of a file that holds these tensors in this order."""
    entries: dict[str, dict[str, object]] = {}
    offset = 0

    def add(name: str, dtype: str, shape: Sequence[int], size: int) -> None:
        nonlocal offset
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size

    for spec in specs:
        add(spec.name, DTYPES[spec.dtype], spec.shape, spec.nbytes)
        if filler := -spec.nbytes % ALIGNMENT:
            # The format allows no holes, so what fills one is a tensor too.
            add(f"{spec.name}.alignment", "U8", [filler], filler)
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-(len(text) + 8) % ALIGNMENT)
