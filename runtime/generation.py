"""The decode loop, and what generate() means: the arguments and conventions of Hugging Face's, in numpy.

Reference for the conventions: transformers' `GenerationMixin.generate` (padding, mask inference, lengths, eos, output).
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from runtime.artifact.manifest import Artifact
from runtime.errors import UserError
from runtime.generation_config import GenerationConfig
from runtime.prefix_cache import Placement
from runtime.sampling import NotNumbersError, Sampler
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
    if isinstance(input_ids, Mapping):
        raise UserError(f"input_ids is a {type(input_ids).__name__}; needed: token ids. Unpack it: generate(**inputs)")
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
                stacklevel=5,
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


def new_token_limit(config: GenerationConfig, columns: int, tokens: int, artifact: Artifact) -> int:
    """How many tokens may follow a row. columns: width of input_ids, which max_length counts; tokens: the row's own.
    The context bounds them; a prompt that leaves no room is a UserError."""
    context = artifact.manifest.context
    if tokens >= context:
        raise UserError(_too_long(tokens, artifact))
    limit = config.max_new_tokens
    if limit is None and config.max_length is not None:
        limit = config.max_length - columns
        if limit < 1:
            raise UserError(
                f"max_length is {config.max_length} and the prompt has {columns} tokens already. "
                "Raise it, or use max_new_tokens"
            )
    return min(DEFAULT_NEW_TOKENS if limit is None else limit, context - tokens)


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

    def __init__(self, prompts: Sequence[np.ndarray], limits: Sequence[int]) -> None:
        """limits: how many new tokens each row may have."""
        self.limits = list(limits)
        self.limit, self._least = max(limits), min(limits)
        self.steps = 0
        # Lists: of so few numbers Python's own are cheaper than numpy's, in a decode step above all.
        self.prompt_length = [len(prompt) for prompt in prompts]
        self.length = list(self.prompt_length)
        width = max(length + limit for length, limit in zip(self.length, limits, strict=True))
        self.ids = np.zeros((len(prompts), width), np.int64)
        for row, prompt in zip(self.ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        self.live = [True] * len(prompts)
        self.finish_reasons: list[str | None] = [None] * len(prompts)

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> np.ndarray:
        return self.ids[index, : self.length[index]]

    def new(self, index: int) -> np.ndarray:
        """The row's new tokens, the eos that ended it included."""
        return self.ids[index, self.prompt_length[index] : self.length[index]]

    def newest(self) -> list[int]:
        """Each row's last token."""
        return [self.ids.item(row, length - 1) for row, length in enumerate(self.length)]

    def last(self) -> np.ndarray:
        """Each row's last token, [rows]."""
        return np.array(self.newest())

    def left_padded(self, filler: int) -> np.ndarray:
        """All texts as Hugging Face's callables see them, [rows, longest prompt + steps]; ended rows are filled up."""
        out = np.full((len(self), max(self.prompt_length) + self.steps), filler, np.int64)
        for index, row in enumerate(out):
            text = self.row(index)
            first = len(row) - self.steps - self.prompt_length[index]
            row[first : first + len(text)] = text
        return out

    def push(self, picked: Sequence[int]) -> None:
        """Add a token to each live row; picked: [rows]."""
        for row, token in enumerate(picked):
            if self.live[row]:
                self.ids[row, self.length[row]] = token
                self.length[row] += 1
        self.steps += 1

    def full(self) -> list[bool]:
        """Which rows have as many new tokens as they may."""
        if self.steps < self._least:  # every step but the last, most often
            return [False] * len(self)
        return [self.steps >= limit for limit in self.limits]

    def finish(self, ended: Sequence[bool], reason: str) -> None:
        """Rows of `ended` that still live end now."""
        for row, ends in enumerate(ended):
            if ends and self.live[row]:
                self.finish_reasons[row] = reason
                self.live[row] = False


Forward = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # Engine.forward
Choose = Callable[[Texts, np.ndarray], Sequence[int]]  # texts, logits [rows, V] -> tokens [rows]; ended rows: any
Stop = Callable[[Texts], Sequence[bool]]  # [rows]: ends with its last token


def greedy(logits: np.ndarray) -> np.ndarray:
    """The most likely token of each row: [B, V] float32 -> [B]. Raises NotNumbersError where logits are not numbers."""
    return np.array([_plain().likeliest(logits, row) for row in range(len(logits))])


@functools.cache
def _plain() -> Sampler:
    return Sampler()


def decode(
    engine: Steps,
    texts: Texts,
    timings: Timings,
    choose: Choose = lambda texts, logits: greedy(logits).tolist(),
    stops: Sequence[tuple[str, Stop]] = (),
    placement: Placement | None = None,
    forward: Forward | None = None,
) -> Iterator[list[int]]:
    """Prefill the prompts of `texts` (at most engine.batch) together, then add a token to each row, step by step.

    Yields the new tokens [rows], -1 for rows that ended before; `texts` holds them then. A row ends where one of
    `stops` (finish reason, stop) says so, or after its limit of tokens ("length"); all end where `forward` raises
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
    length[rows] = np.array(texts.length) - cached
    tokens = np.zeros((engine.batch, int(length.max())), np.int64)
    for index, row in enumerate(rows):
        tokens[row, : length[row]] = texts.row(index)[cached[index] :]
    timings.prompt_tokens += sum(texts.length)
    timings.cached_tokens += int(cached.sum())
    places = rows.tolist()
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
        try:
            picked = choose(texts, logits)
        except NotNumbersError as error:
            raise RuntimeError(f"logits are not numbers after {int((start + length).max())} tokens") from error
        picked = [token if live else -1 for token, live in zip(picked, texts.live, strict=True)]
        texts.push(picked)
        for reason, stop in stops:
            texts.finish(stop(texts), reason)
        texts.finish(texts.full(), "length")
        yield picked
        if True not in texts.live:
            return
        if step == 0:
            tokens = np.zeros((engine.batch, 1), np.int64)
        # A row at a time: of so few numbers this is cheaper than numpy's functions, whose code has left the caches.
        for row, alive, token in zip(places, texts.live, picked, strict=True):
            start[row] = start.item(row) + length.item(row)
            length[row] = alive
            tokens[row, 0] = max(token, 0)


def join(ids: np.ndarray, new: Sequence[np.ndarray], padding: int | None) -> np.ndarray:
    """ids [B, n] and each row's new tokens, padded to the longest: [B, n + new], as Hugging Face returns it."""
    width = max(len(row) for row in new)
    filler = 0 if padding is None else padding  # None: no eos, so rows end together unless something else ends them
    output = np.full((len(ids), ids.shape[1] + width), filler, np.int64)
    output[:, : ids.shape[1]] = ids
    for index, row in enumerate(new):
        output[index, ids.shape[1] : ids.shape[1] + len(row)] = row
    return output
