"""Read a Hugging Face folder: config.json, safetensors (one file, or shards with an index) and tokenizer files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes  # the import registers bfloat16 with numpy, which safetensors needs
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from edgellama.artifact.safetensors import read_header
from edgellama.errors import UserError, shown

from .base import (
    Checkpoint,
    RawBlocks,
    account,
    check_finite,
    content_revision,
    expected_tensors,
    read_config_file,
    read_json,
)
from .fused import split_fused
from .row_blocks import row_blocks
from .source_kinds import INDEX, SINGLE
from .tokenizer_files import folder_tokenizer_files, generation_config

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FLOATS = ("F32", "F16", "BF16")
# Buffers in older checkpoints. They follow from the config, so they are ignored.
_DERIVED = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")


class SafetensorsCheckpoint(Checkpoint):
    """Memory-mapped safetensors. `rows` reads on each call.

    Raises UserError if files or tensors are missing, unexpected or damaged, or if their type is not supported.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.config = read_config_file(folder / "config.json")
        index = _index(folder)
        self.files = _weight_files(folder) if index is None else [folder / name for name in sorted(set(index.values()))]
        self._reader = {path: _open(path) for path in self.files}
        held = {path.name: list(file.keys()) for path, file in self._reader.items()}
        if index is not None:
            _check_index(folder / INDEX, index, held)
        self._home = {name: file for path, file in self._reader.items() for name in held[path.name]}
        self._joined: dict[str, tuple[str, int]] = {}
        self._stored = {name: name for name in self._home if not _DERIVED.fullmatch(name)} | self._shared()
        found = {name: self._shape(name) for name in self._stored}
        if self.config.tie_word_embeddings and HEAD in found:
            self._check_tied(found.pop(HEAD))
        self._check_untied(found)
        found, self._joined = split_fused(found, self.config)
        account(folder, found, self.config)
        wrong = [f"{name} ({self.dtype(name)})" for name in found if self.dtype(name) not in FLOATS]
        if wrong:
            raise UserError(
                f"{folder} holds {len(wrong)} tensors of a type that is not supported, such as {wrong[0]}; "
                f"supported: {', '.join(FLOATS)}. Choose a checkpoint with one of them"
            )

    def dtype(self, name: str) -> str:
        return str(self._slice(name).get_dtype())

    def rows(self, name: str, first: int, count: int) -> NDArray[np.float32]:
        _, begin = self._joined.get(name, (name, 0))
        if name in self._joined:
            count = min(count, self.shape(name)[0] - first)
        values = _float32(self._slice(name)[begin + first : begin + first + count])
        check_finite(self.path, name, first, values)
        return values

    def raw(self, name: str, first: int = 0, count: int | None = None) -> RawBlocks | None:
        return None

    @cached_property
    def revision(self) -> str:
        # In the hub's cache, the folder of a snapshot has the name of its commit.
        if self.path.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", self.path.name):
            return self.path.name
        small = {"config.json": (self.path / "config.json").read_bytes()}
        return content_revision(small, self.files)

    def tokenizer_files(self) -> dict[str, bytes]:
        return folder_tokenizer_files(self.path, self.config)

    def generation_config(self) -> dict[str, Any]:
        path = self.path / "generation_config.json"
        return read_json(path) if path.exists() else generation_config(self.config)

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def _slice(self, name: str) -> Any:
        joined, _ = self._joined.get(name, (name, 0))
        stored = self._stored[joined]
        return self._home[stored].get_slice(stored)

    def _shared(self) -> dict[str, str]:
        """Return the weights that are stored under another weight's name: name -> the stored one.

        safetensors' save_model stores one tensor of several that share memory, the first by name, and has the others in
        the file's metadata. For the embedding and the output matrix that is lm_head.weight.
        """
        expected = expected_tensors(self.config)
        shared = {
            name: kept
            for reader in self._reader.values()
            for name, kept in (reader.metadata() or {}).items()
            if name in expected and name not in self._home and kept in self._home
        }
        if self.config.tie_word_embeddings and HEAD in self._home and EMBEDDING not in self._home:
            shared[EMBEDDING] = HEAD
        return shared

    def _check_untied(self, found: Mapping[str, tuple[int, ...]]) -> None:
        """Raise UserError if an untied checkpoint lacks either the embedding or the output matrix, and nothing else."""
        missing = [name for name in expected_tensors(self.config) if name not in found]
        if missing in ([HEAD], [EMBEDDING]) and not self.config.tie_word_embeddings:
            raise UserError(
                f"{self.path} lacks {missing[0]}, and tie_word_embeddings is false in its config. Download the "
                "checkpoint again, or set tie_word_embeddings to true in config.json if it has one matrix for both"
            )

    def _check_tied(self, shape: tuple[int, ...]) -> None:
        """Raise UserError if a tied checkpoint contains an output matrix that differs from the embedding."""
        if self._stored.get(EMBEDDING, HEAD) == HEAD:  # the same tensor; or `account` reports the embedding
            return
        blocks = row_blocks(shape[0], 4 * shape[-1])
        if shape != self._shape(EMBEDDING) or any(
            not np.array_equal(self.rows(HEAD, *block), self.rows(EMBEDDING, *block)) for block in blocks
        ):
            raise UserError(
                f"{self.path}: tie_word_embeddings is true in the config, but the checkpoint has a {HEAD} that differs "
                f"from {EMBEDDING}; set tie_word_embeddings to false in config.json to use the stored {HEAD}"
            )


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype != ml_dtypes.bfloat16:
        return values.astype(np.float32, copy=False)
    # A bfloat16 is the upper half of a float32. A shift in numpy is ten times faster than ml_dtypes' conversion.
    bits = np.empty(values.shape, np.uint32)
    np.left_shift(values.view(np.uint16), 16, out=bits, dtype=np.uint32, casting="unsafe")
    return bits.view(np.float32)


def _index(folder: Path) -> dict[str, str] | None:
    """Return the index of a sharded checkpoint: tensor -> file, which exists; None if one file holds all tensors."""
    if (folder / SINGLE).exists() or not (folder / INDEX).exists():
        return None
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UserError(f"{folder / INDEX} has no weight_map. Download it again")
    for name in index.values():
        if not isinstance(name, str) or Path(name).name != name or not name.isprintable() or len(name) > 255:
            raise UserError(
                f"{folder / INDEX}: weight_map names the file {shown(name)}; needed: a name inside the folder. "
                "Download it again"
            )
    absent = sorted({name for name in index.values() if not (folder / name).is_file()})
    if absent:
        listed = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        raise UserError(f"{folder} lacks {listed}, which {INDEX} names; download the checkpoint again")
    return index


def _check_index(path: Path, index: dict[str, str], held: dict[str, list[str]]) -> None:
    """Raise UserError if an index contradicts its files: held is file -> its tensors.

    A tensor of the index that no file holds may be a tied output matrix: `account` reports every other one.
    """
    found: dict[str, str] = {}
    for file, names in held.items():
        for name in names:
            if name in found:
                raise UserError(f"{found[name]} and {file} both have {shown(name)}. Download the checkpoint again")
            found[name] = file
    for name, file in found.items():
        if index.get(name, None if not _DERIVED.fullmatch(name) else file) != file:
            says = f"says {index[name]}" if name in index else "does not list it"
            raise UserError(f"{path}: {shown(name)} is in {file}, and the index {says}. Download the checkpoint again")


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}; an export needs the weights as safetensors")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        needed = _described_size(path)
        if needed is not None and needed > size:
            problem = f"is truncated: it has {size:,} bytes, its header describes {needed:,}"
        else:
            problem = f"({size:,} bytes) cannot be read ({error})"
        raise UserError(f"{path} {problem}; download it again") from error


def _described_size(path: Path) -> int | None:
    """Return the file size in bytes that a safetensors header describes; None if the header itself is incomplete."""
    with path.open("rb") as file, contextlib.suppress(ValueError):
        header, data = read_header(file)
        ends = [entry["data_offsets"][1] for entry in header.values() if isinstance(entry, dict) and _is_placed(entry)]
        return data + max(ends, default=0)
    return None


def _is_placed(entry: dict[str, Any]) -> bool:
    offsets = entry.get("data_offsets")
    return isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)
