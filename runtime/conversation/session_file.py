"""Session files: a text with its part of the KV cache, so that it can continue later without being computed again.

The format is safetensors (https://github.com/huggingface/safetensors#format): `tokens` int32 [n], and every array of
the cache with the n positions in use, [G, n, D]. The metadata contain the digest of the artifact's manifest, which
covers weights and graphs: without it, keys and values of another model would be loaded unnoticed. They also contain a
checksum of everything else (`checksum`), because a damaged key or value changes answers without an error. Keys and
values that a LoRA adapter has computed are in format 3, and the metadata identify the adapter. Other sessions are in
format 2, which earlier releases read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .. import output_file
from ..artifact.manifest import Manifest, TensorSpec
from ..artifact.safetensors import TensorFile, encode_header
from ..engine.engine import Engine
from ..errors import UserError, shown
from ..generation.decode import GenerationTimings, StepBatch

FORMAT = "edgellama session 2"
WITH_ADAPTER = "edgellama session 3"
WITHOUT_CHECKSUM = "edgellama session 1"  # written by release 0.1.0
KIND = "a saved session"
HEADER_LIMIT = 1 << 26  # bytes; the header of a session has some 10 kB
DTYPES = {"int16": "float16"}  # a cache of the cpu op set has the bits of float16 values
REMEDY = "Load another file, or begin a new session"


def save(path: str | Path, engine: Engine, ids: np.ndarray, notes: Mapping[str, str], adapter: int = 0) -> None:
    """Write a session; the caller holds the engine's lock. Tokens that the cache lacks are computed first.

    The file appears complete or not at all.

    Args:
        path: the file.
        engine: holds the cache.
        ids: the text, int [n].
        notes: further metadata.
        adapter: the number of the adapter of the text; 0: none.

    Raises:
        UserError: the adapter was deleted, the file exists and is not a session, or it cannot be written.
    """
    path = Path(path)
    output_file.check(path, is_session, KIND)
    content = engine.adapters.content(adapter)
    row = _computed(engine, ids, adapter)
    arrays = {"tokens": ids.astype(np.int32), **engine.prefixes.held(row, len(ids))}
    tensors = [
        TensorSpec(name, DTYPES.get(array.dtype.name, array.dtype.name), array.shape) for name, array in arrays.items()
    ]
    metadata = {**notes, "format": FORMAT, "artifact": _digest(engine.manifest)}
    if content:
        metadata |= {"format": WITH_ADAPTER, "adapter": content}
    metadata["sha256"] = checksum(metadata, arrays)
    with output_file.replaced(path, is_session, KIND) as file:
        file.write(encode_header(tensors, metadata))
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)


def checksum(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256, in hex, of a session's content: its metadata without `sha256`, and every array.

    It covers names, dtypes and shapes, and does not depend on the order in which a file stores them.
    """
    names = sorted(arrays)
    described = {
        "metadata": {name: text for name, text in metadata.items() if name != "sha256"},
        "arrays": [
            (name, DTYPES.get(arrays[name].dtype.name, arrays[name].dtype.name), arrays[name].shape) for name in names
        ],
    }
    state = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in names:
        state.update(np.ascontiguousarray(arrays[name]).data)
    return state.hexdigest()


def is_session(file: BinaryIO) -> bool:
    """Return whether a file has the header of a session, of any version."""
    length = int.from_bytes(file.read(8), "little")
    return length <= HEADER_LIMIT and b'"edgellama session ' in file.read(length)


def restore(path: str | Path, engine: Engine) -> tuple[np.ndarray, dict[str, str], int]:
    """Load a session's keys and values into the cache; the caller holds the engine's lock.

    Args:
        path: a file that `save` wrote.
        engine: gets the keys and values.

    Returns:
        The token ids, int64 [n], the notes, and the number of the adapter; 0: none.

    Raises:
        UserError: the file is damaged, is no session, belongs to another artifact, or its adapter is not loaded; then
            nothing has changed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. {REMEDY}")
    file = TensorFile(path, REMEDY)
    notes = file.metadata
    found = notes.get("format")
    if found == WITHOUT_CHECKSUM:
        raise UserError(
            f"{path}: format is {found!r}, of release 0.1.0, which stored no checksum; needed: {FORMAT!r}. Begin a new "
            "session, or load the file with release 0.1.0"
        )
    if found not in (FORMAT, WITH_ADAPTER):
        raise UserError(f"{path}: format is {found!r}; needed: {FORMAT!r} or {WITH_ADAPTER!r}. {REMEDY}")
    stored = checksum(notes, {name: file.array(name) for name in file.names()})
    if notes.get("sha256") != stored:
        raise UserError(
            f"{path}: is damaged: its content has the SHA-256 {stored[:12]}, and the file says "
            f"{str(notes.get('sha256'))[:12]}. Restore the file from a copy, or begin a new session"
        )
    wanted = _digest(engine.manifest)
    if notes.get("artifact") != wanted:
        raise UserError(
            f"{path}: saved with the artifact of digest {str(notes.get('artifact'))[:12]}; "
            f"this one, {engine.manifest.name}, has {wanted[:12]}. "
            "Load it with its own artifact, or begin a new session"
        )
    adapter = engine.adapters.with_content(notes.get("adapter", "") if found == WITH_ADAPTER else "")
    if adapter is None:
        raise UserError(
            f"{path}: saved with the LoRA adapter {shown(notes['adapter'])}, which is not loaded with this scale. "
            "Load it first: model.load_adapter(folder, name), or --lora"
        )
    ids = file.array("tokens")
    if ids.ndim != 1 or not 0 < ids.size <= engine.context or ids.min() < 0 or ids.max() >= engine.vocab_size:
        raise UserError(f"{path}: its tokens are not a text of this artifact. {REMEDY}")
    arrays = {}
    for name, mine in engine.cache.arrays.items():
        arrays[name] = file.array(name).view(mine.dtype)
        needed = (mine.shape[1], ids.size, *mine.shape[3:])
        if arrays[name].shape != needed:
            raise UserError(f"{path}: {name} has shape {arrays[name].shape}; needed: {needed}. {REMEDY}")
    engine.prefixes.fill(ids, arrays, adapter)
    return ids.astype(np.int64), notes, adapter


def _computed(engine: Engine, ids: np.ndarray, adapter: int) -> int:
    """Return the cache row that holds all of `ids`, after computing what was missing."""
    beyond = np.append(ids, 0)  # the last token of a text never counts as cached, but here all of them shall
    (row,), (cached,) = engine.prefixes.place([beyond], adapters=[adapter])
    if cached < len(ids):
        step = StepBatch(engine, GenerationTimings())
        step.feed_prompt(int(row), ids, int(cached))
        step.run()
    return int(row)


def _digest(manifest: Manifest) -> str:
    return manifest.to_dict()["digest"]
