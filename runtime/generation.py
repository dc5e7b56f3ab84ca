"""The decode loop, and what generate() means: the arguments and conventions of Hugging Face's, in numpy.

Reference for the conventions: transformers' `GenerationMixin.generate` (padding, mask inference, lengths, eos, output).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from runtime.artifact import Artifact
from runtime.errors import UserError
from runtime.generation_config import GenerationConfig
from runtime.prefix_cache import Placement
from runtime.turn import Cancelled

DEFAULT_NEW_TOKENS = 20  # Hugging Face's, where neither call nor generation_config.json says


class Steps(Protocol):
    """What the loop needs of an engine."""

    batch: int

    def forward(self, tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray: ...


@dataclass
class Timings:
    """Counts and seconds of one generation. cached_tokens of the prompt_tokens were in the cache already, so that only
    the others were computed. Decode steps exclude the prefill, which yields the first token."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
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
    if ids.dtype.kind in "US":
        raise UserError("input_ids is text; needed: token ids. Tokenize it first: tokenizer(prompts, padding=True)")
    if ids.size == 0:
        raise UserError(f"the prompt is empty (input_ids has shape {ids.shape}); needed: at least one token")
    if ids.ndim != 2:
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


class Texts:
    """The rows of one wave: each one's ids, its prompt without padding first, and why it ended."""

    def __init__(self, prompts: Sequence[np.ndarray], limit: int) -> None:
        """limit: how many new tokens a row may have."""
        self.limit = limit
        self.steps = 0
        self.prompt_length = np.array([len(prompt) for prompt in prompts], np.int64)
        self.length = self.prompt_length.copy()
        self.ids = np.zeros((len(prompts), int(self.length.max()) + limit), np.int64)
        for row, prompt in zip(self.ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        self.live = np.ones(len(prompts), bool)
        self.finish_reasons: list[str | None] = [None] * len(prompts)

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> np.ndarray:
        return self.ids[index, : self.length[index]]

    def new(self, index: int) -> np.ndarray:
        """The row's new tokens, the eos that ended it included."""
        return self.ids[index, self.prompt_length[index] : self.length[index]]

    def last(self) -> np.ndarray:
        """Each row's last token, [rows]."""
        return np.array([self.ids[row, length - 1] for row, length in enumerate(self.length.tolist())])

    def left_padded(self, filler: int) -> np.ndarray:
        """All texts as Hugging Face's callables see them, [rows, longest prompt + steps]; ended rows are filled up."""
        out = np.full((len(self), int(self.prompt_length.max()) + self.steps), filler, np.int64)
        for index, row in enumerate(out):
            text = self.row(index)
            first = len(row) - self.steps - self.prompt_length[index]
            row[first : first + len(text)] = text
        return out

    def push(self, picked: np.ndarray) -> None:
        """Add a token to each live row; picked: [rows]."""
        for row, (token, live) in enumerate(zip(picked.tolist(), self.live.tolist(), strict=True)):
            if live:
                self.ids[row, self.length[row]] = token
                self.length[row] += 1
        self.steps += 1

    def finish(self, ended: np.ndarray, reason: str) -> None:
        """Rows of `ended` (boolean [rows]) that still live end now."""
        if not ended.any():
            return
        for index in np.flatnonzero(ended & self.live):
            self.finish_reasons[index] = reason
        self.live &= ~ended


Forward = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # Engine.forward
Choose = Callable[[Texts, np.ndarray], np.ndarray]  # texts, logits [rows, V] -> tokens [rows]; ended rows: any
Stop = Callable[[Texts], np.ndarray]  # -> boolean [rows]: ends with its last token


def greedy(logits: np.ndarray) -> np.ndarray:
    """The most likely token of each row: [B, V] -> [B]."""
    return logits.argmax(axis=-1)


def decode(
    engine: Steps,
    texts: Texts,
    timings: Timings,
    choose: Choose = lambda texts, logits: greedy(logits),
    stops: Sequence[tuple[str, Stop]] = (),
    placement: Placement | None = None,
    forward: Forward | None = None,
) -> Iterator[np.ndarray]:
    """Prefill the prompts of `texts` (at most engine.batch) together, then add a token to each row, step by step.

    Yields the new tokens int64 [rows], -1 for rows that ended before; `texts` holds them then. A row ends where one of
    `stops` (finish reason, stop) says so; all end after texts.limit tokens ("length"), or where `forward` raises
    Cancelled ("cancelled", without a token). Nothing is computed beyond the token last asked for.
    placement: the texts' cache rows, and how much of them is there; the first rows, nothing, when None.
    forward: stands for engine.forward.
    """
    forward = forward or engine.forward
    rows, cached = placement or Placement(np.arange(len(texts)), np.zeros(len(texts), np.int64))
    together = np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
    mine = slice(rows[0], rows[0] + len(rows)) if together else rows  # a slice of the logits is no copy
    start = np.zeros(engine.batch, np.int64)
    length = np.zeros(engine.batch, np.int64)
    start[rows] = cached
    length[rows] = texts.length - cached
    tokens = np.zeros((engine.batch, int(length.max())), np.int64)
    for index, row in enumerate(rows):
        tokens[row, : length[row]] = texts.row(index)[cached[index] :]
    timings.prompt_tokens += int(texts.length.sum())
    timings.cached_tokens += int(cached.sum())
    for step in range(texts.limit):
        began = time.perf_counter()
        try:
            logits = forward(tokens, start, length)[mine]
        except Cancelled:
            texts.finish(texts.live, "cancelled")
            return
        finally:
            spent = time.perf_counter() - began
            if step == 0:
                timings.prefill += spent
            else:
                timings.decode += spent
        timings.decode_steps += step > 0
        if math.isnan(logits.max()):
            raise RuntimeError(f"logits are not numbers after {int((start + length).max())} tokens")
        picked = choose(texts, logits)
        if False in texts.live.tolist():
            picked = np.where(texts.live, picked, -1)
        texts.push(picked)
        for reason, stop in stops:
            texts.finish(stop(texts), reason)
        if step == texts.limit - 1:
            texts.finish(texts.live, "length")
        yield picked
        if not texts.live.any():
            return
        start = start + length
        length = np.zeros(engine.batch, np.int64)
        length[rows] = texts.live
        tokens = np.zeros((engine.batch, 1), np.int64)
        tokens[rows, 0] = np.maximum(picked, 0)


def join(ids: np.ndarray, new: Sequence[np.ndarray], padding: int | None) -> np.ndarray:
    """ids [B, n] and each row's new tokens, padded to the longest: [B, n + new], as Hugging Face returns it."""
    width = max(len(row) for row in new)
    filler = 0 if padding is None else padding  # None: no eos, so rows end together unless something else ends them
    output = np.full((len(ids), ids.shape[1] + width), filler, np.int64)
    output[:, : ids.shape[1]] = ids
    for index, row in enumerate(new):
        output[index, ids.shape[1] : ids.shape[1] + len(row)] = row
    return output
