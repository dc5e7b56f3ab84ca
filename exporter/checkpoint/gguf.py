"""Read a GGUF file of architecture "llama" or "qwen2": its config, and its tensors under their Hugging Face names."""

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

from .base import Checkpoint, RawBlocks, account, content_revision
from .finite import check_finite
from .gguf_config import read_config
from .gguf_file import GGUFFile
from .gguf_tokenizer import gguf_generation_config, gguf_tokenizer_files

_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Rotary factors: the config reader reads rope_freqs; attn_rot_embd, in early files, follows from the config.
_DERIVED = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd")

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
        # Hugging Face name -> GGUF name. An unknown name stays unchanged, and `account` reports it as surplus.
        self._stored = {to_hf_name(name): name for name in self.file.tensors if not _DERIVED.fullmatch(name)}
        account(path, {name: self.file.tensors[stored].shape for name, stored in self._stored.items()}, self.config)
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

        A "llama" file stores q and k for interleaved rotary pairs (rows 2i, 2i + 1 of a head). Hugging Face and a
        "qwen2" file pair row i of a head with row i + head_dim/2. Blocks run along columns, so reordering moves whole
        rows.
        """
        if self.config.model_type == "qwen2" or name.split(".")[-2] not in ("q_proj", "k_proj"):
            return slice(first, first + count)
        head, row = np.divmod(np.arange(first, min(first + count, self.shape(name)[0])), self.config.head_dim)
        half, pair = np.divmod(row, self.config.head_dim // 2)
        return head * self.config.head_dim + 2 * pair + half


def to_hf_name(name: str) -> str:
    """token_embd.weight -> model.embed_tokens.weight, blk.3.attn_q.bias -> model.layers.3.self_attn.q_proj.bias."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match and match[2] in _INSIDE:
        return f"model.layers.{match[1]}.{_INSIDE[match[2]]}.{kind}"
    return name
