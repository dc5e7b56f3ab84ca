"""Scores and embeddings of given texts: the methods `score` and `embed` of the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .artifact.manifest import Artifact
from .errors import UserError
from .generation.prompt import prompt_ids
from .generation.scoring import Score, embed, score
from .hf_adapters import AdapterMethods
from .text.tokenizer import Tokenizer

Text = str | Sequence[int]  # a text, or its token ids


class ScoringMethods(AdapterMethods):
    """The methods of LlamaForCausalLM for texts that are given. They use the active adapter."""

    artifact: Artifact
    if TYPE_CHECKING:

        @cached_property
        def tokenizer(self) -> Tokenizer:
            """The artifact's tokenizer."""

    def score(self, prompts: str | Sequence[Text], continuations: str | Sequence[Text]) -> list[Score]:
        """Return the log-probability of each continuation after its prompt. Needs an artifact of the cpu target.

        Args:
            prompts: one for each continuation, as text or token ids; a single text is the prompt of all of them. An
                empty prompt means the artifact's bos token.
            continuations: as text or token ids, none empty. A text is encoded together with the text before it.

        Raises:
            UserError: the lists do not match, a pair does not fit the context, or the target cannot do this.
        """
        given = [continuations] if isinstance(continuations, str) else list(continuations)
        before = [prompts] * len(given) if isinstance(prompts, str) else list(prompts)
        if len(before) != len(given):
            raise UserError(
                f"{len(before)} prompts and {len(given)} continuations. Give one prompt for each, or one text for all"
            )
        pairs = [self._pair(prompt, continuation) for prompt, continuation in zip(before, given, strict=True)]
        with self.engine.engine_lock.take():
            return score(self.engine, pairs, self._adapter_numbers(None, 1)[0])

    def embed(self, texts: str | Sequence[Text], *, pooling: str = "last", normalize: bool = True) -> np.ndarray:
        """Return embeddings of texts, float32 [texts, hidden_size]. Needs an artifact of the cpu target.

        Args:
            texts: a text or several, as text or token ids; none empty.
            pooling: of the hidden states after the final norm: "last" takes that of the last token, "mean" their mean,
                "cls" that of the first token.
            normalize: divide each embedding by its Euclidean norm.

        Raises:
            UserError: a text is empty or does not fit the context, or the target cannot do this.
        """
        rows = [self._ids(text) for text in ([texts] if isinstance(texts, str) else texts)]
        if not rows:
            raise UserError("texts is empty; needed: at least one text")
        with self.engine.engine_lock.take():
            return embed(self.engine, rows, pooling, normalize, self._adapter_numbers(None, 1)[0])

    def _ids(self, text: Text) -> np.ndarray:
        """Return token ids [n]."""
        given = self.tokenizer.encode(text) if isinstance(text, str) else text
        if len(given) == 0:
            raise UserError("a text has no tokens; needed: at least one. Leave empty texts out")
        return prompt_ids([list(given)], self.engine.vocab_size)[0]

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _begins(self, text: str, plain: list[int]) -> list[int]:
        """Return the special tokens, such as bos, that the tokenizer puts before a text with the ids `plain`."""
        ids = self.tokenizer.encode(text)
        places = range(len(ids) - len(plain) + 1)
        return next((ids[:place] for place in places if ids[place : place + len(plain)] == plain), [])

    def _pair(self, prompt: Text, continuation: Text) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids of a prompt and of its continuation."""
        if isinstance(prompt, str) and isinstance(continuation, str):
            # Spaces at the end of the prompt are part of the continuation's first token.
            stripped = prompt.rstrip()
            before, whole = self._plain(stripped), self._plain(prompt + continuation)
            prompt, continuation = self._begins(prompt + continuation, whole) + before, whole[len(before) :]
        elif isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt)
        elif isinstance(continuation, str):
            continuation = self._plain(continuation)
        if len(prompt) == 0:
            bos = self.artifact.manifest.config.get("bos_token_id")
            if not isinstance(bos, int):
                raise UserError("the prompt is empty, and the artifact has no bos token to begin with. Give a prompt")
            prompt = [bos]
        return self._ids(prompt), self._ids(continuation)
