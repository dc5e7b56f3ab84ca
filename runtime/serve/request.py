"""The fields of a request: OpenAI's names and limits, checked by pydantic.

- A null field counts as absent.
- Unknown fields are refused. So are fields that change the output and are not supported.
- Fields that only describe the caller are accepted and ignored.

A body may hold millions of values. Therefore lists are compared with RequestLimits before their elements are checked,
and a list stops at its first wrong element: collecting every error would block the server for half a minute.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from .errors import ApiError, shortened
from .fields.base import WHOLE, NotNegative, Positive, Prompt, StrictModel
from .fields.messages import ChatMessage, TemplateVariables, check_message_count
from .fields.tools import ToolChoiceField, Tools

MAX_CHOICES = 128  # n
MAX_STOP_STRINGS = 16
MAX_ID_DIGITS = 20  # of a token id in logit_bias
LOGIT_BIAS = 100  # largest absolute value
# Fields that may help a server to answer faster or better, or do not apply here: accepted, ignored, and logged once.
HINTS = ("reasoning_effort", "verbosity", "prediction", "cache_control", "cache_prompt", "prompt_cache_retention")


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
    max_tokens: Positive | Literal[-1] | None = None  # -1: what the context holds
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
    # HINTS
    reasoning_effort: str = ""
    verbosity: str = ""
    prediction: dict[str, Any] = {}
    cache_control: dict[str, Any] = {}
    cache_prompt: bool = True
    prompt_cache_retention: str = ""

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list; an empty text means none."""
        return ([self.stop] if self.stop else []) if isinstance(self.stop, str) else self.stop


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Prompt
    max_tokens: NotNegative | Literal[-1] | None = None  # 0: the prompt only
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None
    best_of: Annotated[int, WHOLE] | None = None
    echo: bool = False
    suffix: str = ""

    @model_validator(mode="after")
    def _check_best_of_and_suffix(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise ApiError(
                400,
                f"best_of is {shortened(str(self.best_of))}; needed: {self.n}, the value of n. Or leave it out",
                param="best_of",
            )
        if self.suffix:
            raise ApiError(
                400, "suffix is not supported: an answer continues the prompt only. Leave it out", param="suffix"
            )
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """`prompt` as a list of texts or of lists of token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True), BeforeValidator(check_message_count)]
    max_completion_tokens: Positive | Literal[-1] | None = None
    chat_template_kwargs: TemplateVariables = {}
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] = ["text"]
    tools: Tools = []
    tool_choice: ToolChoiceField = "auto"
    parallel_tool_calls: bool = True
    functions: Annotated[list[Any], Field(max_length=0)] = []  # the older form of tools
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
