"""Read a GGUF file as a checkpoint: its config, and its tensors under their Hugging Face names."""

from __future__ import annotations

import functools
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from edgellama.errors import UserError

from ..base import Checkpoint, RawBlocks, account, content_revision
from ..finite import check_finite
from ..fused import split_fused
from .architectures import ARCHITECTURES, halves_first, inner_names
from .config import read_config
from .file import GGUFFile
from .tokenizer import gguf_generation_config, gguf_tokenizer_files

_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
# Rotary factors: the config reader reads them; attn_rot_embd, in early files, follows from the config.
_DERIVED = re.compile(r"(rope_freqs|rope_factors_(long|short))\.weight|blk\.\d+\.attn_rot_embd")

_T = GGMLQuantizationType
FLOATS = (_T.F32, _T.F16, _T.BF16)


@functools.cache
def readable(kind: GGMLQuantizationType) -> bool:
    """Whether the gguf package dequantizes this type."""
    block = np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8)
    try:
        with np.errstate(all="ignore"):
            dequantize(block, kind)
    except NotImplementedError:
        return False
    return True


class GGUFCheckpoint(Checkpoint):
    """A memory-mapped GGUF file. `rows` reads and dequantizes on each call.

    Raises UserError if tensors are missing or unexpected, or if their type is not supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = GGUFFile(path)
        self.config = read_config(self.file)
        self._interleaved = ARCHITECTURES[self.file.fields["general.architecture"]].interleaved
        # Hugging Face name -> GGUF name. An unknown name stays unchanged, and `account` reports it as surplus.
        kind = self.config.model_type
        self._stored = {to_hf_name(name, kind): name for name in self.file.tensors if not _DERIVED.fullmatch(name)}
        found = {name: self.file.tensors[stored].shape for name, stored in self._stored.items()}
        shapes, joined = split_fused(found, self.config)
        account(path, shapes, self.config)
        # Weight -> the first of its rows in a tensor that joins several.
        self._first = {name: first for name, (_, first) in joined.items()}
        self._stored |= {name: self._stored[whole] for name, (whole, _) in joined.items()}
        wrong = [f"{name} ({self.dtype(name)})" for name in self._stored if not readable(self._kind(name))]
        if wrong:
            raise UserError(
                f"{path} holds {len(wrong)} tensors of a type that is not supported, such as {wrong[0]}; "
                f"supported: {', '.join(kind.name for kind in GGMLQuantizationType if readable(kind))}. Choose a "
                "file with one of them"
            )

    def dtype(self, name: str) -> str:
        return self._kind(name).name

    def rows(self, name: str, first: int, count: int) -> NDArray[np.float32]:
        stored, order = self._stored[name], self._stored_order(name, first, count)
        with np.errstate(invalid="ignore", over="ignore"):  # check_finite reports what numpy would only warn of
            if len(self.shape(name)) == 1:  # the file stores a vector as one row of blocks
                values = self.file.tensor(stored)[order]
            else:
                values = self.file.dequantized(stored, self.file.blocks(stored)[order])
        check_finite(self.path, name, first, values)
        if name.endswith("norm.weight"):  # these files have the sum; folded.py adds the offset again
            values = values - np.float32(self.config.family.norm_offset)
        return values

    def raw(self, name: str, first: int = 0, count: int | None = None) -> RawBlocks | None:
        if self._kind(name) in FLOATS or len(self.shape(name)) == 1:
            return None
        order = self._stored_order(name, first, self.shape(name)[0] - first if count is None else count)
        return RawBlocks(self.dtype(name), self.file.blocks(self._stored[name])[order])

    @cached_property
    def revision(self) -> str:
        return content_revision({}, self.file.paths)

    def tokenizer_files(self) -> dict[str, bytes]:
        return gguf_tokenizer_files(self.file)

    def generation_config(self) -> dict[str, Any]:
        return gguf_generation_config(self.file)

    def _kind(self, name: str) -> GGMLQuantizationType:
        return self.file.tensors[self._stored[name]].kind

    def _stored_order(self, name: str, first: int, count: int) -> slice | NDArray[np.int64]:
        """Return the positions in the file of rows first .. first + count - 1.

        Blocks run along columns, so reordering moves whole rows.
        """
        last = min(first + count, self.shape(name)[0])
        if not self._interleaved or name.split(".")[-2] not in ("q_proj", "k_proj"):
            before = self._first.get(name, 0)
            return slice(before + first, before + last)
        return halves_first(np.arange(first, last), self.config.head_dim)


def to_hf_name(name: str, model_type: str) -> str:
    """token_embd.weight -> model.embed_tokens.weight, blk.3.attn_q.bias -> model.layers.3.self_attn.q_proj.bias."""
    inside = inner_names(model_type)
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match and match[2] in inside:
        return f"model.layers.{match[1]}.{inside[match[2]]}.{kind}"
    return name
