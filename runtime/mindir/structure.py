"""Checks a graph file that the runtime cannot write again, because CANN compiled it.

This module bounds it: the structure, the sizes of tensors, the values that
nodes read, the names of the inputs, and external data. What CANN compiled is one block of bytes that nobody can check.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from pathlib import PurePosixPath

from ..artifact.files import find
from ..artifact.manifest import Artifact, Graph
from ..artifact.manifest_checks import MOST_ELEMENTS
from ..errors import UserError
from .reader import MalformedError, Message, Reader

CONVERT_AGAIN = "Convert the exported artifact again: `make convert ARTIFACT=...`"
BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2, 17: 8}  # of a data_type
MOST_BYTES = 1 << 40  # of one tensor
HIGHEST_RANK = 8
DYNAMIC = -1  # an axis that changes with the gear


def check_structure(artifact: Artifact, graph: Graph) -> None:
    """Check the structure of a graph file. Raises UserError, which names the part and the remedy."""
    path = artifact.file(graph.file)
    size = find(artifact.path, graph.file).st_size
    if size == 0:
        raise UserError(f"{path}: 0 bytes. {CONVERT_AGAIN}")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:  # the map closes with the last view of it
        _check_model(Reader(memoryview(mapped), unknown=True).read(), artifact, graph)
    except MalformedError as error:
        raise UserError(f"{path}: {error}. {CONVERT_AGAIN}") from error


def _check_model(model: Message, artifact: Artifact, graph: Graph) -> None:
    graphs = [*model.messages("graph"), *model.messages("functions")]
    if not any(path == "graph" for path, _ in graphs):
        raise MalformedError("it has no graph")
    if model.numbers("little_endian") not in ([1], []):
        raise MalformedError("little_endian is 0; needed: 1")
    names = {name for _, primitive in model.messages("primitives") for name in primitive.texts("name")}
    known = {text for _, function in graphs for text in function.texts("name")}
    _check_inputs(next(message for path, message in graphs if path == "graph"), graph)
    for path, message in graphs:
        _check_nodes(path, message, names, known)
    folder = PurePosixPath(graph.file).parent
    files = {entry.file: find(artifact.path, entry.file).st_size for entry in graph.data}
    for item in model.walk():
        if isinstance(item.value, Message):
            tensor = item.value
            if any(field.name == "dims" for field in tensor.items) or tensor.all("data_type"):
                _check_tensor(item.path, tensor)
            for where, external in tensor.messages("external_data"):
                _check_external(where, external, folder, files)


def _check_nodes(path: str, graph: Message, primitives: set[str], functions: set[str]) -> None:
    """Raise MalformedError unless each node has a known operator, and reads values that were defined before."""
    defined = functions | {""}
    for field in ("input", "parameter", "map_parameter"):
        defined |= {name for _, value in graph.messages(field) for name in value.texts("name")}
    for where, node in graph.messages("node"):
        operator = node.text("op_type")
        if operator.startswith("REF::") and operator.removeprefix("REF::") not in primitives | functions:
            raise MalformedError(f"{where}.op_type is {operator[:80]!r}, which is no primitive of the file")
        for name in node.texts("input"):
            if name not in defined:
                raise MalformedError(f"{where} reads {name[:80]!r}, which no node before it computes")
        outputs = node.texts("output")
        if not outputs:
            raise MalformedError(f"{where} has no output")
        defined |= set(outputs)
    for where, output in graph.messages("output"):
        if output.text("name") not in defined:
            raise MalformedError(f"{where}.name is {output.text('name')[:80]!r}, which no node computes")


def _check_inputs(graph: Message, listed: Graph) -> None:
    found = sorted(value.text("name") for _, value in graph.messages("input"))
    needed = sorted(spec.name for spec in listed.inputs)
    if found != needed:
        differing = sorted(set(found) ^ set(needed)) or found
        raise MalformedError(f"its inputs are not those of manifest.json: {differing[0][:80]!r}")


def _check_tensor(path: str, tensor: Message) -> None:
    """Raise MalformedError for a negative or huge shape, an unknown dtype, or data of another size than both need."""
    shape, dtype = tensor.numbers("dims"), tensor.number("data_type")
    if len(shape) > HIGHEST_RANK or any(size < DYNAMIC or size >= MOST_BYTES for size in shape):
        raise MalformedError(f"{path}.dims is {str(shape)[:80]}; needed: at most {HIGHEST_RANK} sizes, -1 or more")
    count = math.prod(size for size in shape if size != DYNAMIC)
    total = count * BYTES.get(dtype, 1)
    if total >= MOST_BYTES:
        raise MalformedError(f"{path} has {total:,} bytes; at most {MOST_BYTES:,} are read")
    for item in tensor.all("raw_data"):
        size = len(item.value) if isinstance(item.value, memoryview) else 0
        if dtype in BYTES and size not in (0, total):
            raise MalformedError(f"{path}.raw_data has {size:,} bytes; its dtype and shape need {total:,}")
        if size == 0 and dtype not in BYTES:
            raise MalformedError(f"{path}.data_type is {dtype}, which is not known")
    if not tensor.all("raw_data") and count >= MOST_ELEMENTS and not tensor.all("external_data"):
        raise MalformedError(f"{path} has {count:,} elements; needed: fewer than {MOST_ELEMENTS:,}")


def _check_external(path: str, external: Message, folder: PurePosixPath, files: Mapping[str, int]) -> None:
    location = external.text("location")
    offset, length = external.number("offset"), external.number("length")
    parts = PurePosixPath(location).parts
    if not parts or location.startswith("/") or ".." in parts or "\\" in location or "\0" in location:
        raise MalformedError(f"{path}.location is {location[:80]!r}; needed: a path inside the artifact folder")
    name = str(folder / location)
    if name not in files:
        raise MalformedError(
            f"{path}.location is {location[:80]!r}, which manifest.json does not list as data of the graph"
        )
    if offset < 0 or length < 0 or offset + length > files[name]:
        raise MalformedError(f"{path}: bytes {offset:,} to {offset + length:,} of a file of {files[name]:,} bytes")
