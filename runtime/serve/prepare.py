"""A request as answers for the scheduler: its prompts as token ids, its settings, its grammar."""

from __future__ import annotations

import dataclasses
import reprlib
import secrets
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from runtime.errors import UserError
from runtime.generation.prompt import new_token_limit
from runtime.generation.token_selector import LogitsProcessor
from runtime.grammar import Grammar, GrammarTokenizer, JsonSchema
from runtime.model import LlamaForCausalLM
from runtime.serve.answer import Answer, Event
from runtime.serve.errors import ApiError, too_long, too_many
from runtime.serve.schema import ChatRequest, CompletionRequest, Limits, Request, top_logprobs

COLDEST = 1e-4  # a temperature below takes the likeliest token, as 0 does: scores divided by it would overflow
MOST_DIGITS = 20  # of a token id
COMPLETION_TOKENS = 16  # OpenAI's default; a chat's is what the context holds

Send = Callable[[int, Event], None]  # the choice, and what it goes on with


class Preparer:
    """Makes Answers. May be called from several threads; takes milliseconds, or more for a long text or a grammar."""

    def __init__(self, model: LlamaForCausalLM, most: int) -> None:
        """most: answers that one request may ask for."""
        self.model = model
        self.limits = Limits(model.engine.context, most)
        self._lock = threading.Lock()

    def answers(self, request: Request, send: Send) -> list[Answer]:
        """The n answers to each prompt, a prompt's next to each other.

        Raises ApiError for what does not fit, UserError for what the settings or the chat template refuse.
        """
        prompts = self._prompts(request)
        if len(prompts) * request.n > self.limits.answers:  # before they take time and memory
            raise too_many(self.limits.answers)
        config, limit = self._config(request)
        seed = secrets.randbits(63) if request.seed is None else request.seed % 2**64
        grammar = self._grammar(request, config.eos_token_id)
        answers: list[Answer] = []
        for prompt in prompts:
            ids = self._ids(prompt, add_special_tokens=not isinstance(request, ChatRequest))
            room = new_token_limit(
                dataclasses.replace(config, max_new_tokens=limit), ids.size, ids.size, self.model.artifact
            )
            for _ in range(request.n):
                choice = len(answers)
                processors: list[LogitsProcessor] = []
                if request.presence_penalty or request.frequency_penalty:
                    processors.append(Penalties(ids.size, request.presence_penalty, request.frequency_penalty))
                if grammar is not None:
                    processors.append(grammar())
                answers.append(
                    Answer(
                        ids,
                        room,
                        config,
                        self.model.tokenizer,
                        self.model.engine.vocab_size,
                        lambda event, choice=choice: send(choice, event),  # type: ignore[misc]
                        seed=(seed, choice),
                        processors=processors,
                        top_logprobs=top_logprobs(request),
                        reuse=request.seed is None,  # a seed asks for the same tokens again
                        continues=not isinstance(request, ChatRequest),
                    )
                )
        return answers

    def _prompts(self, request: Request) -> list[str] | list[list[int]]:
        """As they are given; a chat as its template writes it, special tokens and all."""
        if isinstance(request, ChatRequest):
            return [self.model.tokenizer.render_chat([message.as_dict() for message in request.messages])]
        if not isinstance(request, CompletionRequest):
            raise TypeError(f"{type(request).__name__} is no request with a prompt")
        return request.prompts

    def _ids(self, prompt: str | list[int], *, add_special_tokens: bool) -> np.ndarray:
        """Token ids [n] of a prompt that fits."""
        vocab_size, context = self.model.engine.vocab_size, self.model.engine.context
        if isinstance(prompt, str):
            prompt = self._encoded(prompt, context, add_special_tokens)
        ids = np.asarray(prompt, np.int64)
        if ids.size == 0:
            raise ApiError(400, "the prompt is empty; needed: at least one token", param="prompt")
        if ids.max() >= vocab_size:
            raise ApiError(400, f"token id {ids.max()}; this model's are 0..{vocab_size - 1}", param="prompt")
        if ids.size >= context:
            raise too_long(f"the prompt has {ids.size:,} tokens", context)
        return ids

    def _encoded(self, text: str, context: int, add_special_tokens: bool) -> list[int]:
        tokenizer = self.model.tokenizer
        if len(text) >= context and (fewest := tokenizer.fewest_tokens(text)) >= context:  # megabytes take seconds
            raise too_long(f"the prompt has {fewest:,} tokens or more", context)
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _config(self, request: Request) -> tuple[Any, int]:
        """The artifact's settings with the request's in place, and the most new tokens."""
        given: dict[str, Any] = {
            "repetition_penalty": request.repetition_penalty,
            "min_new_tokens": request.min_tokens,
            "stop_strings": request.stops or None,
            "sequence_bias": self._biases(request) or None,
        }
        if request.temperature is not None and request.temperature < COLDEST:
            given["do_sample"] = False
        else:
            how = {name: getattr(request, name) for name in ("temperature", "top_p", "top_k", "min_p")}
            if any(value is not None for value in how.values()):
                given = {**given, **how, "do_sample": True}
        if request.ignore_eos:
            given["eos_token_id"] = []
        config = self.model.generation_config.updated(given, (), "the request")
        limit = request.max_tokens
        if isinstance(request, ChatRequest):
            limit = request.max_completion_tokens or limit or self.model.engine.context
        return config, limit or COMPLETION_TOKENS

    def _biases(self, request: Request) -> dict[tuple[int, ...], float]:
        vocab_size = self.model.engine.vocab_size
        biases: dict[tuple[int, ...], float] = {}
        for token, bias in request.logit_bias.items():
            known = token.isascii() and token.isdigit() and len(token) <= MOST_DIGITS and int(token) < vocab_size
            number = isinstance(bias, (int, float)) and not isinstance(bias, bool) and -100 <= bias <= 100
            if not (known and number):
                raise ApiError(
                    400,
                    f"logit_bias of {reprlib.repr(token)} is {reprlib.repr(bias)}; needed: a token id in "
                    f"0..{vocab_size - 1} and -100..100",
                    param="logit_bias",
                )
            biases[(int(token),)] = bias
        return biases

    def _grammar(self, request: Request, eos: tuple[int, ...]) -> Callable[[], Grammar] | None:
        """What makes a processor for each answer; the schema is compiled now, so that a bad one is told."""
        if request.response_format.type == "text":
            return None
        form = request.response_format.json_schema
        schema = {"type": "object"} if form is None else form.schema_
        if not eos:
            raise ApiError(400, "response_format needs an eos token to end with; leave ignore_eos out")
        with self._lock:
            tokenizer = self._grammar_tokenizer
        try:
            JsonSchema(schema, tokenizer, "response_format")
        except UserError as error:
            raise ApiError(400, str(error), param="response_format") from error
        return lambda: JsonSchema(schema, tokenizer, "response_format")

    @cached_property
    def _grammar_tokenizer(self) -> GrammarTokenizer:
        return GrammarTokenizer.of(self.model)


class Penalties:
    """OpenAI's: a token that the answer holds already loses `presence`, and `frequency` each time it is there."""

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self.prompt_length = prompt_length
        self.presence = np.float32(presence)
        self.frequency = np.float32(frequency)

    def __call__(self, input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """input_ids [1, n], scores [1, V], changed in place."""
        ids, counts = np.unique(input_ids[0, self.prompt_length :], return_counts=True)
        scores[0, ids] -= self.presence + self.frequency * counts.astype(np.float32)
        return scores
