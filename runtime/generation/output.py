"""What generate() and stream() give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .decode import Timings


@dataclass(frozen=True)
class Piece:
    """One new token of a stream. `text` is what it completes (whole graphemes only, often empty); `logprob` is the
    model's, before sampling settings. The last piece has a finish_reason and the timings: "eos", "stop_string",
    "stopping_criteria", "length", or "cancelled", and then it has no token: id and logprob are None."""

    id: int | None
    text: str
    logprob: float | None
    finish_reason: str | None = None
    timings: Timings | None = None


@dataclass(frozen=True)
class Answer:
    """What chat() returns: the text, why it ended (as of Piece), and the timings. str() of it is the text."""

    content: str
    finish_reason: str
    timings: Timings

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, to be appended to the conversation."""
        return {"role": "assistant", "content": self.content}

    def __str__(self) -> str:
        return self.content


@dataclass(frozen=True)
class GenerateOutput:
    """What generate() returns with return_dict_in_generate.

    sequences int64 [B, n + new]; finish_reasons and new_tokens (how many, padding left out), one a row. Where asked
    for: scores (after processors and warpers) and logits (before), a float32 [B, V] a step; logprobs float32 [B, new],
    the model's own of each new token. Zeros where a row had ended. Of a beam search also sequences_scores float32 [B],
    what the texts were ranked by, and beam_indices int64 [B, new], the row of scores and logits (prompt by prompt,
    num_beams each) that each token was added by, -1 behind the end; its scores are log-probabilities.
    """

    sequences: np.ndarray
    finish_reasons: tuple[str, ...]
    new_tokens: tuple[int, ...]
    timings: Timings
    scores: tuple[np.ndarray, ...] | None = None
    logits: tuple[np.ndarray, ...] | None = None
    logprobs: np.ndarray | None = None
    sequences_scores: np.ndarray | None = None
    beam_indices: np.ndarray | None = None

    def __getitem__(self, name: str) -> Any:
        """As Hugging Face's ModelOutput: output["sequences"]."""
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)


class Streamer(Protocol):
    """What transformers' TextStreamer and TextIteratorStreamer are: given the prompts, then each step's tokens."""

    def put(self, value: Any) -> Any: ...
    def end(self) -> Any: ...
