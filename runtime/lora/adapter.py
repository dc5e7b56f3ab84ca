"""The tensors of an adapter, by the module that they belong to, compared with the model that they must fit."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..artifact.files import sha256_file
from ..artifact.private_copy import mapped
from ..artifact.safetensors import TensorFile
from ..errors import UserError, shown
from ..limited.expressions import check_expressions
from .config import CONFIG, EMBEDDING, HEAD, TENSORS, AdapterConfig, read_config

Floats = NDArray[np.float32]
REMEDY = "Download the adapter again"
FLOATS = ("float32", "float16", "uint16")  # uint16: the bits of bfloat16
PREFIX = "base_model.model."  # PEFT's, before the name of the module in the base model
MOST = 5  # tensors that one message names
_LOW_RANK = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.default)?"
    r"(\.(?P<kind>weight|bias))?"
)
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.default)?")
_WHOLE = re.compile(r"(?P<module>.+?)((?P<base>\.base_layer)|\.modules_to_save(\.default)?)?\.(?P<kind>weight|bias)")


@dataclass(frozen=True)
class LowRank:
    """The stored names of the matrices of one module: delta W = scaling * B A.

    Attributes:
        a, b: A [rank, inputs] and B [outputs, rank] of a linear layer; A [rank, vocabulary] and B [hidden, rank] of an
            embedding.
        scaling: of the config, times the scale that the user gave.
        magnitude: DoRA's, [outputs], for an embedding [hidden]; None without DoRA.
        bias: [outputs], added to the module's bias with `scaling`; None without lora_bias.
    """

    a: str
    b: str
    scaling: float
    magnitude: str | None = None
    bias: str | None = None


class Base(NamedTuple):
    """The model that an adapter must fit.

    Attributes:
        name: for messages.
        shapes: name -> shape of every weight and bias as Hugging Face's class has them: joined matrices are joined, and
            lm_head.weight is among them, also if it is the embedding.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]


class Adapter:
    """A PEFT adapter, memory-mapped; `read` converts a tensor.

    Attributes:
        low_rank: module -> its matrices.
        replaced: name of a weight or bias -> the stored name of the tensor that replaces it.
        copies: name of an adapted embedding or output matrix -> the stored name of its base weight: PEFT saves it, too.
        tokens: module -> (rows of its weight, the stored name of their values [rows, hidden]).
    """

    def __init__(self, folder: Path, scale: float, base: Base) -> None:
        """Read the config and the table of tensors.

        Raises UserError if the folder is no LoRA adapter, or if a tensor does not fit the model: the message names the
        tensor, its shape and the shape that the model needs.
        """
        self.folder, self.scale = folder, scale
        self.config: AdapterConfig = read_config(folder)
        self._file = TensorFile(folder / TENSORS, REMEDY, mapped(folder / TENSORS, REMEDY))
        self._base = base
        modules = {name.rpartition(".")[0] for name in base.shapes}
        modules |= {module.removeprefix("model.") for module in modules}
        check_expressions(self.config.expressions(), modules, str(folder / CONFIG), "Name the modules in plain text")
        self.low_rank: dict[str, LowRank] = {}
        self.replaced: dict[str, str] = {}
        self.copies: dict[str, str] = {}
        self.tokens: dict[str, tuple[tuple[int, ...], str]] = {}
        parts: dict[str, dict[str, str]] = {}
        unknown = []
        for stored in self._file.names():
            if not self._place(stored, parts):
                unknown.append(stored)
        if unknown:
            listed = ", ".join(shown(name)[1:-1] for name in unknown[:MOST])
            more = f" and {len(unknown) - MOST} more" if len(unknown) > MOST else ""
            raise self._misfit(
                f"{len(unknown)} of its tensors belong to no weight of the model, or are no LoRA: {listed}{more}"
            )
        for module, found in parts.items():
            self.low_rank[module] = self._low_rank(module, found)
        self._check_complete()

    @property
    def revision(self) -> str:
        """A name for the adapter's content: "sha256:" and 32 hex digits."""
        digest = hashlib.sha256()
        for name in (CONFIG, TENSORS):
            digest.update(bytes.fromhex(sha256_file(self.folder / name)))
        return f"sha256:{digest.hexdigest()[:32]}"

    def read(self, stored: str, first: int = 0, count: int | None = None) -> Floats:
        """Return a tensor, or `count` of its rows, as float32. Raises UserError if a value is NaN or infinite."""
        values = self._file.array(stored)[first : None if count is None else first + count]
        if values.dtype == np.uint16:  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        values = values.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise UserError(f"{self.folder}: the tensor {stored} has NaN or infinite values. {REMEDY}")
        return values

    def _place(self, stored: str, parts: dict[str, dict[str, str]]) -> bool:
        """Find the weight that a tensor belongs to. Returns whether the model has one."""
        if str(self._file.array(stored).dtype) not in FLOATS:
            raise UserError(
                f"{self.folder}: the tensor {stored} is {self._file.array(stored).dtype}; needed: float32, float16 or "
                "bfloat16. Save the adapter with PEFT in one of them"
            )
        name = self._named(stored)
        if match := _LOW_RANK.fullmatch(name):
            module, part = match["module"], match["part"]
            if match["kind"] == "bias":
                part += ".bias"
            if f"{module}.weight" not in self._base.shapes:
                return False
            parts.setdefault(module, {})[part] = stored
            return True
        if match := _TOKENS.fullmatch(name):
            return self._place_tokens(match["module"], stored)
        if match := _WHOLE.fullmatch(name):
            replaced = f"{match['module']}.{match['kind']}"
            if replaced in self._base.shapes:
                self._check(stored, self._base.shapes[replaced])
                is_copy = match["base"] is not None and match["kind"] == "weight"
                (self.copies if is_copy else self.replaced)[replaced] = stored
                return True
        return False

    def _named(self, stored: str) -> str:
        """Return a tensor's name in Hugging Face's class for language models."""
        name = stored.removeprefix(PREFIX)
        return f"model.{name}" if name.startswith(("layers.", "embed_tokens.", "norm.")) else name

    def _place_tokens(self, module: str, stored: str) -> bool:
        rows = next((rows for name, rows in self.config.tokens.items() if module.endswith(name)), None)
        if rows is None or f"{module}.weight" not in self._base.shapes:
            return False
        vocabulary, hidden = self._base.shapes[f"{module}.weight"]
        self._check(stored, (len(rows), hidden))
        if rows and max(rows) >= vocabulary:
            raise self._misfit(f"trainable_token_indices has {max(rows)}, and the model has {vocabulary:,} tokens")
        self.tokens[module] = rows, stored
        return True

    def _low_rank(self, module: str, found: Mapping[str, str]) -> LowRank:
        config = self.config
        embedding = module.endswith(EMBEDDING)
        outputs, inputs = self._base.shapes[f"{module}.weight"]
        if embedding:  # its weight is [vocabulary, hidden], and B A is its transpose
            outputs, inputs = inputs, outputs
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        magnitude, bias = "lora_magnitude_vector", "lora_B.bias"
        needed = [a, b, *([magnitude] if config.dora else [])]
        if missing := [part for part in needed if part not in found]:
            raise UserError(f"{self.folder} lacks {module}.{missing[0]}. {REMEDY}")
        if surplus := sorted(found.keys() - {*needed, bias}):
            why = "; use_dora is false in its config" if magnitude in surplus else ""
            raise UserError(f"{self.folder} has {module}.{surplus[0]}, a surplus tensor{why}. {REMEDY}")
        rank = config.rank_of(module)
        self._check(found[a], (rank, inputs))
        self._check(found[b], (outputs, rank))
        if config.dora:
            self._check(found[magnitude], (outputs,))
        if bias in found:
            if f"{module}.bias" not in self._base.shapes:
                raise UserError(
                    f"{self.folder}: {module} has a bias (lora_bias), and the model has none there. Train the adapter "
                    "with lora_bias=False"
                )
            self._check(found[bias], (outputs,))
        scaling = config.scaling(module) * self.scale
        return LowRank(found[a], found[b], scaling, found.get(magnitude), found.get(bias))

    def _check(self, stored: str, shape: tuple[int, ...]) -> None:
        found = self._file.array(stored).shape
        if found != shape:
            raise self._misfit(f"{stored} is {list(found)}, needed: {list(shape)}")

    def _misfit(self, what: str) -> UserError:
        return UserError(
            f"the adapter {self.folder} does not fit {self._base.name}: {what}. Give the model that it was trained for "
            f"(base_model_name_or_path in its {CONFIG})"
        )

    def _check_complete(self) -> None:
        """Raise UserError if the config names modules of which there are no tensors, or if nothing is left."""
        linear = [name.removesuffix(".weight") for name, shape in self._base.shapes.items() if len(shape) == 2]
        # An adapter of a model without an output matrix has names without "model.".
        plain = not any(
            name.startswith((f"{PREFIX}model.", f"{PREFIX}{HEAD}", "model.")) for name in self._file.names()
        )
        as_trained: Callable[[str], str] = (lambda name: name.removeprefix("model.")) if plain else (lambda name: name)
        tied = (HEAD,) if self.config.tied else ()
        missing = [
            name
            for name in linear
            if name not in self.low_rank and name not in tied and self.config.adapts(as_trained(name))
        ]
        if missing:
            listed = ", ".join(missing[:MOST]) + (f" and {len(missing) - MOST} more" if len(missing) > MOST else "")
            raise UserError(
                f"{self.folder} lacks the matrices of {listed}, which target_modules in its {CONFIG} names. {REMEDY}"
            )
        if not (self.low_rank or self.replaced or self.tokens):
            raise UserError(f"{self.folder} has no tensors. {REMEDY}")
