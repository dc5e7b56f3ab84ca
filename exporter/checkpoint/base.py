"""The interface of a checkpoint: a Llama's config, and its tensors by Hugging Face name, read some rows at a time.

open.py opens one. Opening reads headers only and checks every tensor: one error lists all tensors that are missing,
surplus or of a wrong shape, before any work is done.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellama.artifact.json_reader import read_object
from edgellama.errors import UserError, shown
from edgellama.generation.stored_settings import usable

from ..network.config import LlamaConfig
from ..network.layer_sizes import layer_norms, linear_sizes
from .quantized import scheme
from .quantized.grid import FourBits, Grid

LINEARS = (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))


class RawBlocks(NamedTuple):
    """A quantized tensor as the file stores it.

    Attributes:
        kind: GGUF's name of the quantization, such as "Q4_0".
        blocks: uint8 [rows, bytes per row].
    """

    kind: str
    blocks: NDArray[np.uint8]


class Checkpoint(ABC):
    """The weights of one network. Names and shapes are those of Hugging Face's LlamaForCausalLM."""

    path: Path
    config: LlamaConfig
    is_folded = False  # the weights are those that the graphs take (folded.py)

    def names(self) -> list[str]:
        """Return the name of every weight, in network order; lm_head.weight only if it is not tied."""
        return list(self._expected)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight."""
        return self._expected[name]

    @cached_property
    def _expected(self) -> dict[str, tuple[int, ...]]:
        return expected_tensors(self.config)

    @abstractmethod
    def dtype(self, name: str) -> str:
        """Return the dtype in which the file stores the tensor: "F32", "BF16", "Q4_0", ..."""

    @abstractmethod
    def rows(self, name: str, first: int, count: int) -> NDArray[np.float32]:
        """Return rows first .. first + count - 1 of a weight (of a vector: elements) as float32 [count, ...].

        Dequantizes a quantized weight. Reads and keeps these rows only. Several threads may call this at once. Raises
        UserError if a value is NaN or infinite (finite.py).
        """

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return a whole weight as float32, and keep no copy.

        The embedding of a large model has gigabytes: prefer `rows`.
        """
        return self.rows(name, 0, self.shape(name)[0])

    @abstractmethod
    def raw(self, name: str, first: int = 0, count: int | None = None) -> RawBlocks | None:
        """Return rows of a block-quantized weight without dequantizing them; None for other weights.

        The order of the rows is that of `rows`.
        """

    def four_bits(self, name: str) -> FourBits | None:
        """Return what the grid of a matrix of 4-bit integers is; None for other weights."""
        return None

    def grid(self, name: str, first: int, count: int) -> Grid:
        """Return rows of a matrix that has `four_bits` as the integers, scales and zero points of the file."""
        raise NotImplementedError(f"{name} is no matrix of integers")

    @property
    def quantization(self) -> str | None:
        """What the checkpoint is quantized by, for messages; None: it has floats, or blocks of GGUF."""
        return None

    @property
    @abstractmethod
    def revision(self) -> str:
        """The hub's commit if the files come from a hub; else their `content_revision`."""

    @abstractmethod
    def tokenizer_files(self) -> dict[str, bytes]:
        """Return the tokenizer's files by name.

        They are tokenizer.json, tokenizer_config.json, generation_config.json, and chat_template.jinja if there is one
        chat template; several named ones are in tokenizer_config.json.
        """

    @abstractmethod
    def generation_config(self) -> dict[str, Any]:
        """Return the content of generation_config.json; its defaults if the checkpoint has no such file."""

    def eos_token_id(self) -> tuple[int, ...]:
        """Return the ids that end a sequence: those of the generation config; if it has none, those of the config."""
        eos = usable(self.generation_config())[0].get("eos_token_id")
        return self.config.eos_token_id if eos is None else tuple(eos)


class DerivedCheckpoint(Checkpoint):
    """A checkpoint with other weights than `_checkpoint`, from which it has everything else."""

    _checkpoint: Checkpoint

    @property
    def quantization(self) -> str | None:
        return self._checkpoint.quantization

    @property
    def revision(self) -> str:
        return self._checkpoint.revision

    def tokenizer_files(self) -> dict[str, bytes]:
        return self._checkpoint.tokenizer_files()

    def generation_config(self) -> dict[str, Any]:
        return self._checkpoint.generation_config()


def expected_tensors(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every weight of the config's network, in network order."""
    hidden = config.hidden_size
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        for norm, size in layer_norms(config).items():
            out[f"{layer}.{norm}.weight"] = (size,)
        for name in LINEARS:
            rows, columns, has_bias = linear_sizes(config, name)
            out[f"{layer}.{name}.weight"] = (rows, columns)
            if has_bias:
                out[f"{layer}.{name}.bias"] = (rows,)
    out["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        out["lm_head.weight"] = (config.vocab_size, hidden)
    return out


def account(where: Path, found: Mapping[str, tuple[int, ...]], config: LlamaConfig) -> None:
    """Compare the tensors of a checkpoint with those of the config's network.

    Raises UserError, which lists the tensors that are missing, surplus or of a wrong shape.

    Args:
        where: the checkpoint, for the message.
        found: name -> shape of each of its tensors.
    """
    if config.num_hidden_layers > len(found):  # a layer has nine tensors: do not list millions
        raise UserError(
            f"{where} has {len(found)} tensors, but its config describes {config.num_hidden_layers:,} layers. "
            "Download the checkpoint again"
        )
    expected = expected_tensors(config)
    problems = [
        _listing("missing", (name for name in expected if name not in found)),
        _listing("surplus", (shown(name)[1:-1] for name in found if name not in expected)),
        _listing(
            "of a wrong shape",
            (f"{n} {list(found[n])}, not {list(s)}" for n, s in expected.items() if n in found and found[n] != s),
        ),
    ]
    if any(problems):
        raise UserError(
            f"{where} does not contain the network that its config describes: {'; '.join(p for p in problems if p)}. "
            "Download the checkpoint again, or correct its config"
        )


def _listing(what: str, items: Iterable[str], limit: int = 12) -> str:
    listed = list(items)
    if not listed:
        return ""
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return f"{len(listed)} {what}: {', '.join(listed[:limit])}{more}"


def content_revision(small: Mapping[str, bytes], large: Iterable[Path], pieces: int = 64, size: int = 1 << 16) -> str:
    """Return a name for a checkpoint's content, the same for the same content: "sampled-sha256:" and 32 hex digits.

    Hashes the small files whole. Of a large file it hashes the name, the length, the first MiB, and `pieces` evenly
    spaced pieces of `size` bytes with the file's end among them. This takes milliseconds; a full hash takes minutes.
    """
    digest = hashlib.sha256()
    for name, data in sorted(small.items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    for path in sorted(large):
        length = path.stat().st_size
        digest.update(f"{path.name}\0{length}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            for i in range(1, pieces + 1):
                file.seek(max(0, (length - size) * i // pieces))
                digest.update(file.read(size))
    return f"sampled-sha256:{digest.hexdigest()[:32]}"


def read_config_file(path: Path) -> LlamaConfig:
    """Return the network that a config.json describes.

    Raises UserError, which names the file, if it is not valid, or if the weights are quantized in a way that cannot be
    read.
    """
    values = read_json(path)
    try:
        config = LlamaConfig.from_dict({key: value for key, value in values.items() if key not in scheme.KEYS})
        scheme.read_scheme(values)
        return config
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises UserError if the file is missing or contains no JSON object."""
    try:
        return read_object(path, "Download it again")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; download the checkpoint again, with this file") from None
