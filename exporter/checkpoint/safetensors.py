"""Read a Hugging Face folder: config.json, safetensors (one file, or shards with an index) and tokenizer files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from edgellama.artifact.safetensors import read_header
from edgellama.errors import UserError, shown

from .base import (
    Checkpoint,
    RawBlocks,
    account,
    content_revision,
    expected_tensors,
    read_config_file,
    read_json,
)
from .finite import check_finite
from .fused import split_fused
from .quantized.grid import FourBits, Grid
from .quantized.matrices import UNUSED, QuantizedMatrix, quantized_matrices
from .quantized.scheme import read_scheme
from .quantized.stored import FLOATS, StoredTensors
from .row_blocks import row_blocks
from .source_kinds import INDEX, SINGLE
from .tokenizer_files import folder_tokenizer_files, generation_config

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
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
        self._tensors = StoredTensors(folder, self._reader)
        self._joined: dict[str, tuple[str, int]] = {}
        names = [name for name in self._tensors.names() if not _DERIVED.fullmatch(name)]
        ours = self.config.family.tensor_name
        self._quantized = {ours(name): matrix for name, matrix in self._read_quantized(names).items()}
        self._stored = {ours(name): name for name in names}
        self._stored |= self._shared()
        found = {name: self._tensors.shape(stored) for name, stored in self._stored.items()}
        found |= {name: matrix.shape for name, matrix in self._quantized.items()}
        if self.config.tie_word_embeddings and HEAD in found:
            self._check_tied(found.pop(HEAD))
        self._check_untied(found)
        found, self._joined = split_fused(found, self.config)
        account(folder, found, self.config)
        wrong = [f"{name} ({self.dtype(name)})" for name in found if not self._is_readable(name)]
        if wrong:
            raise UserError(
                f"{folder} holds {len(wrong)} tensors of a type that is not supported, such as {wrong[0]}; "
                f"supported: {', '.join(FLOATS)}. Choose a checkpoint with one of them"
            )

    def dtype(self, name: str) -> str:
        joined, _ = self._joined.get(name, (name, 0))
        matrix = self._quantized.get(joined)
        return self._tensors.dtype(self._stored[joined]) if matrix is None else matrix.kind

    def rows(self, name: str, first: int, count: int) -> NDArray[np.float32]:
        joined, begin = self._joined.get(name, (name, 0))
        if name in self._joined:
            count = min(count, self.shape(name)[0] - first)
        matrix = self._quantized.get(joined)
        if matrix is None:
            values = self._tensors.read(self._stored[joined], slice(begin + first, begin + first + count))
        else:
            values = matrix.rows(begin + first, count)
        check_finite(self.path, name, first, values)
        return values

    def raw(self, name: str, first: int = 0, count: int | None = None) -> RawBlocks | None:
        return None

    def four_bits(self, name: str) -> FourBits | None:
        matrix = self._quantized.get(self._joined.get(name, (name, 0))[0])
        return None if matrix is None else matrix.four_bits

    def grid(self, name: str, first: int, count: int) -> Grid:
        joined, begin = self._joined.get(name, (name, 0))
        grid = self._quantized[joined].grid
        assert grid is not None, name
        return grid(begin + first, min(count, self.shape(name)[0] - first))

    @property
    def quantization(self) -> str | None:
        return None if self._scheme is None else self._scheme.name

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

    def _is_readable(self, name: str) -> bool:
        joined, _ = self._joined.get(name, (name, 0))
        return joined in self._quantized or self.dtype(name) in FLOATS

    def _read_quantized(self, names: list[str]) -> dict[str, QuantizedMatrix]:
        """Return the quantized matrices by the name of their weight.

        Removes from `names` the tensors that they are made of, and those that only other runtimes need.
        """
        self._scheme = scheme = read_scheme(read_json(self.path / "config.json"))
        if scheme is None:
            packed = next((name for name in names if name.endswith((".qweight", ".weight_packed"))), None)
            if packed is not None:
                raise UserError(
                    f"{self.path} has quantized weights ({shown(packed)[1:-1]}), but config.json has no "
                    "quantization_config. Add it; early checkpoints have its content in quantize_config.json or "
                    "quant_config.json"
                )
            return {}
        found = quantized_matrices(scheme, self._tensors)
        gone = {part for matrix in found.values() for part in matrix.parts}
        # Some writers of GPTQ give a bias of zeros to every quantized layer.
        biases = {f"{name.removesuffix('.weight')}.bias" for name in found} & set(names)
        surplus = biases - expected_tensors(self.config).keys() if biases else ()
        gone |= {name for name in surplus if not self._tensors.read(name).any()}
        names[:] = [name for name in names if name not in gone and not UNUSED.fullmatch(name)]
        return found

    def _shared(self) -> dict[str, str]:
        """Return the weights that are stored under another weight's name: name -> the stored one.

        safetensors' save_model stores one tensor of several that share memory, the first by name, and has the others in
        the file's metadata. For the embedding and the output matrix that is lm_head.weight.
        """
        expected = expected_tensors(self.config)
        ours = self.config.family.tensor_name
        shared = {
            ours(name): kept
            for reader in self._reader.values()
            for name, kept in (reader.metadata() or {}).items()
            if ours(name) in expected and name not in self._tensors and kept in self._tensors
        }
        if self.config.tie_word_embeddings and HEAD in self._tensors and EMBEDDING not in self._stored:
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
        if self._stored.get(EMBEDDING) == HEAD or EMBEDDING not in self._stored.keys() | self._quantized.keys():
            return  # the same tensor; or `account` reports the embedding
        other = self._quantized.get(EMBEDDING)
        blocks = row_blocks(shape[0], 4 * shape[-1])
        if shape != (other.shape if other is not None else self._tensors.shape(self._stored[EMBEDDING])) or any(
            not np.array_equal(self.rows(HEAD, *block), self.rows(EMBEDDING, *block)) for block in blocks
        ):
            raise UserError(
                f"{self.path}: tie_word_embeddings is true in the config, but the checkpoint has a {HEAD} that differs "
                f"from {EMBEDDING}; set tie_word_embeddings to false in config.json to use the stored {HEAD}"
            )


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
            problem = f"({size:,} bytes) cannot be read ({shown(str(error), 160)[1:-1]})"
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
