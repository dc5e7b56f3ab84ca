"""What ends a row besides its length: eos ids, stop strings, and the caller's own criteria."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from ..text.tokenizer import Tokenizer
from .config import GenerationConfig
from .sequences import Sequences

# A caller's criterion, as Hugging Face calls its own but with numpy arrays: input_ids [rows, n], scores.
StoppingCriterion = Callable[[np.ndarray, Any], Any]  # -> one boolean, or [rows]
Stop = Callable[[Sequences], Sequence[bool]]  # -> [rows]: the row ends with its last token


def stops(
    config: GenerationConfig,
    tokenizer: Callable[[], Tokenizer],
    rows: int,
    scores: Sequence[np.ndarray] = (),
    criteria: Sequence[StoppingCriterion] = (),
) -> list[tuple[str, Stop]]:
    """Return (finish reason, stop) for everything besides the length that may end a row.

    Args:
        config: gives eos_token_id, stop_strings and output_scores.
        tokenizer: returns the tokenizer; called only if there are stop strings.
        rows: how many rows run together.
        scores: the scores of the steps so far, which grow while the rows run; criteria get them with output_scores.
        criteria: the caller's own.
    """
    made: list[tuple[str, Stop]] = []
    if config.eos_token_id:
        eos = frozenset(config.eos_token_id)
        made.append(("eos", lambda sequences: [token in eos for token in sequences.newest()]))
    if config.stop_strings:
        made.append(("stop_string", StopStrings(config.stop_strings, tokenizer(), rows)))
    for criterion in criteria:
        made.append(("stopping_criteria", _criterion(criterion, config, scores)))
    return made


class StopStrings:
    """Ends a row when its new text, including special tokens, contains one of the strings."""

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer, rows: int) -> None:
        self.strings = strings
        self.before = max(len(string) for string in strings) - 1  # earlier characters that a string may begin with
        self.streams = [tokenizer.text_stream(skip_special_tokens=False) for _ in range(rows)]
        self.tails = [""] * rows

    def __call__(self, sequences: Sequences) -> list[bool]:
        """Return which rows end with their last token, [rows]."""
        found = [False] * len(sequences)
        last = sequences.newest()
        for row in [row for row, live in enumerate(sequences.live) if live]:
            text = self.tails[row] + self.streams[row].push(last[row])
            found[row] = any(string in text for string in self.strings)
            self.tails[row] = text[max(0, len(text) - self.before) :]
        return found


def _criterion(criterion: StoppingCriterion, config: GenerationConfig, scores: Sequence[np.ndarray]) -> Stop:
    def stop(sequences: Sequences) -> list[bool]:
        ended = np.asarray(
            criterion(sequences.left_padded(config.padding or 0), tuple(scores) if config.output_scores else None), bool
        )
        rows = len(sequences)
        if ended.shape not in ((), (rows,)):
            raise UserError(f"a stopping_criteria returned shape {ended.shape}; needed: one boolean, or {rows}")
        return np.broadcast_to(ended, rows).tolist()

    return stop
