"""What generate(), stream() and chat() return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .decode import GenerationTimings
from .tensors import Convert

if TYPE_CHECKING:
    from ..tools.functions import CalledFunction


@dataclass(frozen=True)
class Piece:
    """One new token of a stream.

    Attributes:
        id: the token; None in the last piece of a cancelled stream.
        text: the text that the token completes: whole graphemes only, often empty.
        logprob: the token's log-probability under the model, before sampling settings; None without a token.
        finish_reason: in the last piece "eos", "stop_string", "stopping_criteria", "length" or "cancelled"; else None.
        timings: in the last piece the timings of the stream; else None.
        tool_calls: in the last piece of stream_chat() with tools, the calls that the answer has.
    """

    id: int | None
    text: str
    logprob: float | None
    finish_reason: str | None = None
    timings: GenerationTimings | None = None
    tool_calls: tuple[CalledFunction, ...] = ()


@dataclass(frozen=True)
class ChatAnswer:
    """What chat() returns; str() of it is the text.

    Attributes:
        content: the text.
        finish_reason: why the answer ended, as in Piece.
        timings: of the answer.
        tool_calls: the calls that the answer has, if chat() was given tools. Its text is then without them.
    """

    content: str
    finish_reason: str
    timings: GenerationTimings
    tool_calls: tuple[CalledFunction, ...] = ()

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, to append to the conversation."""
        calls = {"tool_calls": [call.as_dict() for call in self.tool_calls]} if self.tool_calls else {}
        return {"role": "assistant", "content": self.content, **calls}

    def __str__(self) -> str:
        return self.content


@dataclass(frozen=True)
class GenerateOutput:
    """What generate() returns with return_dict_in_generate. Arrays hold zeros for rows that had ended.

    The arrays are torch tensors if the prompt was one.

    Attributes:
        sequences: int64 [B, n + new], prompts first.
        finish_reasons: why each row ended, as in Piece.
        new_tokens: how many tokens each row generated, without padding.
        timings: of the call.
        scores: per step float32 [B, V], after processors and sampling settings (output_scores). In beam search they
            are log-probabilities.
        logits: per step float32 [B, V], as the model gave them (output_logits).
        logprobs: float32 [B, new], of each new token under the model (output_logprobs).
        sequences_scores: float32 [B], the score that ranks each sequence; beam search only.
        beam_indices: int64 [B, new], the row of scores and logits (prompt by prompt, num_beams each) that each token
            came from, -1 behind the end; beam search only.
    """

    sequences: np.ndarray
    finish_reasons: tuple[str, ...]
    new_tokens: tuple[int, ...]
    timings: GenerationTimings
    scores: tuple[np.ndarray, ...] | None = None
    logits: tuple[np.ndarray, ...] | None = None
    logprobs: np.ndarray | None = None
    sequences_scores: np.ndarray | None = None
    beam_indices: np.ndarray | None = None

    def __getitem__(self, name: str) -> Any:
        """Return an attribute by its name, as Hugging Face's ModelOutput does: output["sequences"]."""
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)


def as_given(result: np.ndarray | GenerateOutput, convert: Convert) -> Any:
    """Return a result of generate() with its arrays as what the prompt is."""
    if isinstance(result, np.ndarray):
        return convert(result)
    changes: dict[str, Any] = {}
    for name in ("sequences", "logprobs", "sequences_scores", "beam_indices"):
        array = getattr(result, name)
        changes[name] = None if array is None else convert(array)
    for name in ("scores", "logits"):
        steps = getattr(result, name)
        changes[name] = None if steps is None else tuple(map(convert, steps))
    return replace(result, **changes)


class Streamer(Protocol):
    """The interface of transformers' TextStreamer."""

    def put(self, value: Any) -> Any:
        """Take the prompts [B, n], then each step's tokens [B]."""

    def end(self) -> Any:
        """Take note that no more tokens follow."""


def join_steps(parts: Sequence[Sequence[np.ndarray]], rows: Sequence[int], steps: int) -> tuple[np.ndarray, ...]:
    """Concatenate the arrays of several batches, step by step; zeros stand for a batch that had ended.

    Args:
        parts: of each batch, one float32 array [rows, ...] per step.
        rows: how many rows each batch has.
        steps: length of the result.
    """
    shape = next((arrays[0].shape[1:] for arrays in parts if arrays), ())
    blanks = [np.zeros((count, *shape), np.float32) for count in rows]
    return tuple(
        np.concatenate(
            [arrays[step] if step < len(arrays) else blank for arrays, blank in zip(parts, blanks, strict=True)]
        )
        for step in range(steps)
    )
