"""A checkpoint: a Llama's config and its tensors by Hugging Face name, read some rows at a time.

`open_checkpoint` takes a Hugging Face folder (safetensors) or a .gguf file. Opening reads headers only, and accounts
for every tensor: what is missing, surplus or misshapen is one error that lists it, before any work is done.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellama.errors import UserError

from ..network.config import LlamaConfig
from ..network.layer_sizes import linear_sizes

Shape = tuple[int, ...]
LINEARS = (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))


class RawBlocks(NamedTuple):
    """A quantized tensor as the file stores it: `kind` such as "Q4_0", `blocks` uint8 [rows, bytes per row]."""

    kind: str
    blocks: NDArray[np.uint8]


class Checkpoint(ABC):
    """Weights of one network. Names and shapes are those of Hugging Face's LlamaForCausalLM."""

    path: Path
    config: LlamaConfig

    def names(self) -> list[str]:
        """Every weight of the network, in network order; lm_head.weight only where it is not tied."""
        return list(self._expected)

    def shape(self, name: str) -> Shape:
        return self._expected[name]

    @cached_property
    def _expected(self) -> dict[str, Shape]:
        return expected_tensors(self.config)

    @abstractmethod
    def dtype(self, name: str) -> str:
        """How the file stores the tensor: "F32", "BF16", "Q4_0", ..."""

    @abstractmethod
    def rows(self, name: str, first: int, count: int) -> NDArray[np.float32]:
        """Rows first .. first + count - 1 of a weight (elements of a vector) as float32 [count, ...], dequantized where
        it has to be. Reads and holds no more than them. May be called from several threads at once."""

    def tensor(self, name: str) -> NDArray[np.float32]:
        """One weight whole, as float32. Of a large model's tables that is gigabytes: prefer `rows`. Nothing is kept."""
        return self.rows(name, 0, self.shape(name)[0])

    @abstractmethod
    def raw(self, name: str, first: int = 0, count: int | None = None) -> RawBlocks | None:
        """Rows of a block-quantized weight untouched, in the order of `rows`; None for other weights."""

    @property
    @abstractmethod
    def revision(self) -> str:
        """The hub's commit where the files came from one, else `content_revision` of them."""

    @abstractmethod
    def tokenizer_files(self) -> dict[str, bytes]:
        """tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja where there is one."""

    @abstractmethod
    def generation_config(self) -> dict[str, Any]:
        """What generation_config.json holds (or would, where the checkpoint has none)."""

    def eos_token_id(self) -> tuple[int, ...]:
        """The ids that end a sequence: of the generation config where it names any, else of the config."""
        eos = self.generation_config().get("eos_token_id")
        if eos is None:
            return self.config.eos_token_id
        return tuple(eos) if isinstance(eos, list) else (eos,)


def expected_tensors(config: LlamaConfig) -> dict[str, Shape]:
    """Name -> shape of every weight that the config's network has, in network order."""
    hidden = config.hidden_size
    out: dict[str, Shape] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        out[f"{layer}.input_layernorm.weight"] = (hidden,)
        for name in LINEARS:
            rows, columns, has_bias = linear_sizes(config, name)
            out[f"{layer}.{name}.weight"] = (rows, columns)
            if has_bias:
                out[f"{layer}.{name}.bias"] = (rows,)
        out[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    out["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        out["lm_head.weight"] = (config.vocab_size, hidden)
    return out


def account(where: Path, found: Mapping[str, Shape], config: LlamaConfig) -> None:
    """Raise UserError that lists every tensor missing from, surplus in, or misshapen in `found`."""
    if config.num_hidden_layers > len(found):  # a layer has nine tensors: do not list millions
        raise UserError(
            f"{where} holds {len(found)} tensors, its config describes {config.num_hidden_layers:,} layers; "
            "download the checkpoint again"
        )
    expected = expected_tensors(config)
    problems = [
        _listing("missing", (name for name in expected if name not in found)),
        _listing("surplus", (name for name in found if name not in expected)),
        _listing(
            "of another shape than the config says",
            (f"{n} {list(found[n])}, not {list(s)}" for n, s in expected.items() if n in found and found[n] != s),
        ),
    ]
    if any(problems):
        told = "; ".join(p for p in problems if p)
        raise UserError(
            f"{where} does not hold the network that its config describes: {told}. "
            "Download the checkpoint again, or mend its config"
        )


def _listing(what: str, items: Iterable[str], limit: int = 12) -> str:
    listed = list(items)
    if not listed:
        return ""
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return f"{len(listed)} {what}: {', '.join(listed[:limit])}{more}"


def content_revision(small: Mapping[str, bytes], large: Iterable[Path], pieces: int = 64, size: int = 1 << 16) -> str:
    """A cheap, stable name for a checkpoint's content: "sampled-sha256:" and 32 hex digits.

    Hashed are the small files whole, and of each large one its name, its length, its first MiB and `pieces` evenly
    spaced pieces of `size` bytes, the last one included: milliseconds where a full hash takes minutes.
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a UserError that says what is wrong with it."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; download the checkpoint again, with this file") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; download it again")
    return value
