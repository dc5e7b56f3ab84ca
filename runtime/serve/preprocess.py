"""From a request to sequences for the scheduler: token ids of the prompts, sampling settings, logits processors."""

from __future__ import annotations

import dataclasses
import reprlib
import secrets
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import UserError
from ..generation.config import GenerationConfig
from ..generation.token_selector import LogitsProcessor
from ..grammar import Grammar, GrammarTokenizer, JsonSchema, schema_text
from ..model import LlamaForCausalLM
from .answers.form import AnswerForm, answer_form, check_tools, prompt_tools
from .errors import ApiError, context_length_error, too_many_sequences_error
from .fields.base import RequestLimits
from .fields.messages import message_dicts
from .request import (
    LOGIT_BIAS,
    MAX_ID_DIGITS,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    requested_top_logprobs,
)
from .sequence import Echo, SequenceEvent, ServedSequence
from .texts.echo import PromptLogprobs, echoed

MIN_TEMPERATURE = 1e-4  # a lower one selects the most likely token, as 0 does: dividing by it would overflow
MIN_TOP_P = 1e-6  # likewise: the most likely token of 128,000 is more probable than this
# What a request without these fields gets: OpenAI's defaults, or the artifact's generation_config.json.
SAMPLING_DEFAULTS = ("openai", "artifact")
OPENAI_SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "typical_p": 1.0}
GRAMMARS = 8  # compiled ones that are kept; a large one has tens of megabytes
COMPLETION_TOKENS = 16  # OpenAI's default for completions; a chat's default is what the context holds

Send = Callable[[int, SequenceEvent], None]  # (choice, event)


class Preprocessor:
    """Makes sequences from requests. Thread-safe. Takes milliseconds, or more for a long text or a grammar."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        max_sequences: int,
        sampling: str = SAMPLING_DEFAULTS[0],
        tool_parser: str | None = None,
    ) -> None:
        """Args:
        model: gives tokenizer, limits and settings
        max_sequences: limit of prompts times n in one request
        sampling: one of SAMPLING_DEFAULTS
        tool_parser: name of the syntax of tool calls; None takes that of the chat template
        """
        self._tool_parser = tool_parser
        self.model = model
        self._defaults = model.generation_config
        if sampling == "openai":
            self._defaults = dataclasses.replace(self._defaults, **OPENAI_SAMPLING, min_p=None)
        self.limits = RequestLimits(model.engine.context, max_sequences)
        self._lock = threading.Lock()
        self._grammars: dict[str, Grammar] = {}  # by their schema or Lark text; all have the artifact's eos ids

    def count(self, request: GenerationRequest) -> int:
        """How many sequences a request has. Raises ApiError if they are more than the limit."""
        count = request.n * (len(request.prompts) if isinstance(request, CompletionRequest) else 1)
        if count > self.limits.sequences:
            raise too_many_sequences_error(self.limits.sequences)
        return count

    def sequences(self, request: GenerationRequest, send: Send) -> list[ServedSequence]:
        """Make n sequences for each prompt; those of one prompt are neighbours. `send` receives their events.

        Raises ApiError for a request that does not fit, UserError for settings or messages that the model refuses.
        """
        prompts = self._prompts(request)
        config, limit = self._config(request)
        seed = secrets.randbits(63) if request.seed is None else request.seed % 2**64
        adapters = self.model.engine.adapters
        adapter = adapters.number(request.model) if request.model in adapters.loaded else 0
        form = answer_form(request, self.model.tokenizer, prompts[0], self._tool_parser)
        grammar = self._grammar(request, config.eos_token_id, form)
        shown = self.model.tokenizer.special_ids(form.markers())
        sequences: list[ServedSequence] = []
        for prompt in prompts:
            ids = self._ids(prompt, add_special_tokens=not isinstance(request, ChatRequest))
            max_new_tokens = min(limit, self.model.engine.context - ids.size)
            for _ in range(request.n):
                choice = len(sequences)
                states, echo = self._echo(request, prompt, ids)
                sequences.append(
                    ServedSequence(
                        ids,
                        max_new_tokens,
                        config,
                        self.model.tokenizer,
                        self.model.engine.vocab_size,
                        lambda event, choice=choice: send(choice, event),  # type: ignore[misc]
                        seed=(seed, choice),
                        processors=_processors(request, ids.size, grammar),
                        top_logprobs=requested_top_logprobs(request),
                        reuse_prefix=request.seed is None,  # a seed promises the same tokens again
                        continues_prompt=not isinstance(request, ChatRequest),
                        adapter=adapter,
                        shown=shown,
                        reader=form.reader(),
                        states=states,
                        echo=echo,
                    )
                )
        return sequences

    def _echo(
        self, request: GenerationRequest, prompt: str | list[int], ids: np.ndarray
    ) -> tuple[PromptLogprobs | None, Echo | None]:
        """What reads the states of a prompt, and what its answer begins with.

        Raises UserError if the target gives no log-probabilities of prompts.
        """
        if not isinstance(request, CompletionRequest) or not request.echo:
            return None, None
        text, offsets = echoed(self.model.tokenizer, prompt, ids.tolist())
        if request.logprobs is None:
            return None, Echo(text, None)
        self.model.engine.head  # noqa: B018 - refuses the target
        logprobs = PromptLogprobs(ids, offsets, request.logprobs)
        return logprobs, Echo(text, logprobs.entries)

    def _prompts(self, request: GenerationRequest) -> list[str] | list[list[int]]:
        """The prompts of a completion, or the text that the chat template writes, with its special tokens."""
        if isinstance(request, ChatRequest):
            check_tools(request, self.model.tokenizer)
            tools = [tool.as_dict() for tool in prompt_tools(request)] or None
            messages, variables = message_dicts(request.messages), request.chat_template_kwargs
            return [self.model.tokenizer.render_chat(messages, tools=tools, **variables)]
        if not isinstance(request, CompletionRequest):
            raise TypeError(f"{type(request).__name__} has no prompt")
        return request.prompts

    def _ids(self, prompt: str | list[int], *, add_special_tokens: bool) -> np.ndarray:
        """Token ids [n] int64 of a prompt, checked against the vocabulary and the context."""
        vocab_size, context = self.model.engine.vocab_size, self.model.engine.context
        if isinstance(prompt, str):
            prompt = self._encode(prompt, context, add_special_tokens)
        ids = np.asarray(prompt, np.int64)
        if ids.size == 0:
            raise ApiError(400, "the prompt is empty. Give at least one token", param="prompt")
        if ids.max() >= vocab_size:
            raise ApiError(
                400, f"token id {ids.max()}; this model's are 0..{vocab_size - 1}. Use these", param="prompt"
            )
        if ids.size >= context:
            raise context_length_error(f"the prompt has {ids.size:,} tokens", context)
        return ids

    def _encode(self, text: str, context: int, add_special_tokens: bool) -> list[int]:
        tokenizer = self.model.tokenizer
        # Encoding megabytes takes seconds, so refuse a text that cannot fit before encoding it.
        if len(text) >= context and (fewest := tokenizer.fewest_tokens(text)) >= context:
            raise context_length_error(f"the prompt has {fewest:,} tokens or more", context)
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _config(self, request: GenerationRequest) -> tuple[GenerationConfig, int]:
        """The default settings, updated by the request, and the limit of new tokens."""
        context = self.model.engine.context
        given: dict[str, Any] = {
            "repetition_penalty": request.repetition_penalty,
            "min_new_tokens": _at_most(context, request.min_tokens),
            "stop_strings": request.stop_strings or None,
            "sequence_bias": self._logit_bias(request) or None,
        }
        coldest = request.temperature is not None and request.temperature < MIN_TEMPERATURE
        if coldest or (request.top_p is not None and request.top_p < MIN_TOP_P):
            given["do_sample"] = False
        else:
            sampling = {name: getattr(request, name) for name in ("temperature", "top_p", "min_p")}
            sampling["top_k"] = _at_most(self.model.engine.vocab_size, request.top_k)
            if any(value is not None for value in sampling.values()):
                given = {**given, **sampling, "do_sample": True}
        if request.ignore_eos:
            given["eos_token_id"] = []
        config = self._defaults.updated(given, (), "the request")
        limit = request.max_tokens
        if isinstance(request, ChatRequest):
            limit = request.max_completion_tokens or limit or -1
        limit = COMPLETION_TOKENS if limit is None else limit
        return config, context if limit < 0 else min(limit, context)

    def _logit_bias(self, request: GenerationRequest) -> dict[tuple[int, ...], float]:
        """`logit_bias` as generate()'s sequence_bias."""
        vocab_size = self.model.engine.vocab_size
        biases: dict[tuple[int, ...], float] = {}
        for token, bias in request.logit_bias.items():
            known = token.isascii() and token.isdigit() and len(token) <= MAX_ID_DIGITS and int(token) < vocab_size
            number = isinstance(bias, (int, float)) and not isinstance(bias, bool) and -LOGIT_BIAS <= bias <= LOGIT_BIAS
            if not (known and number):
                raise ApiError(
                    400,
                    f"logit_bias of {reprlib.repr(token)} is {reprlib.repr(bias)}. Give a token id in "
                    f"0..{vocab_size - 1} and -{LOGIT_BIAS}..{LOGIT_BIAS}",
                    param="logit_bias",
                )
            biases[(int(token),)] = bias
        return biases

    def _grammar(self, request: GenerationRequest, eos: tuple[int, ...], form: AnswerForm) -> Grammar | None:
        """The grammar of a request. One is compiled at a time; the last GRAMMARS are kept."""
        what = "response_format" if form.choice is None else "tools"
        if form.choice is None and request.response_format.type == "text":
            return None
        if not eos:
            raise ApiError(400, f"{what} needs an eos token to end with. Leave ignore_eos out", param=what)
        try:
            if form.choice is not None:
                return self._compiled(form.grammar_text({}), lambda: form.grammar(self._grammar_tokenizer))
            schema_format = request.response_format.json_schema
            schema = {"type": "object"} if schema_format is None else schema_format.schema_
            text = schema_text(schema, what)
            return self._compiled(text, lambda: JsonSchema(schema, self._grammar_tokenizer, what))
        except (UserError, ValueError, RecursionError) as error:
            raise ApiError(400, str(error), param=what) from error

    def _compiled(self, text: str, compile_it: Callable[[], Grammar]) -> Grammar:
        """The grammar with this text: one that was compiled before, or a new one."""
        with self._lock:
            grammar = self._grammars.pop(text, None) or compile_it()
            self._grammars[text] = grammar  # the newest is last
            while len(self._grammars) > GRAMMARS:
                del self._grammars[next(iter(self._grammars))]
        return grammar

    @cached_property
    def _grammar_tokenizer(self) -> GrammarTokenizer:
        return GrammarTokenizer.of(self.model)


def _at_most(most: int, value: int | None) -> int | None:
    """A larger value means the same as `most`; JSON has integers of any size."""
    return value if value is None else min(value, most)


def _processors(request: GenerationRequest, prompt_length: int, grammar: Grammar | None) -> list[LogitsProcessor]:
    """The logits processors of one sequence."""
    processors: list[LogitsProcessor] = []
    if request.presence_penalty or request.frequency_penalty:
        processors.append(AdditivePenalties(prompt_length, request.presence_penalty, request.frequency_penalty))
    if grammar is not None:
        processors.append(grammar.copy())
    return processors


class AdditivePenalties:
    """OpenAI's penalties: subtract `presence` once and `frequency` per occurrence from each token of the answer."""

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self.prompt_length = prompt_length
        self.presence = np.float32(presence)
        self.frequency = np.float32(frequency)

    def __call__(self, input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Changes scores [1, V] float32 in place and returns them. input_ids: [1, n], prompt and answer."""
        ids, counts = np.unique(input_ids[0, self.prompt_length :], return_counts=True)
        scores[0, ids] -= self.presence + self.frequency * counts.astype(np.float32)
        return scores
