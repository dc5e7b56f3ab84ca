"""Targets for the files of a checkpoint: config, GGUF, and a Hugging Face folder."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from edgellama.artifact.json_reader import parse_object
from edgellama.errors import UserError
from edgellama.exporter.checkpoint.base import Checkpoint
from edgellama.exporter.checkpoint.gguf.checkpoint import GGUFCheckpoint
from edgellama.exporter.checkpoint.safetensors import SafetensorsCheckpoint
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.network.layer_sizes import linear_sizes
from edgellama.exporter.network.rope import rope_tables

from .target import Target, scratch

JSON_FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"),
    "model.safetensors.index.json",
)
LARGEST_DATA = 1 << 20  # bytes of tensors behind a header


def check_config(data: bytes) -> None:
    """config.json: written and read again, it is the same network; its rotary tables are numbers."""
    config = LlamaConfig.from_dict(_object(data))
    assert LlamaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert min(linear_sizes(config, "self_attn.q_proj")[:2]) > 0
    if config.num_hidden_layers < 10_000:
        assert len(config.windows) == config.num_hidden_layers
    if config.head_dim <= 1024:
        cos, sin = rope_tables(config, 4)
        assert cos.shape == sin.shape == (4, config.head_dim // 2) and np.isfinite(cos).all() and np.isfinite(sin).all()


def check_gguf(data: bytes) -> None:
    """A GGUF file: every weight can be read; its tokenizer's files and special ids are those of an artifact."""
    path = scratch("gguf") / "model.gguf"
    path.write_bytes(data)
    _check_checkpoint(GGUFCheckpoint(path))


def check_folder(data: bytes) -> None:
    """A Hugging Face folder: {file name: content}; "model.safetensors" is its header, and its data are zeros."""
    folder = scratch("folder")
    for path in folder.iterdir():
        path.unlink()
    for name, content in _object(data).items():
        if name in JSON_FILES:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        elif name in ("model.safetensors", "a.safetensors"):
            header = json.dumps(content).encode()
            ends = [size for size in _numbers(content) if size <= LARGEST_DATA]
            (folder / name).write_bytes(len(header).to_bytes(8, "little") + header + bytes(max(ends, default=0)))
    _check_checkpoint(SafetensorsCheckpoint(folder))


def _check_checkpoint(checkpoint: Checkpoint) -> None:
    eos = checkpoint.eos_token_id()
    assert all(type(token) is int for token in eos), eos
    assert isinstance(checkpoint.generation_config(), dict)
    assert checkpoint.revision
    files = checkpoint.tokenizer_files()
    assert files.keys() >= {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    for name in checkpoint.names():
        shape = checkpoint.shape(name)
        if math.prod(shape) <= LARGEST_DATA:
            try:
                rows = checkpoint.tensor(name)
            except UserError as error:
                assert "NaN or infinite" in str(error), error
                continue
            assert rows.shape == shape and rows.dtype == np.float32
        checkpoint.raw(name, 0, 1)


def _numbers(value: Any) -> list[int]:
    """The ends of all data_offsets in a header."""
    ends: list[int] = []
    if isinstance(value, dict):
        for entry in value.values():
            offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
            if isinstance(offsets, list):
                ends += [size for size in offsets if isinstance(size, int) and size >= 0]
    return ends


def _object(data: bytes) -> dict[str, Any]:
    try:
        return parse_object(data)
    except ValueError as error:
        raise UserError(f"the input is no JSON object: {error}") from error


CHECKPOINT_TARGETS = (
    Target("config", check_config, (UserError,), "json", 1 << 13),
    Target("gguf", check_gguf, (UserError,), "gguf"),
    Target("folder", check_folder, (UserError,), "json"),
)
