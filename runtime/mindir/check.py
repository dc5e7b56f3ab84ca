"""Checks graph files before native code reads them.

MindSpore Lite trusts a graph file: a hostile one makes its parser crash, or read files outside the artifact. So the
runtime loads what an export writes, and nothing else. The manifest determines each byte of a graph file that `export`
wrote: the runtime writes the same file again in memory and compares. It cannot write again what CANN has compiled
(`convert`). There the structure, the sizes and the
external data are checked (`check_structure`), and the file is loaded in a child process first (backend/trial.py). Op
sets and the readers are imported where they are needed, because every load imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ..artifact.files import find
from ..artifact.json_reader import read_bytes
from ..artifact.manifest import Artifact, Graph, Manifest, TensorSpec
from ..artifact.manifest_checks import MOST_ELEMENTS
from ..errors import UserError
from .builder import HEADER, Builder, data_bytes
from .network import Network

if TYPE_CHECKING:
    from .reader import Message

LARGEST = 64 << 20  # bytes of a graph file without weights; 80 layers of the portable op set take 2 MB
REMEDY = "The runtime loads only what an export writes. Export again with this release"


def check_graphs(artifact: Artifact) -> bool:
    """Check every graph file of an artifact.

    Returns:
        Whether the files are proven to be what an export writes. If not, load them in a child process first.

    Raises:
        UserError: a file is not what this release exports for the manifest; the message names the first field that
            differs. If the runtime cannot write the file again: a part of the file is malformed, or leads out of the
            folder.
    """
    manifest = artifact.manifest
    for graph in manifest.graphs:
        path = artifact.file(graph.file)
        if path.is_symlink():  # MindSpore Lite may look for the data beside the target of the link
            raise UserError(f"{path}: a link; needed: the file itself. Copy it into the folder")
    if manifest.converted is not None and manifest.opset != "ascend":
        raise UserError(
            f"{artifact.path}: op set is {manifest.opset!r}, and manifest.json says that CANN compiled it; only "
            f"artifacts of Ascend targets are converted. {REMEDY}"
        )
    network = None if manifest.converted is not None else Network.of(manifest)
    if network is None:
        from .structure import check_structure

        for graph in manifest.graphs:
            check_structure(artifact, graph)
        return False
    for graph in manifest.graphs:
        path = artifact.file(graph.file)
        find(artifact.path, graph.file)
        needed = graph_bytes(manifest, network, graph, str(path))
        try:
            found = read_bytes(path, LARGEST)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{path}: {reason}. {REMEDY}") from error
        if found != needed:
            raise UserError(f"{path}: {difference(found, needed)}. {REMEDY}")
        for entry in graph.data:
            with artifact.file(entry.file).open("rb") as file:
                if file.read(len(HEADER)) != HEADER:
                    raise UserError(f"{artifact.file(entry.file)}: its first {len(HEADER)} bytes differ. {REMEDY}")
    return True


def graph_bytes(manifest: Manifest, network: Network, graph: Graph, where: str) -> bytes:
    """Return the graph file that an export writes.

    Args:
        graph: its entry in the manifest.
        where: begins an error message.

    Raises:
        UserError: the entry contradicts the network: its inputs, its data file, or a tensor that is too large.
    """
    builder = Builder()
    if manifest.opset == "cpu":
        from . import cpu

        output = cpu.build(builder, network, graph.bucket, manifest.kernel_abi or 0)
    elif manifest.opset == "portable":
        from . import portable

        output = portable.build(builder, network, graph.bucket)
    else:
        from . import ascend

        output = ascend.build(builder, network)
    inside = manifest.opset != "cpu"  # the weights are constants in a data file
    location = _data_file(graph, data_bytes(builder.weights), where) if inside else None
    made = builder.encode(output, location, optimized=not inside)
    inputs = [*builder.inputs, *([] if inside else builder.weights)]
    _compare_inputs([_traced(spec, graph.bucket) for spec in inputs], graph.inputs, where)
    name, elements = builder.largest(graph.bucket)
    if elements >= MOST_ELEMENTS:
        raise UserError(
            f"{where}: {name} has {elements:,} elements; MindSpore Lite takes fewer than {MOST_ELEMENTS:,} in one "
            "tensor. Export with a smaller CONTEXT, BATCH or BUCKETS"
        )
    return made


def difference(found: bytes, needed: bytes) -> str:
    """Return the first difference of two graph files in words: the field, the value found and the value needed."""
    from .reader import MalformedError, Reader

    try:
        ours, theirs = Reader(memoryview(needed)).read(), Reader(memoryview(found)).read()
    except MalformedError as error:
        return str(error)
    return _first_difference(theirs, ours) or "its fields are in another order than an export writes"


def _first_difference(found: Message, needed: Message) -> str | None:
    from .reader import Message

    have, want = ({item.path: item.value for item in message.items} for message in (found, needed))
    for path, wanted in want.items():
        if path not in have:
            return f"{path} is missing"
        value = have[path]
        if isinstance(value, Message) and isinstance(wanted, Message):
            if text := _first_difference(value, wanted):
                return text
        elif _plain(value) != _plain(wanted):
            return f"{path} is {_short(value)}; needed: {_short(wanted)}"
    surplus = next((path for path in have if path not in want), None)
    return f"{surplus} is surplus" if surplus else None


def _plain(value: object) -> str:
    """Return a value as text, which is equal for equal values, NaN included."""
    return repr(bytes(value)) if isinstance(value, memoryview) else repr(value)


def _short(value: object) -> str:
    text = _plain(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _data_file(graph: Graph, size: int, where: str) -> str:
    """Return the name of the graph's data file. Raises UserError unless it lies beside the graph, with `size` bytes."""
    beside = [x for x in graph.data if PurePosixPath(x.file).parent == PurePosixPath(graph.file).parent]
    if len(graph.data) != 1 or len(beside) != 1:
        raise UserError(f"{where}: manifest.json lists {len(graph.data)} data files; needed: one beside it. {REMEDY}")
    if beside[0].bytes != size:
        raise UserError(f"{where}: its data file has {beside[0].bytes:,} bytes; the weights take {size:,}. {REMEDY}")
    return PurePosixPath(beside[0].file).name


def _traced(spec: TensorSpec, bucket: int) -> TensorSpec:
    """Return an input as the manifest lists it: at the traced bucket."""
    if -1 not in spec.shape:
        return spec
    return replace(spec, shape=tuple(bucket if size == -1 else size for size in spec.shape))


def _compare_inputs(needed: Sequence[TensorSpec], found: Sequence[TensorSpec], where: str) -> None:
    for mine, listed in zip(needed, found, strict=False):
        if mine != listed:
            raise UserError(
                f"{where}: manifest.json lists the input {listed.name[:80]} {listed.dtype} {list(listed.shape)}; "
                f"the network takes {mine.name} {mine.dtype} {list(mine.shape)}. {REMEDY}"
            )
    if len(needed) != len(found):
        raise UserError(f"{where}: manifest.json lists {len(found)} inputs; the network takes {len(needed)}. {REMEDY}")
