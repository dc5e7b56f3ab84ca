"""manifest.json: its schema, and the checks of an artifact folder.

The exporter fills these dataclasses and calls `write_manifest`. The runtime calls `Artifact.open`. Both use this file,
so the schema is defined once.

The manifest lists every graph file and weight file with its size and hash, and it contains a digest of itself. These
checks find an edited manifest, a truncated file and a file of another export before native code reads the folder.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UserError
from .files import WrongFileError, check_companions, check_hashes, check_size, find, identity, sha256_file
from .json_dataclass import decode
from .json_reader import read_object
from .manifest_checks import check_agreement
from .source import Source, format_of

FORMAT_VERSION = 2  # the newest; an artifact has the oldest version that suffices (`format_of`)
MANIFEST = "manifest.json"
CHECKS = ("once", "always", "sizes")  # of Artifact.open
CACHE_POLICIES = ("in_place", "returned")
DTYPE_BYTES = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "float16": 2, "int32": 4, "float32": 4, "int64": 8}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: an input, an output or a weight of a graph.

    Attributes:
        shape: in a manifest, the traced shape, at the graph's `bucket`; in a declaration for the converter, -1 is an
            axis that changes with the bucket
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _require(self.dtype in DTYPE_BYTES, f"{self.name}.dtype", self.dtype, "one of " + ", ".join(DTYPE_BYTES))
        _require(all(n > 0 or n == -1 for n in self.shape), f"{self.name}.shape", self.shape, "positive sizes")

    @property
    def nbytes(self) -> int:
        """Size in bytes at the traced shape."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class FileEntry:
    """A file of the artifact.

    Attributes:
        file: path relative to the folder
        sha256: hash in hex
        bytes: size
    """

    file: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        _require_inside("file", self.file)


@dataclass(frozen=True)
class Graph:
    """One MindIR file.

    Attributes:
        bucket: the number of tokens that the graph was traced at
        buckets: the numbers of tokens that it serves; the runtime calls Model.resize to switch between several
        data: the external data files of the graph; empty when the graph file contains its constants
    """

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
        for spec in (*self.inputs, *self.outputs):
            _require(-1 not in spec.shape, f"{spec.name}.shape", spec.shape, "positive sizes")


@dataclass(frozen=True)
class CacheSpec:
    """The KV cache: one k and one v per layer.

    Attributes:
        shape: [B, G, C, D] of each
        policy: "in_place": the graph writes the rows of a call into the cache; "returned": the graph returns the rows
            and the runtime writes them
    """

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
        """Size in bytes of all keys and values, without their scales."""
        return 2 * self.layers * math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Parity:
    """The comparison of the artifact's logits with a reference at export.

    Attributes:
        max_abs_logit_error: max |d logits|
        relative: the same, divided by the range of the reference's logits
        top1_agreement: the share of rows with the same argmax
        steps: the number of rows of logits that were compared
        reference: the name of the reference
    """

    max_abs_logit_error: float
    relative: float
    top1_agreement: float
    steps: int
    reference: str


@dataclass(frozen=True)
class Conversion:
    """The compilation by CANN, for artifacts of Ascend targets.

    Attributes:
        soc: the chip version (socVersion) that the graph was compiled for
        buckets: the gears that it was compiled with
        cann, mindspore_lite: versions of the tools
    """

    soc: str
    buckets: tuple[int, ...]
    cann: str
    mindspore_lite: str


@dataclass(frozen=True)
class Manifest:
    """manifest.json. The field names are the keys of the file.

    Writing adds `digest`, and reading checks it.
    """

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
    format_version: int = 1

    def __post_init__(self) -> None:
        _require(
            self.format_version >= format_of(self.source), "format_version", self.format_version, "2 with adapters"
        )
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
        """Return the graph that serves this bucket."""
        return next(graph for graph in self.graphs if bucket in graph.buckets)

    def files(self) -> Iterator[FileEntry]:
        """Yield every graph file, graph data file and weight file."""
        for graph in self.graphs:
            yield FileEntry(graph.file, graph.sha256, graph.bytes)
            yield from graph.data
        if self.weights is not None:
            yield self.weights

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of manifest.json, with the digest."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists, as in the file
        for name in ("adapters", "calibration"):  # which version 1 does not have
            if not values["source"][name]:
                del values["source"][name]
        return {**values, "digest": digest(values)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Check the version, the digest and every field, and return the manifest.

        Raises UserError: the field, the value found and the value needed.
        """
        version = values.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool):
            raise UserError(
                f"{MANIFEST}: format_version is {str(version)[:60]!r}; a whole number is needed. Export again"
            )
        if version > FORMAT_VERSION:
            raise UserError(
                f"{MANIFEST}: format_version is {version}; this runtime reads up to {FORMAT_VERSION}. "
                "Update the runtime or export again with this release"
            )
        if version < 1:
            raise UserError(f"{MANIFEST}: format_version is {version}; needed: 1 to {FORMAT_VERSION}. Export again")
        body = {key: value for key, value in values.items() if key != "digest"}
        found, needed = values.get("digest"), digest(body)
        if found != needed:
            raise UserError(
                f"{MANIFEST}: digest is {str(found)[:12]}, its contents hash to {needed[:12]}: "
                "the file was edited after the export. Restore it or export again"
            )
        try:
            manifest = decode(cls, body)
            check_agreement(manifest)
        except UserError as error:
            raise UserError(f"{MANIFEST}: {error}. Export again with this release") from error
        return manifest


@dataclass(frozen=True)
class Artifact:
    """An artifact folder whose manifest and files passed the checks of `open`.

    Attributes:
        hash_later: the check ("once" or "always") that the weights file still needs; None if it needs none.
        seen: which file each name was when it was checked (`files.identity`).
    """

    path: Path
    manifest: Manifest
    hash_later: str | None = None
    seen: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(
        cls, path: str | Path, *, check: str = "once", show_progress: bool = False, weights_later: bool = False
    ) -> Artifact:
        """Read and check an artifact folder.

        Checks:
        - the manifest's version, digest and fields, and that they agree with one another
        - each listed file: it is present, regular, inside the folder, and has the listed size
        - the hash of each listed file

        The path of the artifact is absolute: later reads do not depend on the working directory.

        Args:
            path: the folder.
            check: "once": a large file whose hash was right on this machine before, and which has not changed since, is
                not hashed again; "always": every file is hashed; "sizes": only the graph files are hashed, because
                native code parses them.
            show_progress: print a line on standard error if hashing takes more than a second.
            weights_later: do not hash the weights file: the engine hashes the bytes that it loads.

        Raises:
            UserError: a check failed.
        """
        if check not in CHECKS:
            raise UserError(f"check is {check!r}; needed: one of {', '.join(CHECKS)}")
        manifest = read_manifest(Path(path))
        path = _absolute(Path(path))
        for entry in manifest.files():
            check_size(path, entry.file, entry.bytes)
        seen = {entry.file: identity(path, entry.file) for entry in manifest.files()}
        seen |= check_companions(path)
        graphs = {graph.file for graph in manifest.graphs}
        entries = [entry for entry in manifest.files() if check != "sizes" or entry.file in graphs]
        hash_later = None
        if weights_later and manifest.weights in entries:
            entries.remove(manifest.weights)
            hash_later = check
        check_hashes(path, entries, known=() if check == "always" else None, show_progress=show_progress)
        return cls(path, manifest, hash_later, seen)

    def require_unchanged(self, names: Iterable[str]) -> None:
        """Raise UserError if one of these files is not the one that `open` has checked, or was changed since.

        A file that was not there then may be there now.
        """
        for name in names:
            if self.seen.get(name) and identity(self.path, name) != self.seen[name]:
                raise WrongFileError(
                    "damaged",
                    f"{self.file(name)}: was changed after the model began to load. Load the model again when nothing "
                    "writes to the artifact",
                )

    def file(self, name: str) -> Path:
        """Return the path of a file of the artifact."""
        return self.path / name


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json of a folder. Other files are not read. Raises UserError if it is not valid."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Export one with `make export MODEL=...`")
    path = folder / MANIFEST
    try:
        values = read_object(path, "Restore it or export again")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no {MANIFEST}, so it is not an exported artifact. "
            f"If it is a checkpoint, export it: `make export MODEL={folder}`"
        ) from error
    find(folder, MANIFEST)
    return Manifest.from_dict(values)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json. The same manifest gives the same bytes."""
    text = json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def file_entry(folder: Path, name: str) -> FileEntry:
    """Return the size and hash of folder/name."""
    path = folder / name
    return FileEntry(name, sha256_file(path), path.stat().st_size)


def digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its digest, as canonical JSON (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except OSError as error:
        raise UserError(
            f"{path}: the working directory does not exist any more ({error.strerror}). Give an absolute path"
        ) from error


def _require(condition: bool, field: str, found: object, needed: str) -> None:
    if not condition:
        text = repr(found)
        raise UserError(f"{field[:80]} is {text if len(text) <= 80 else text[:77] + '...'}; needed: {needed}")


def _require_inside(field: str, name: str) -> None:
    parts = PurePosixPath(name).parts
    inside = bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name
    _require(inside, field, name, "a path inside the artifact folder")
