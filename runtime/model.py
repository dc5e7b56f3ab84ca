"""The model as Hugging Face users know it: from_pretrained, generate, stream."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from runtime import generation
from runtime.artifact import Artifact
from runtime.engine import Engine
from runtime.errors import UserError
from runtime.generation import GenerationConfig, Timings
from runtime.progress import progress
from runtime.text import Tokenizer

KEYWORDS = (
    "input_ids",
    "attention_mask",
    "max_new_tokens",
    "max_length",
    "do_sample",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
)


@dataclass(frozen=True)
class Piece:
    """One new token of a stream. `text` is what it completes (whole characters only, often empty). The last piece has
    a finish_reason, "eos" or "length", and the timings."""

    id: int
    text: str
    finish_reason: str | None = None
    timings: Timings | None = None


class LlamaForCausalLM:
    """A loaded artifact. One generation runs at a time; other threads wait their turn."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        self.artifact = artifact
        self.engine = engine
        self.generation_config = GenerationConfig.of(artifact)
        self._turn = threading.Lock()
        self._turn_of: int | None = None  # the thread whose generation is running

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        threads: int | None = None,
        show_progress: bool = False,
        show_native_log: bool = False,
    ) -> LlamaForCausalLM:
        """Load an artifact folder, as `make export` writes it.

        threads: CPU threads, all available ones when None. show_progress: a line on standard error while it loads.
        show_native_log: let through what MindSpore Lite logs while loading, which otherwise shows on failure only.
        Raises UserError for a folder that is not a whole, unchanged artifact which this runtime can run.
        """
        artifact = Artifact.open(path)
        size = sum(entry.bytes for entry in artifact.manifest.files()) / 1e6
        what = f"Loading {artifact.manifest.name} ({size:,.0f} MB)"
        with progress(what) if show_progress else nullcontext():
            return cls(artifact, Engine(artifact, threads, show_native_log=show_native_log))

    @property
    def config(self) -> SimpleNamespace:
        """The Hugging Face config as attributes."""
        return SimpleNamespace(**self.artifact.manifest.config)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The artifact's tokenizer. `transformers.AutoTokenizer.from_pretrained(<artifact>)` works as well."""
        return Tokenizer.from_folder(self.artifact.path)

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        do_sample: bool | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        use_cache: bool = True,
        **unknown: Any,
    ) -> np.ndarray:
        """Continue each prompt greedily; returns int64 [B, n + new], prompts first, as Hugging Face's generate does.

        input_ids [B, n] (array, tensor or list), padded on either side; attention_mask [B, n] of 0 and 1, or inferred
        from pad_token_id where that is not an eos id. A row ends with any id of eos_token_id, is then filled with
        pad_token_id, and all end after max_new_tokens, at max_length, or where the context is full. Defaults are the
        artifact's. More rows than the artifact's batch run in waves. use_cache can only be True.
        Raises UserError for input that does not fit, TypeError for an unknown keyword.
        """
        _refuse(unknown, do_sample, use_cache)
        config = self.generation_config.updated(max_new_tokens, max_length, eos_token_id, pad_token_id)
        ids, rows, limit = self._prepare(input_ids, attention_mask, config)
        timings = Timings()
        new: list[np.ndarray] = []
        with self._my_turn():
            for first in range(0, len(rows), self.engine.batch):
                wave = rows[first : first + self.engine.batch]
                steps = np.stack(
                    list(generation.decode(self.engine, wave, limit, config.eos_token_id, timings)), axis=1
                )
                new += [row[row >= 0] for row in steps]
        return generation.join(ids, new, config.padding)

    def stream(
        self,
        prompt: str | Any,
        *,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        do_sample: bool | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        use_cache: bool = True,
        **unknown: Any,
    ) -> Iterator[Piece]:
        """Continue one prompt (text, or its token ids), yielding a Piece per new token. Arguments as in `generate`,
        and checked before the first piece is asked for. Closing the iterator ends the generation."""
        _refuse(unknown, do_sample, use_cache)
        config = self.generation_config.updated(max_new_tokens, max_length, eos_token_id, None)
        given = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        ids = generation.prompt_ids(given, self.engine.vocab_size)
        if len(ids) != 1:
            raise UserError(f"stream() takes one prompt, {len(ids)} given. Use generate() for a batch")
        _, rows, limit = self._prepare(ids, np.ones_like(ids), config)
        return self._stream(rows[0], limit, config.eos_token_id)

    def _stream(self, row: np.ndarray, limit: int, eos: Sequence[int]) -> Iterator[Piece]:
        timings = Timings()
        text = self.tokenizer.text_stream()
        with self._my_turn():
            for count, (token,) in enumerate(generation.decode(self.engine, [row], limit, eos, timings), start=1):
                piece = text.push(token)
                reason = "eos" if token in eos else "length" if count == limit else None
                if reason is None:
                    yield Piece(int(token), piece)
                else:
                    yield Piece(int(token), piece + text.flush(), reason, timings)

    def _prepare(
        self, input_ids: Any, attention_mask: Any, config: GenerationConfig
    ) -> tuple[np.ndarray, list[np.ndarray], int]:
        ids = generation.prompt_ids(input_ids, self.engine.vocab_size)
        rows = generation.prompt_rows(ids, generation.prompt_mask(ids, attention_mask, config))
        limit = generation.new_token_limit(config, ids.shape[1], max(len(row) for row in rows), self.artifact)
        return ids, rows, limit

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        """The caches hold one generation at a time."""
        me = threading.get_ident()
        if self._turn_of == me:
            raise UserError("another stream() of this thread is not finished. Finish it, or close() it")
        with self._turn:
            self._turn_of = me
            try:
                yield
            finally:
                self._turn_of = None


def _refuse(unknown: dict[str, Any], do_sample: bool | None, use_cache: bool) -> None:
    if unknown:
        name = next(iter(unknown))
        nearest = difflib.get_close_matches(name, KEYWORDS, n=1, cutoff=0.0)[0]
        raise TypeError(f"generate() has no keyword {name!r}; the nearest is {nearest!r}")
    if do_sample:
        raise UserError("do_sample=True: sampling is not there yet, decoding is greedy. Use do_sample=False")
    if not use_cache:
        raise UserError("use_cache=False: the exported graphs always use the cache. Leave it out")
