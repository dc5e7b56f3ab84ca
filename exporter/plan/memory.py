"""Estimates the memory that an artifact needs at run time, from its manifest and graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgellama.artifact.manifest import Manifest
from edgellama.artifact.sizes import cache_bytes
from edgellama.backend.ascend.requirements import Needed
from edgellama.engine.memory import CONSTANT_COPIES
from edgellama.kernels.ascend.chips import CHIPS

from ..mindir.graph import MindIRGraph, Value

COPIES_NOTE = "added by MindSpore Lite while it loads: copies of the constants on a host, buffers on a device"
LIBRARIES = 100_000_000  # bytes of a process that has loaded a graph of a few kB
VIEWS = ("Reshape", "TupleGetItem", "MakeTuple", "Depend")  # their results share the memory of their inputs


@dataclass(frozen=True)
class Memory:
    """Bytes of each kind of memory.

    Attributes:
        weights: as stored
        copies: added by loading (load_copies)
    """

    weights: int
    copies: int
    cache: int
    activations: int
    libraries: int

    @property
    def total(self) -> int:
        return self.weights + self.copies + self.cache + self.activations + self.libraries


def run_time_memory(manifest: Manifest, graphs: Mapping[str, MindIRGraph]) -> Memory:
    """Return the peak memory of a process with this artifact, within about 10 % of measurements on a host CPU.

    Args:
        graphs: the graphs of the manifest, by file name
    """
    constants = sum(entry.bytes for graph in manifest.graphs for entry in graph.data)
    outside = manifest.weights.bytes if manifest.weights else 0
    cache = cache_bytes(manifest)
    return Memory(
        weights=constants + outside,
        copies=load_copies(manifest.target, constants, cache),
        cache=cache,
        activations=max(peak_activations(graphs[g.file], manifest.batch, g.bucket) for g in manifest.graphs),
        libraries=LIBRARIES,
    )


def load_copies(target: str, constants: int, cache: int) -> int:
    """Return the bytes beside weights and cache: on a host the copies of constants (CONSTANT_COPIES), on a device the
    buffers that runtime.backend.ascend.requirements counts before it loads anything."""
    if target == "portable":
        return int(constants * (CONSTANT_COPIES - 1))
    chip = CHIPS.get(target)
    return Needed.of(constants, cache).on_device(chip) - constants - cache if chip else 0


def peak_activations(graph: MindIRGraph, rows: int = 1, tokens: int = 1) -> int:
    """Return the peak size of the intermediate results that are alive at the same time, in bytes.

    The operations run in the graph's order, at its traced bucket.

    Args:
        rows, tokens: the size of a dynamic token axis
    """
    home: dict[str, set[str]] = {}  # a value -> the operations whose memory it uses
    last_use: dict[str, int] = {}
    for at, op in enumerate(graph.operations):
        sources = set().union(*(home.get(name, set()) for name in op.inputs))
        home[op.name] = sources if op.operator in VIEWS else {op.name}
        for source in sources:
            last_use[source] = at
    for source in home.get(graph.output, set()):
        last_use[source] = len(graph.operations)

    ends: dict[int, list[str]] = {}
    for name, at in last_use.items():
        ends.setdefault(at, []).append(name)
    # A custom operator's second and later results are caches, which it writes in place.
    own = {op.name: op.results[:1] if op.operator == "Custom" else op.results for op in graph.operations}
    sizes = {name: sum(_nbytes(value, rows, tokens) for value in values) for name, values in own.items()}
    alive = peak = 0
    for at, op in enumerate(graph.operations):
        if home[op.name] == {op.name}:
            alive += sizes[op.name]
            peak = max(peak, alive)
        alive -= sum(sizes[name] for name in ends.get(at, ()))
    return peak


def _nbytes(value: Value, rows: int, tokens: int) -> int:
    """A dynamic first dimension is the tokens of all rows [B * S, ...], a later one those of a row [B, S, ...]."""
    if -1 not in value.shape:
        return value.nbytes
    unknown = rows * tokens if value.shape[0] == -1 else tokens
    return -value.nbytes * unknown
