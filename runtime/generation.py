"""The decode loop, and what generate() means: the arguments and conventions of Hugging Face's, in numpy.

Reference for the conventions: transformers' `GenerationMixin.generate` (padding, mask inference, lengths, eos, output).
"""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

import numpy as np

from runtime.artifact import Artifact
from runtime.errors import UserError

DEFAULT_NEW_TOKENS = 20  # Hugging Face's, where neither call nor generation_config.json says


class Steps(Protocol):
    """What the loop needs of an engine."""

    batch: int

    def forward(self, tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class GenerationConfig:
    """What generate() uses where the call does not say. Greedy decoding is the only kind so far.

    eos_token_id: any of these ends its row. pad_token_id fills ended rows; None falls back to the first eos id.
    max_new_tokens goes before max_length (prompt included); without either, 20 new tokens.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_length"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
                raise UserError(f"{name} is {value!r}; needed: a whole number, at least 1")

    @classmethod
    def of(cls, artifact: Artifact) -> GenerationConfig:
        """The artifact's defaults: ids from the manifest, lengths from its generation_config.json where it has one."""
        path = artifact.file("generation_config.json")
        stored: dict[str, Any] = {}
        if path.is_file():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{path}: not valid JSON ({error}). Restore it or export again") from error
        manifest = artifact.manifest
        return cls(stored.get("max_new_tokens"), stored.get("max_length"), manifest.eos_token_id, manifest.pad_token_id)

    def updated(
        self,
        max_new_tokens: int | None,
        max_length: int | None,
        eos_token_id: int | Sequence[int] | None,
        pad_token_id: int | None,
    ) -> GenerationConfig:
        """With a call's arguments in place; None means not given, an empty eos list that nothing ends a row."""
        changes: dict[str, Any] = {}
        if max_new_tokens is not None or max_length is not None:
            if max_new_tokens is not None and max_length is not None:
                warnings.warn("both max_new_tokens and max_length given: max_new_tokens counts", stacklevel=3)
            changes.update(max_new_tokens=max_new_tokens, max_length=max_length)
        if eos_token_id is not None:
            ids = np.atleast_1d(np.asarray(eos_token_id, np.int64 if np.size(eos_token_id) == 0 else None))
            if ids.ndim != 1 or ids.dtype.kind not in "iu":
                raise UserError(f"eos_token_id is {eos_token_id!r}; needed: a token id or a list of them")
            changes["eos_token_id"] = tuple(int(i) for i in ids)
        if pad_token_id is not None:
            changes["pad_token_id"] = int(pad_token_id)
        return dataclasses.replace(self, **changes)

    @property
    def padding(self) -> int | None:
        """What ended rows are filled with; None only where no row can end before the others."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        return self.eos_token_id[0] if self.eos_token_id else None


@dataclass
class Timings:
    """Counts and seconds of one generation. Decode steps exclude the prefill, which yields the first token."""

    prompt_tokens: int = 0
    prefill: float = 0.0
    decode_steps: int = 0
    decode: float = 0.0


def prompt_ids(input_ids: Any, vocab_size: int) -> np.ndarray:
    """input_ids as int64 [B, n]: an array, a tensor, a list of rows, or one row. Raises UserError for anything else."""
    try:
        ids = np.asarray(input_ids)
    except ValueError as error:  # rows of different length
        lengths = [len(row) for row in input_ids]
        raise UserError(
            f"input_ids has rows of {min(lengths)} to {max(lengths)} tokens; needed: rows of one length. "
            "Pad them: tokenizer(prompts, padding=True)"
        ) from error
    if ids.ndim == 1:
        ids = ids[None, :]
    if ids.ndim != 2 or ids.size == 0:
        raise UserError(f"input_ids has shape {ids.shape}; needed: [rows, tokens], at least one token each")
    if ids.dtype.kind not in "iu":
        raise UserError(f"input_ids has type {ids.dtype}; needed: whole numbers")
    if ids.min() < 0 or ids.max() >= vocab_size:
        bad = int(ids.max() if ids.max() >= vocab_size else ids.min())
        raise UserError(f"input_ids holds id {bad}; this artifact's ids are 0..{vocab_size - 1} (vocab_size)")
    return ids.astype(np.int64)


def prompt_mask(ids: np.ndarray, attention_mask: Any, config: GenerationConfig) -> np.ndarray:
    """Boolean [B, n], true where a token counts: as given, or inferred as Hugging Face infers it.

    Inferred: tokens equal to pad_token_id are padding, unless it is one of the eos ids, which a prompt may hold; then
    every token counts, and a warning says so where a row begins or ends with it.
    """
    if attention_mask is not None:
        mask = np.asarray(attention_mask)
        if mask.ndim == 1:
            mask = mask[None, :]
        if mask.shape != ids.shape:
            raise UserError(f"attention_mask has shape {mask.shape}; needed: {ids.shape}, as input_ids")
        if not np.isin(mask, (0, 1)).all():
            raise UserError("attention_mask holds other values than 0 and 1")
        return mask.astype(bool)
    pad = config.padding
    if pad is None or not (ids == pad).any():
        return np.ones(ids.shape, bool)
    if pad in config.eos_token_id:
        if len(ids) > 1 and (ids[:, [0, -1]] == pad).any():
            warnings.warn(
                "attention_mask is not given and cannot be inferred, since pad_token_id is an eos id: "
                "padding counts as text. Pass the tokenizer's attention_mask",
                stacklevel=3,
            )
        return np.ones(ids.shape, bool)
    return ids != pad


def prompt_rows(ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Each row's tokens without padding. Dropping masked tokens is exact: they are attended by none, and positions
    count the others only. So left, right and mixed padding give the same."""
    rows = [row[keep] for row, keep in zip(ids, mask, strict=True)]
    for index, row in enumerate(rows):
        if row.size == 0:
            raise UserError(f"prompt {index} is empty (its attention_mask is all 0); needed: at least one token")
    return rows


def new_token_limit(config: GenerationConfig, columns: int, longest: int, artifact: Artifact) -> int:
    """How many tokens may follow. columns: width of input_ids, which max_length counts; longest: tokens of the longest
    row. The context bounds them; a prompt that leaves no room is a UserError."""
    context = artifact.manifest.context
    if longest >= context:
        raise UserError(_too_long(longest, artifact))
    limit = config.max_new_tokens
    if limit is None and config.max_length is not None:
        limit = config.max_length - columns
        if limit < 1:
            raise UserError(
                f"max_length is {config.max_length} and the prompt has {columns} tokens already. "
                "Raise it, or use max_new_tokens"
            )
    return min(DEFAULT_NEW_TOKENS if limit is None else limit, context - longest)


def _too_long(tokens: int, artifact: Artifact) -> str:
    manifest = artifact.manifest
    found = f"prompt has {tokens:,} tokens; this artifact holds {manifest.context:,} (context), one of them new. "
    model_holds = manifest.config.get("max_position_embeddings", tokens + 1)
    if tokens >= model_holds:
        return found + f"The model was made for {model_holds:,}: shorten the prompt"
    wanted = min(1 << tokens.bit_length(), model_holds)
    return found + f"Export with `make export MODEL={manifest.source.model} CONTEXT={wanted}`"


def greedy(logits: np.ndarray) -> np.ndarray:
    """The most likely token of each row: [B, V] -> [B]."""
    return logits.argmax(axis=-1)


def decode(
    engine: Steps,
    rows: Sequence[np.ndarray],
    limit: int,
    eos: Sequence[int],
    timings: Timings,
    select: Callable[[np.ndarray], np.ndarray] = greedy,
) -> Iterator[np.ndarray]:
    """Prefill `rows` (at most engine.batch prompts) together, then yield the new token of each, step by step.

    Yields int64 [len(rows)], -1 for rows that an eos token ended before. Stops when all have ended, or after `limit`
    tokens. Nothing is computed beyond the token last asked for.
    """
    length = np.zeros(engine.batch, np.int64)
    length[: len(rows)] = [len(row) for row in rows]
    tokens = np.zeros((engine.batch, int(length.max())), np.int64)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    start = np.zeros_like(length)
    live = length > 0
    timings.prompt_tokens += int(length.sum())
    for step in range(limit):
        began = time.perf_counter()
        logits = engine.forward(tokens, start, length)
        spent = time.perf_counter() - began
        if step == 0:
            timings.prefill += spent
        else:
            timings.decode += spent
            timings.decode_steps += 1
        picked = select(logits)
        if np.isnan(logits[live, picked[live]]).any():
            raise RuntimeError(f"logits are not numbers after {int(start.max() + length.max())} tokens")
        yield np.where(live, picked, -1)[: len(rows)]
        start = start + length
        live = live & ~np.isin(picked, eos)
        if not live.any():
            return
        length = live.astype(np.int64)
        tokens = picked[:, None]


def join(ids: np.ndarray, new: list[np.ndarray], padding: int | None) -> np.ndarray:
    """ids [B, n] and each row's new tokens, padded to the longest: [B, n + new], as Hugging Face returns it."""
    width = max(len(row) for row in new)
    filler = 0 if padding is None else padding  # None: no eos, so every row has the same length
    output = np.full((len(ids), ids.shape[1] + width), filler, np.int64)
    output[:, : ids.shape[1]] = ids
    for index, row in enumerate(new):
        output[index, ids.shape[1] : ids.shape[1] + len(row)] = row
    return output
