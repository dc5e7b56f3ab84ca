"""What a request may say: OpenAI's names and limits, checked by pydantic.

A field set to null is as good as absent. Fields that change what is generated and are not supported are refused, as are
unknown ones; those that only describe the caller are taken and not used.

A body may hold millions of values. So lists are held to the server's Limits before they are looked into, and of what is
wrong in one only the first is told: to list all of it would keep the server for half a minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)

from runtime.serve.errors import too_long, too_many

CHOICES = 128  # most answers to a request
STOPS = 16


@dataclass(frozen=True)
class Limits:
    """What the server at hand takes; the context of a validation."""

    context: int  # tokens of a prompt and its answer
    answers: int  # to one request


def _few_tokens(given: Any, info: ValidationInfo[Limits]) -> Any:
    if isinstance(given, list) and len(given) >= info.context.context:
        raise too_long(f"the prompt has {len(given):,} tokens", info.context.context)
    return given


def _few_messages(given: Any, info: ValidationInfo[Limits]) -> Any:
    if isinstance(given, list) and len(given) >= info.context.context:
        raise too_long(f"the prompt has {len(given):,} messages, each of a token or more", info.context.context)
    return given


def _few_prompts(given: Any, info: ValidationInfo[Limits]) -> Any:
    if isinstance(given, list) and len(given) > info.context.answers:
        raise too_many(info.context.answers)
    return given


def _kind_of_prompt(given: Any) -> str | None:
    """By the first value. The names are no identifiers, so that errors leave them out of a field's path."""
    if isinstance(given, str):
        return "a text"
    first = given[0] if isinstance(given, list) and given else None
    return {int: "token ids", str: "several texts", list: "several lists"}.get(type(first))


TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1, fail_fast=True), BeforeValidator(_few_tokens)
]
Prompt = Annotated[
    Annotated[str, Tag("a text")]
    | Annotated[TokenIds, Tag("token ids")]
    | Annotated[list[str], Field(fail_fast=True), BeforeValidator(_few_prompts), Tag("several texts")]
    | Annotated[list[TokenIds], Field(fail_fast=True), BeforeValidator(_few_prompts), Tag("several lists")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt",
        custom_error_message="give a text, token ids, or a list of such; at least one prompt or token is needed",
    ),
]


class Part(BaseModel):
    """A part of a structured value. Unknown fields are refused, null ones dropped."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kept = {name: value for name, value in given.items() if value is not None}
        if len(kept) > len(cls.model_fields):  # unknown ones among them: the first is told
            known = {field.alias or name for name, field in cls.model_fields.items()}
            unknown = next(name for name in kept if name not in known)
            kept = {name: value for name, value in kept.items() if name in known or name == unknown}
        return kept


class StreamOptions(Part):
    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchemaFormat(Part):
    """`strict` or not, the answer is held to the schema."""

    name: str = "answer"
    description: str = ""
    schema_: dict[str, Any] | bool = Field(alias="schema")
    strict: bool = True


class ResponseFormat(Part):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('json_schema goes with type "json_schema", and only with it')
        return self


class Request(Part):
    """What both endpoints take. top_k, min_p, repetition_penalty, min_tokens and ignore_eos are this server's own."""

    model: str
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: int = Field(1, ge=1, le=CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=1e-6, le=1e6)  # scores times or over it stay float32 numbers
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, Any] = {}  # its values are checked with its keys, by prepare.py
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=STOPS)] = []
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool = False
    response_format: ResponseFormat = ResponseFormat(type="text")
    # about the caller
    user: str = ""
    metadata: dict[str, Any] = {}
    store: bool = False
    service_tier: str = ""
    safety_identifier: str = ""
    prompt_cache_key: str = ""

    @property
    def stops(self) -> list[str]:
        return ([self.stop] if self.stop else []) if isinstance(self.stop, str) else self.stop


class CompletionRequest(Request):
    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = None
    echo: Literal[False] = False

    @model_validator(mode="after")
    def _no_best_of(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of is not supported: leave it out, or set it to n")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt


class TextPart(Part):
    type: Literal["text"]
    text: str


class Message(Part):
    role: Annotated[str, Field(min_length=1)]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] = ""
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_answered(cls, given: Any) -> Any:
        """An answer of this server may be sent back as it came: its fields that say nothing are dropped."""
        if not isinstance(given, dict):
            return given
        idle = ("refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content")
        return {name: value for name, value in given.items() if value or name not in idle}

    def as_dict(self) -> dict[str, str]:
        """For the chat template. OpenAI's "developer" is what templates call "system"."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        return message if self.name is None else {**message, "name": self.name}


class ChatRequest(Request):
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True), BeforeValidator(_few_messages)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] = ["text"]
    tools: Annotated[list[Any], Field(max_length=0)] = []
    tool_choice: Literal["none", "auto"] = "none"
    parallel_tool_calls: bool = True
    functions: Annotated[list[Any], Field(max_length=0)] = []  # what tools were called before
    function_call: Literal["none", "auto"] = "none"

    @model_validator(mode="after")
    def _fits(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        return self


def top_logprobs(request: Request) -> int | None:
    """How many alternatives to a token are asked for; None: no logprobs at all."""
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs if isinstance(request, CompletionRequest) else None
