"""Merges LoRA adapters into the weights of a checkpoint, block by block and in float32.

W' = W + s B A for each adapter in turn, with s = scale * lora_alpha / r (arXiv:2106.09685); with DoRA
W' = m / ||W0 + s B A|| (W + s B A), where ||.|| is the norm of each output's weights and W0 the base model's weights
(arXiv:2402.09353). This is what PEFT's merge_and_unload() computes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellama.errors import UserError
from edgellama.lora.adapter import Adapter, Base, LowRank

from .base import Checkpoint, DerivedCheckpoint, RawBlocks
from .fused import fused_parts, fused_places
from .lfs_pointer import pointers
from .quantized.grid import FourBits, Grid
from .row_blocks import row_blocks

Floats = NDArray[np.float32]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def merged(checkpoint: Checkpoint, adapters: Sequence[tuple[str, float]]) -> Checkpoint:
    """Return the checkpoint with these adapters (folder, scale) merged, or the checkpoint itself without any.

    Raises UserError if a folder is no LoRA adapter with safetensors, if it does not fit the model, or if two adapters
    replace the same weight.
    """
    if not adapters:
        return checkpoint
    base = Base(str(checkpoint.path), _hf_shapes(checkpoint))
    opened = [_open(Path(folder), scale, base) for folder, scale in adapters]
    return MergedCheckpoint(checkpoint, opened)


def _open(folder: Path, scale: float, base: Base) -> Adapter:
    try:
        folder = folder.expanduser()
    except RuntimeError as error:
        raise UserError(f"LORA is {folder}, and its home folder is unknown. Give the path without ~") from error
    if found := pointers([path for path in sorted(folder.glob("adapter_*")) if path.is_file()]):
        raise found
    return Adapter(folder, scale, base)


def _hf_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights as Hugging Face's class has them: joined matrices are joined."""
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
    for joined, parts in fused_parts(checkpoint.config).items():
        sizes = [shapes.pop(part) for part in parts]
        shapes[joined] = (sum(size[0] for size in sizes), *sizes[0][1:])
    shapes.setdefault(HEAD, shapes[EMBEDDING])
    return shapes


class MergedCheckpoint(DerivedCheckpoint):
    """`checkpoint` with adapters merged.

    If an adapter changes the embedding or the output matrix of a model that has one matrix for both, the merged model
    has two.
    """

    def __init__(self, checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> None:
        self.path, self._checkpoint, self.adapters = checkpoint.path, checkpoint, adapters
        self.config = config = checkpoint.config
        self._tied = config.tie_word_embeddings
        if self._tied and any(_unties(adapter) for adapter in adapters):
            published = {**config.published, "tie_word_embeddings": False} if config.published else {}
            self.config = replace(config, tie_word_embeddings=False, published=published)
        self._places = fused_places(config)
        twice = [name for adapter in adapters for name in adapter.replaced]
        if repeated := sorted({name for name in twice if twice.count(name) > 1}):
            raise UserError(
                f"two adapters replace {repeated[0]} (modules_to_save, or bias), so they cannot be merged into one "
                "model. Export one artifact for each"
            )
        self._column_norms: dict[Adapter, Floats] = {}
        self._lock = threading.Lock()
        self._copies = self._changed_copies()

    def dtype(self, name: str) -> str:
        return "F32" if self._is_changed(name) else self._checkpoint.dtype(self._stored(name))

    def rows(self, name: str, first: int, count: int) -> Floats:
        values = base = self._base_rows(name, first, count)
        joined, offset = self._places.get(name, (name, 0))
        for adapter in self.adapters:
            acting = self._acting(adapter, joined)
            if (stored := adapter.replaced.get(acting)) is not None:
                values = base = adapter.read(stored, offset + first, len(base))
            values = self._merge(adapter, acting, offset + first, values, base)
        return values

    def raw(self, name: str, first: int = 0, count: int | None = None) -> RawBlocks | None:
        return None if self._is_changed(name) else self._checkpoint.raw(self._stored(name), first, count)

    def four_bits(self, name: str) -> FourBits | None:
        return None if self._is_changed(name) else self._checkpoint.four_bits(self._stored(name))

    def grid(self, name: str, first: int, count: int) -> Grid:
        return self._checkpoint.grid(self._stored(name), first, count)

    def _base_rows(self, name: str, first: int, count: int) -> Floats:
        """Return rows of a weight without adapters, but with the base weights that they have brought."""
        stored = self._stored(name)
        if stored in self._copies:
            adapter, copy = self._copies[stored]
            return adapter.read(copy, first, count)
        return self._checkpoint.rows(stored, first, count)

    def _merge(self, adapter: Adapter, name: str, first: int, values: Floats, base: Floats) -> Floats:
        """Return rows of a weight or bias with one adapter merged.

        Args:
            adapter: the adapter.
            name: the weight or bias, under which the adapter has its change; joined if the checkpoint joins it.
            first: the number of the first row.
            values: the rows, with the adapters before.
            base: the rows, without any adapter.
        """
        module, _, kind = name.rpartition(".")
        found = adapter.low_rank.get(module)
        if kind == "bias":
            if found is None or found.bias is None:
                return values
            return values + np.float32(found.scaling) * adapter.read(found.bias, first, len(values))
        if found is not None and name == EMBEDDING:
            values = self._merge_embedding(adapter, found, first, values)
        elif found is not None:
            delta = np.float32(found.scaling) * (adapter.read(found.b, first, len(values)) @ adapter.read(found.a))
            values = values + delta
            if found.magnitude is not None:
                norm = np.linalg.norm(base + delta, axis=1)
                values = values * (adapter.read(found.magnitude, first, len(values)) / norm)[:, None]
        return _with_tokens(adapter, module, first, values)

    def _merge_embedding(self, adapter: Adapter, found: LowRank, first: int, values: Floats) -> Floats:
        values = values + _embedding_delta(adapter, found, first, len(values))
        if found.magnitude is not None:
            values = values * (adapter.read(found.magnitude) / self._embedding_norms(adapter, found))
        return values

    def _embedding_norms(self, adapter: Adapter, found: LowRank) -> Floats:
        """Return the norm of each column of the base embedding with one adapter, [hidden], which DoRA divides by."""
        with self._lock:
            if adapter not in self._column_norms:
                rows, hidden = self._checkpoint.shape(EMBEDDING)
                squares = np.zeros(hidden, np.float64)
                for first, count in row_blocks(rows, 4 * hidden):
                    block = self._base_rows(EMBEDDING, first, count)
                    block = block + _embedding_delta(adapter, found, first, count)
                    squares += np.square(block, dtype=np.float64).sum(axis=0)
                self._column_norms[adapter] = np.sqrt(squares).astype(np.float32)
            return self._column_norms[adapter]

    def _changed_copies(self) -> dict[str, tuple[Adapter, str]]:
        """Return the base weights in the adapters' files that are not those of the checkpoint."""
        found = {}
        for adapter in self.adapters:
            for name, stored in adapter.copies.items():
                base = self._stored(name)
                rows, columns = self._checkpoint.shape(base)
                if any(
                    not np.array_equal(self._checkpoint.rows(base, *block), adapter.read(stored, *block))
                    for block in row_blocks(rows, 4 * columns)
                ):
                    found[base] = adapter, stored
        return found

    def _stored(self, name: str) -> str:
        """Return the base checkpoint's name of a weight: the output matrix may be its embedding."""
        return EMBEDDING if name == HEAD and self._tied else name

    def _acting(self, adapter: Adapter, name: str) -> str:
        """Return the name under which an adapter changes a weight: what changes the embedding may change the head."""
        if name != HEAD or not self._tied:
            return name
        if _keeps_tie(adapter):
            return EMBEDDING
        of_head = HEAD in adapter.replaced or _module(HEAD) in adapter.low_rank
        return EMBEDDING if _module(EMBEDDING) in adapter.tokens and not of_head else name

    def _is_changed(self, name: str) -> bool:
        if self._stored(name) in self._copies:
            return True
        joined, _ = self._places.get(name, (name, 0))
        for adapter in self.adapters:
            acting = self._acting(adapter, joined)
            module = _module(acting)
            if acting in adapter.replaced or (acting.endswith(".weight") and module in adapter.tokens):
                return True
            if (found := adapter.low_rank.get(module)) is not None and (acting.endswith(".weight") or found.bias):
                return True
        return False


def _embedding_delta(adapter: Adapter, found: LowRank, first: int, count: int) -> Floats:
    a, b = adapter.read(found.a), adapter.read(found.b)  # [rank, vocabulary], [hidden, rank]
    delta: Floats = np.float32(found.scaling) * (a[:, first : first + count].T @ b.T)
    return delta


def _with_tokens(adapter: Adapter, module: str, first: int, values: Floats) -> Floats:
    """Return rows of a weight with those that the adapter replaces one by one."""
    if module not in adapter.tokens:
        return values
    indices, stored = adapter.tokens[module]
    here = [at for at, index in enumerate(indices) if first <= index < first + len(values)]
    if here:
        values = values.copy()
        values[[indices[at] - first for at in here]] = adapter.read(stored)[here]
    return values


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _keeps_tie(adapter: Adapter) -> bool:
    """Whether an adapter changes the embedding and the output matrix alike, if they are one matrix.

    It then has the same tensors twice; with DoRA each matrix has magnitudes of its own.
    """
    of_embedding = EMBEDDING in adapter.replaced or _module(EMBEDDING) in adapter.low_rank
    return adapter.config.tied and of_embedding and not adapter.config.dora


def _unties(adapter: Adapter) -> bool:
    """Whether an adapter makes the embedding and the output matrix differ, if they are one matrix."""
    touched = {*map(_module, adapter.replaced), *adapter.low_rank}
    of_either = bool({_module(HEAD), _module(EMBEDDING)} & touched) or _module(HEAD) in adapter.tokens
    return of_either and not _keeps_tie(adapter)
