"""The artifact folder: manifest.json, and the checks that tell a whole, untouched, runnable one from any other.

The exporter fills these dataclasses and calls `write_manifest`; the runtime calls `Artifact.open`. Both sides share
this file, so the schema is said once. The manifest lists every graph and weight file with its size and hash, and
carries a digest of itself, so an edited manifest, a cut file and a file of another export are told apart from a good
artifact before anything native reads them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from runtime.artifact.json_dataclass import decode
from runtime.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CACHE_POLICIES = ("in_place", "returned")
DTYPE_BYTES = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "float16": 2, "int32": 4, "float32": 4, "int64": 8}


@dataclass(frozen=True)
class Source:
    """Where the weights came from: the name asked for, the place it was found, its revision and its licence.

    seed: of random weights, which have the network's sizes and no meaning; None where they are a checkpoint's."""

    model: str
    origin: str
    revision: str | None
    licence: str | None
    seed: int | None = None


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; `shape` is the traced one (at the graph's `bucket`)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _require(self.dtype in DTYPE_BYTES, f"{self.name}.dtype", self.dtype, "one of " + ", ".join(DTYPE_BYTES))
        _require(all(n > 0 for n in self.shape), f"{self.name}.shape", self.shape, "positive sizes")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class FileEntry:
    """A file of the artifact: path relative to the folder, SHA-256 in hex, size in bytes."""

    file: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        _require_inside("file", self.file)


@dataclass(frozen=True)
class Graph:
    """One MindIR file. `bucket` is the token count it was traced at, `buckets` those it serves (by Model.resize where
    there are several), `data` the external data files that belong to it (none when constants lie in the graph)."""

    file: str
    sha256: str
    bytes: int
    bucket: int
    buckets: tuple[int, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    data: tuple[FileEntry, ...] = ()

    def __post_init__(self) -> None:
        _require_inside("graphs.file", self.file)
        _require(self.bucket in self.buckets, "graphs.bucket", self.bucket, f"one of its buckets {self.buckets}")


@dataclass(frozen=True)
class CacheSpec:
    """The KV cache: per layer one k and one v of `shape` [B, G, C, D]. policy "in_place": the graph writes the rows of
    this call into them; "returned": the graph returns those rows and the runtime writes them."""

    dtype: str
    policy: str
    layers: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _require(self.policy in CACHE_POLICIES, "cache.policy", self.policy, "one of " + ", ".join(CACHE_POLICIES))
        _require(self.dtype in DTYPE_BYTES, "cache.dtype", self.dtype, "one of " + ", ".join(DTYPE_BYTES))
        _require(len(self.shape) == 4 and min(self.shape) > 0, "cache.shape", self.shape, "[B, G, C, D], all positive")
        _require(self.layers > 0, "cache.layers", self.layers, "at least 1")

    @property
    def nbytes(self) -> int:
        return 2 * self.layers * math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Parity:
    """What export measured against `reference`: max |d logits|, the same relative to the range of the reference's
    logits, the share of equal argmax, and the number of logit rows compared."""

    max_abs_logit_error: float
    relative: float
    top1_agreement: float
    steps: int
    reference: str


@dataclass(frozen=True)
class Conversion:
    """For which chip (socVersion) and with which gears CANN compiled the graph (Ascend only), and the versions."""

    soc: str
    buckets: tuple[int, ...]
    cann: str
    mindspore_lite: str


@dataclass(frozen=True)
class Manifest:
    """manifest.json. Field names are the file's keys; `digest` is added on writing and checked on reading."""

    name: str
    source: Source
    config: dict[str, Any]  # the Hugging Face config
    target: str
    opset: str
    weights_format: str
    batch: int
    context: int
    buckets: tuple[int, ...]
    graphs: tuple[Graph, ...]
    weights: FileEntry | None
    cache: CacheSpec
    eos_token_id: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    tools: dict[str, str]
    kernel_abi: int | None
    parity: Parity | None
    converted: Conversion | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        _require(self.batch >= 1, "batch", self.batch, "at least 1")
        buckets = self.buckets
        _require(
            buckets[:1] == (1,) and buckets == tuple(sorted(set(buckets))), "buckets", buckets, "increasing, from 1"
        )
        _require(buckets[-1] <= self.context, "buckets", buckets, f"at most the context, {self.context}")
        _require(self.cache.shape[0] == self.batch, "cache.shape", self.cache.shape, f"{self.batch} rows (batch)")
        _require(
            self.cache.shape[2] == self.context, "cache.shape", self.cache.shape, f"capacity {self.context} (context)"
        )
        served = sorted(bucket for graph in self.graphs for bucket in graph.buckets)
        _require(tuple(served) == buckets, "graphs.buckets", served, f"each of {list(buckets)} once")

    def graph_for(self, bucket: int) -> Graph:
        """The graph that serves this bucket."""
        return next(graph for graph in self.graphs if bucket in graph.buckets)

    def files(self) -> Iterator[FileEntry]:
        """Every graph, graph data and weight file."""
        for graph in self.graphs:
            yield FileEntry(graph.file, graph.sha256, graph.bytes)
            yield from graph.data
        if self.weights is not None:
            yield self.weights

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that manifest.json holds, digest included."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists, as they will be on disk
        return {**values, "digest": digest(values)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Check version and digest, then every field. Raises UserError: the field, its value and what is needed."""
        version = values.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool):
            raise UserError(f"{MANIFEST}: format_version is {version!r}; a whole number is needed. Export again")
        if version > FORMAT_VERSION:
            raise UserError(
                f"{MANIFEST}: format_version is {version}; this runtime reads up to {FORMAT_VERSION}. "
                "Update the runtime, or export again with this release"
            )
        body = {key: value for key, value in values.items() if key != "digest"}
        found, needed = values.get("digest"), digest(body)
        if found != needed:
            raise UserError(
                f"{MANIFEST}: digest is {str(found)[:12]}, its contents hash to {needed[:12]}: "
                "it was edited after export. Restore it or export again"
            )
        try:
            manifest = decode(cls, body)
        except UserError as error:
            raise UserError(f"{MANIFEST}: {error}. Export again with this release") from error
        return manifest


@dataclass(frozen=True)
class Artifact:
    """An artifact folder whose manifest and files passed the checks of `open`."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, check_data: bool = False) -> Artifact:
        """Read and check an artifact folder.

        The manifest's version, digest and fields, every listed file's presence and size, and the hashes of the graph
        files, which native code will parse. Bulk data (weights, graph data) is hashed only with `check_data`.
        Raises UserError for anything that does not fit.
        """
        path = Path(path)
        manifest = read_manifest(path)
        artifact = cls(path, manifest)
        for entry in manifest.files():
            artifact._check_size(entry)
        graphs = {graph.file for graph in manifest.graphs}
        for entry in manifest.files():
            if check_data or entry.file in graphs:
                artifact._check_hash(entry)
        return artifact

    def file(self, name: str) -> Path:
        """Path of a file of the artifact."""
        return self.path / name

    def _check_size(self, entry: FileEntry) -> None:
        path = self.file(entry.file)
        if not path.is_file():
            raise UserError(f"{path}: missing, but listed in {MANIFEST}. Copy the whole folder again or export again")
        size = path.stat().st_size
        if size != entry.bytes:
            raise UserError(
                f"{path}: {size:,} bytes; {MANIFEST} says {entry.bytes:,}. "
                "The file was cut or replaced: copy the whole folder again or export again"
            )

    def _check_hash(self, entry: FileEntry) -> None:
        path = self.file(entry.file)
        found = sha256_file(path)
        if found != entry.sha256:
            raise UserError(
                f"{path}: SHA-256 {found[:12]}; {MANIFEST} says {entry.sha256[:12]}. "
                "The file was changed after export: copy the whole folder again or export again"
            )


def read_manifest(folder: Path) -> Manifest:
    """manifest.json of a folder, checked by itself (no other file is looked at)."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Export one with `make export MODEL=...`")
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no {MANIFEST}, so it is not an exported artifact. "
            f"Where it is a checkpoint: `make export MODEL={folder}`"
        ) from error
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}). Restore it or export again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a JSON {type(values).__name__}, an object is needed. Restore it or export again")
    return Manifest.from_dict(values)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json (same manifest, same bytes)."""
    text = json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def file_entry(folder: Path, name: str) -> FileEntry:
    """Size and hash of folder/name, for the exporter."""
    path = folder / name
    return FileEntry(name, sha256_file(path), path.stat().st_size)


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON (sorted keys, no spaces, UTF-8) of a manifest without its digest."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file in hex, read in pieces."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            state.update(piece)
    return state.hexdigest()


def _require(condition: bool, field: str, found: object, needed: str) -> None:
    if not condition:
        raise UserError(f"{field} is {found!r}; needed: {needed}")


def _require_inside(field: str, name: str) -> None:
    parts = PurePosixPath(name).parts
    inside = bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name
    _require(inside, field, name, "a path inside the artifact folder")
