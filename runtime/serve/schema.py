"""What a request may say: OpenAI's names and limits, checked by pydantic.

A field set to null is as good as absent. Fields that change what is generated and are not supported are refused, as are
unknown ones; those that only describe the caller are taken and not used.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

CHOICES = 128  # most answers to a request
STOPS = 16
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Part(BaseModel):
    """A part of a structured value. Unknown fields are refused, null ones dropped."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


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
    repetition_penalty: float | None = Field(None, gt=0)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, float] = {}
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=STOPS)] = []
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool = False
    response_format: ResponseFormat = ResponseFormat(type="text")
    # about the caller
    user: str = ""
    metadata: dict[str, str] = {}
    store: bool = False
    service_tier: str = ""
    safety_identifier: str = ""
    prompt_cache_key: str = ""

    @property
    def stops(self) -> list[str]:
        return ([self.stop] if self.stop else []) if isinstance(self.stop, str) else self.stop


class CompletionRequest(Request):
    prompt: str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = None

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
    content: str | list[TextPart] = ""
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
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    modalities: list[Literal["text"]] = ["text"]
    tools: Annotated[list[Any], Field(max_length=0)] = []
    tool_choice: Literal["none", "auto"] = "none"
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _fits(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        return self
