"""What ends a row besides its length: eos ids, stop strings, and a caller's own criteria."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from ..text.tokenizer import Tokenizer
from .config import GenerationConfig
from .decode import Stop
from .sequences import Texts
from .token_selector import Chooser

StoppingCriterion = Callable[[np.ndarray, Any], Any]  # -> one boolean, or [rows]


def stops(
    config: GenerationConfig,
    tokenizer: Callable[[], Tokenizer],
    rows: int,
    chooser: Chooser,
    criteria: Sequence[StoppingCriterion] = (),
) -> list[tuple[str, Stop]]:
    """(finish reason, stop) of all that may end one of `rows` rows beside the length."""
    made: list[tuple[str, Stop]] = []
    if config.eos_token_id:
        eos = frozenset(config.eos_token_id)
        made.append(("eos", lambda texts: [token in eos for token in texts.newest()]))
    if config.stop_strings:
        made.append(("stop_string", StopStrings(config.stop_strings, tokenizer(), rows)))
    for criterion in criteria:
        made.append(("stopping_criteria", _criterion(criterion, config, chooser)))
    return made


class StopStrings:
    """Ends a row where its new text, special tokens included, holds one of the strings."""

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer, rows: int) -> None:
        self.strings = strings
        self.before = max(len(string) for string in strings) - 1  # characters that a string may begin with earlier
        self.streams = [tokenizer.text_stream(skip_special_tokens=False) for _ in range(rows)]
        self.tails = [""] * rows

    def __call__(self, texts: Texts) -> list[bool]:
        found = [False] * len(texts)
        last = texts.newest()
        for row in [row for row, live in enumerate(texts.live) if live]:
            text = self.tails[row] + self.streams[row].push(last[row])
            found[row] = any(string in text for string in self.strings)
            self.tails[row] = text[max(0, len(text) - self.before) :]
        return found


def _criterion(criterion: StoppingCriterion, config: GenerationConfig, chooser: Chooser) -> Stop:
    def stop(texts: Texts) -> list[bool]:
        scores = tuple(chooser.scores) if config.output_scores else None
        ended = np.asarray(criterion(texts.left_padded(config.padding or 0), scores), bool)
        if ended.shape not in ((), (len(texts),)):
            raise UserError(f"a stopping_criteria returned shape {ended.shape}; needed: one boolean, or {len(texts)}")
        return np.broadcast_to(ended, len(texts)).tolist()

    return stop
