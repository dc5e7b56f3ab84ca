"""Prompt lookup on texts: what it gains, and which share of the guesses is right."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.engine import Engine
from ..errors import UserError
from ..generation.decode import GenerationTimings, decode, greedy
from ..generation.sequences import Sequences
from ..generation.speculative import LONGEST_NGRAM, MOST_TOKENS, Pace, PromptLookup, decode_guessing
from ..text.tokenizer import Tokenizer
from .workload import statistic

NEW_TOKENS = 128  # at most, of each answer


class LookupText:
    """Measures the greedy answer to one text, token by token and with prompt lookup.

    Attributes:
        name: of the file.
        prompt: token ids [n].
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, path: Path) -> None:
        """Read the text, as a message of a chat if the model has a chat template.

        Raises:
            UserError: the file cannot be read, leaves no room for an answer, or the target cannot check guesses.
        """
        _ = engine.head
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error}). Name a text file in UTF-8") from error
        chat = tokenizer.chat_template is not None
        rendered = tokenizer.render_chat([{"role": "user", "content": text}]) if chat else text
        self.name = path.name
        self.prompt = np.array(tokenizer.encode(rendered, add_special_tokens=not chat), np.int64)
        self._engine = engine
        self._eos = frozenset(engine.manifest.eos_token_id)
        self._limit = min(NEW_TOKENS, engine.context - len(self.prompt))
        if len(self.prompt) == 0 or self._limit < 2:
            raise UserError(
                f"{path}: {len(self.prompt):,} tokens; needed: 1 to {engine.context - 2:,}, so that this artifact "
                f"(context {engine.context:,}) has room for an answer"
            )
        self._seconds: dict[str, list[float]] = {"plain": [], "lookup": []}
        self._answer: list[int] = []
        self._timings = GenerationTimings()

    def measure(self) -> None:
        """Take one sample of each."""
        plain, seconds = self._run(GenerationTimings(), guess=False)
        self._seconds["plain"].append(seconds)
        self._timings = GenerationTimings()
        self._answer, seconds = self._run(self._timings, guess=True)
        self._seconds["lookup"].append(seconds)
        if self._answer != plain:
            raise UserError(f"{self.name}: prompt lookup gives another answer, which is a defect. Report it")

    def entry(self) -> dict[str, Any]:
        """The entry in the report's `prompt_lookup`. Drops the first sample, which warms up; counts are the last's."""
        plain, lookup = self._seconds["plain"][1:], self._seconds["lookup"][1:]
        guessed, accepted = self._timings.guessed_tokens, self._timings.accepted_tokens
        return {
            "name": self.name,
            "prompt_tokens": len(self.prompt),
            "new_tokens": len(self._answer),
            "guessed_tokens": guessed,
            "accepted_tokens": accepted,
            "plain_seconds": statistic(plain),
            "lookup_seconds": statistic(lookup),
            "gain": statistic([one / other for one, other in zip(plain, lookup, strict=True)]),
        }

    def _run(self, timings: GenerationTimings, guess: bool) -> tuple[list[int], float]:
        """Generate the answer. Returns its tokens, and the seconds from the first to the last."""
        sequences = Sequences([self.prompt], [self._limit])
        steps = self._steps(sequences, timings, guess)
        next(steps)
        began = time.perf_counter()
        for _ in steps:
            pass
        return sequences.new(0).tolist(), time.perf_counter() - began

    def _steps(self, sequences: Sequences, timings: GenerationTimings, guess: bool) -> Iterator[list[int]]:
        engine = self._engine
        stops = [("eos", lambda rows: [token in self._eos for token in rows.newest()])]
        if not guess:
            return decode(engine, sequences, timings, stops=stops)
        return decode_guessing(
            *(engine, sequences, timings, lambda _, logits: greedy(logits).tolist(), stops, (0, 0), engine.forward),
            *(lambda: False, PromptLookup(LONGEST_NGRAM), Pace(MOST_TOKENS - 1)),
        )


def lookup_texts(engine: Engine, tokenizer: Tokenizer | None, paths: Sequence[str]) -> list[LookupText]:
    """Return the measurements of these files. Raises UserError if the artifact has no tokenizer to read them."""
    if paths and tokenizer is None:
        raise UserError("--lookup reads texts, and this artifact has no tokenizer. Export one with its tokenizer")
    return [] if tokenizer is None else [LookupText(engine, tokenizer, Path(path)) for path in paths]
