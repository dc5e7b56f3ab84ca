"""The fields of a request: OpenAI's names and limits, checked by pydantic.

- A null field counts as absent.
- Unknown fields are refused. So are fields that change the output and are not supported.
- Fields that only describe the caller are accepted and ignored.

A body may hold millions of values. Therefore lists are compared with RequestLimits before their elements are checked,
and a list stops at its first wrong element: collecting every error would block the server for half a minute.
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

from .errors import ApiError, context_length_error, shortened, too_many_sequences_error

MAX_CHOICES = 128  # n
MAX_STOP_STRINGS = 16
MAX_ID_DIGITS = 20  # of a token id in logit_bias
LOGIT_BIAS = 100  # largest absolute value
# Fields of an assistant message that a client may send back, if they are empty.
EMPTY_MESSAGE_FIELDS = ("refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content")


@dataclass(frozen=True)
class RequestLimits:
    """The limits of this server; passed to pydantic as the context of a validation.

    Attributes:
        context: tokens of a prompt and its answer together
        sequences: prompts times n of one request
    """

    context: int
    sequences: int


def _whole(value: Any) -> Any:
    """1.0 is an integer in JSON Schema, and some clients write it so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
NotNegative = Annotated[int, Field(ge=0), WHOLE]
Positive = Annotated[int, Field(ge=1), WHOLE]


def _check_token_count(value: Any, info: ValidationInfo[RequestLimits]) -> Any:
    if isinstance(value, list) and len(value) >= info.context.context:
        raise context_length_error(f"the prompt has {len(value):,} tokens", info.context.context)
    return value


def _check_message_count(value: Any, info: ValidationInfo[RequestLimits]) -> Any:
    if isinstance(value, list) and len(value) >= info.context.context:
        raise context_length_error(
            f"the prompt has {len(value):,} messages, each of at least one token", info.context.context
        )
    return value


def _check_prompt_count(value: Any, info: ValidationInfo[RequestLimits]) -> Any:
    if isinstance(value, list) and len(value) > info.context.sequences:
        raise too_many_sequences_error(info.context.sequences)
    return value


def _prompt_tag(value: Any) -> str | None:
    """The tag of a prompt's type, by its first element. Tags contain spaces, so that error paths leave them out."""
    if isinstance(value, str):
        return "a text"
    first = value[0] if isinstance(value, list) and value else None
    return {int: "token ids", float: "token ids", str: "several texts", list: "several lists"}.get(type(first))


TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**63), WHOLE]],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(_check_token_count),
]
Prompt = Annotated[
    Annotated[str, Tag("a text")]
    | Annotated[TokenIds, Tag("token ids")]
    | Annotated[list[str], Field(fail_fast=True), BeforeValidator(_check_prompt_count), Tag("several texts")]
    | Annotated[list[TokenIds], Field(fail_fast=True), BeforeValidator(_check_prompt_count), Tag("several lists")],
    Discriminator(
        _prompt_tag,
        custom_error_type="prompt",
        custom_error_message="must be a text, a list of token ids, or a non-empty list of either, "
        "with at least one token",
    ),
]


class StrictModel(BaseModel):
    """Base of the request's objects. Refuses unknown fields, does not convert types, and drops null fields."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kept = {name: field for name, field in value.items() if field is not None}
        if len(kept) > len(cls.model_fields):  # some fields are unknown: keep the first of them for the error message
            known = {field.alias or name for name, field in cls.model_fields.items()}
            unknown = next(name for name in kept if name not in known)
            kept = {name: field for name, field in kept.items() if name in known or name == unknown}
        return kept


class StreamOptions(StrictModel):
    """`stream_options`. include_usage: end the stream with a chunk of token counts."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchemaFormat(StrictModel):
    """`response_format.json_schema`. The answer always matches the schema, whatever `strict` is."""

    name: str = "answer"
    description: str = ""
    schema_: dict[str, Any] | bool = Field(alias="schema")
    strict: bool = True


class ResponseFormat(StrictModel):
    """`response_format`: plain text, any JSON object, or JSON that matches a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('json_schema goes with type "json_schema", and only with it')
        return self


class GenerationRequest(StrictModel):
    """The fields of both endpoints.

    top_k, min_p, repetition_penalty, min_tokens and ignore_eos are additions to OpenAI's fields.
    """

    model: str
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] = 1
    max_tokens: Positive | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: NotNegative | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=1e-6, le=1e6)  # scores stay finite in float32
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, Any] = {}  # preprocess.py checks its keys and values together
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = None
    stop: str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOP_STRINGS)] = []
    min_tokens: NotNegative | None = None
    ignore_eos: bool = False
    response_format: ResponseFormat = ResponseFormat(type="text")
    # fields that describe the caller: accepted and ignored
    user: str = ""
    metadata: dict[str, Any] = {}
    store: bool = False
    service_tier: str = ""
    safety_identifier: str = ""
    prompt_cache_key: str = ""

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list; an empty text means none."""
        return ([self.stop] if self.stop else []) if isinstance(self.stop, str) else self.stop


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Prompt
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None
    best_of: Annotated[int, WHOLE] | None = None
    echo: bool = False

    @model_validator(mode="after")
    def _check_best_of_and_echo(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise ApiError(
                400,
                f"best_of is {shortened(str(self.best_of))}; needed: {self.n}, the value of n. Or leave it out",
                param="best_of",
            )
        if self.echo:
            raise ApiError(400, "echo is not supported. Leave it out, or set it to false", param="echo")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """`prompt` as a list of texts or of lists of token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt


class TextContentPart(StrictModel):
    """One part of a message's content. Only text parts are supported."""

    type: Literal["text"]
    text: str


class ChatMessage(StrictModel):
    """One message of a chat."""

    role: Annotated[str, Field(min_length=1)]
    content: str | Annotated[list[TextContentPart], Field(fail_fast=True)] = ""
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_fields(cls, value: Any) -> Any:
        """Drop empty fields of an assistant message, so that a client may send an answer back unchanged."""
        if not isinstance(value, dict):
            return value
        return {name: field for name, field in value.items() if field or name not in EMPTY_MESSAGE_FIELDS}

    def as_dict(self) -> dict[str, str]:
        """The message for the chat template. OpenAI's role "developer" becomes "system", the name in templates."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        return message if self.name is None else {**message, "name": self.name}


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True), BeforeValidator(_check_message_count)]
    max_completion_tokens: Positive | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] = ["text"]
    tools: Annotated[list[Any], Field(max_length=0)] = []
    tool_choice: Literal["none", "auto"] = "none"
    parallel_tool_calls: bool = True
    functions: Annotated[list[Any], Field(max_length=0)] = []  # the older name of tools
    function_call: Literal["none", "auto"] = "none"

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(
                400, "top_logprobs goes with logprobs: true. Set it, or leave top_logprobs out", param="top_logprobs"
            )
        return self


def requested_top_logprobs(request: GenerationRequest) -> int | None:
    """How many alternatives per token the response shows; None if it shows no log-probabilities."""
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs if isinstance(request, CompletionRequest) else None
