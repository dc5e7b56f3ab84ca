"""Checks of the prompts given to generate(): token ids, the attention mask, and how many tokens may follow.

The conventions are those of transformers' `GenerationMixin.generate` (padding, inference of the mask, lengths).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..artifact.manifest import Artifact
from ..errors import UserError
from .config import GenerationConfig

DEFAULT_NEW_TOKENS = 20  # Hugging Face's default if neither the call nor generation_config.json gives a limit


def prepare_prompts(
    input_ids: Any,
    attention_mask: Any,
    config: GenerationConfig,
    vocab_size: int,
    artifact: Artifact,
) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """Return the prompts int64 [B, n], each row's tokens without padding, and how many tokens may follow each row.

    Args:
        input_ids: as `prompt_ids` takes them.
        attention_mask: as `prompt_mask` takes it.
        config: the settings of the call.
        vocab_size: the ids must be below it.
        artifact: gives the context.

    Raises:
        UserError: a prompt or the mask is wrong, or a prompt leaves no room.
    """
    ids = prompt_ids(input_ids, vocab_size)
    rows = prompt_rows(ids, prompt_mask(ids, attention_mask, config))
    limits = [new_token_limit(config, ids.shape[1], len(row), artifact) for row in rows]
    return ids, rows, limits


def prompt_ids(input_ids: Any, vocab_size: int) -> np.ndarray:
    """Return input_ids as int64 [B, n].

    Args:
        input_ids: an array, a tensor, a list of rows, or one row.
        vocab_size: the ids must be below it.

    Raises:
        UserError: input_ids is anything else, is empty, or holds an id outside the vocabulary.
    """
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
    """Return a boolean mask [B, n], true where a token counts.

    Without attention_mask it is inferred as Hugging Face infers it: tokens equal to pad_token_id are padding, unless
    pad_token_id is also an eos id, which a prompt may hold. Then every token counts, and a warning is given if a row
    begins or ends with that id.

    Args:
        ids: int64 [B, n].
        attention_mask: 0 and 1, [B, n] or [n]; or None.
        config: gives pad_token_id and eos_token_id.

    Raises:
        UserError: attention_mask has another shape, or other values than 0 and 1.
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
    """Return each row's tokens without padding.

    Dropping masked tokens is exact: no token attends to them, and positions count only the others. So left, right and
    mixed padding give the same result.

    Args:
        ids: int64 [B, n].
        mask: boolean [B, n].

    Raises:
        UserError: a row has no token left.
    """
    rows = [row[keep] for row, keep in zip(ids, mask, strict=True)]
    for index, row in enumerate(rows):
        if row.size == 0:
            raise UserError(f"prompt {index} is empty (its attention_mask is all 0); needed: at least one token")
    return rows


def new_token_limit(config: GenerationConfig, columns: int, tokens: int, artifact: Artifact) -> int:
    """Return how many tokens may follow a row; the context bounds them.

    Args:
        config: gives max_new_tokens and max_length.
        columns: width of input_ids, which max_length counts.
        tokens: the row's own tokens.
        artifact: gives the context.

    Raises:
        UserError: the prompt leaves no room.
    """
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
