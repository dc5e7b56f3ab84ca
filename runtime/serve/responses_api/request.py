"""The fields of POST /v1/responses, and the chat request that they mean."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, model_validator

from ..errors import ApiError
from ..fields.base import WHOLE, Positive, RequestLimits, StrictModel
from ..fields.messages import TemplateVariables
from ..fields.tools import MAX_TOOLS, NAME
from ..request import ChatRequest


class TextPart(StrictModel):
    """A part of a message, of a result or of a thought."""

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"]
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_kinds(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind.startswith(("input_image", "input_file", "input_audio", "computer")):
            raise ValueError(f"the part has the type {kind!r}, and this model reads text only")
        return value


Content = str | Annotated[list[TextPart], Field(fail_fast=True)]


class MessageItem(StrictModel):
    """A message in `input`."""

    type: Literal["message"] = "message"
    role: Annotated[str, Field(min_length=1)]
    content: Content
    id: str = ""
    status: str = ""
    phase: str = ""


class CallItem(StrictModel):
    """A call that an earlier answer made."""

    type: Literal["function_call"]
    call_id: str
    name: Annotated[str, Field(min_length=1)]
    arguments: str = "{}"
    id: str = ""
    status: str = ""


class CallOutputItem(StrictModel):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str = ""
    status: str = ""


class ReasoningItem(StrictModel):
    """Thoughts of an earlier answer."""

    type: Literal["reasoning"]
    content: Annotated[list[TextPart], Field(fail_fast=True)] = []
    summary: Annotated[list[TextPart], Field(fail_fast=True)] = []
    encrypted_content: str = ""
    id: str = ""
    status: str = ""


ITEM_TAGS = {
    "message": "a message",
    "function_call": "a call",
    "function_call_output": "a result",
    "reasoning": "a thought",
}


def _item_kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", "")
    return ITEM_TAGS.get("message" if kind is None else str(kind))


Item = Annotated[
    Annotated[MessageItem, Tag("a message")]
    | Annotated[CallItem, Tag("a call")]
    | Annotated[CallOutputItem, Tag("a result")]
    | Annotated[ReasoningItem, Tag("a thought")],
    Discriminator(
        _item_kind,
        custom_error_type="item",
        custom_error_message="must be a message, a function_call, a function_call_output or a reasoning item",
    ),
]


class ResponsesTool(StrictModel):
    """One of `tools`."""

    type: Literal["function"]
    name: str = Field(pattern=NAME)
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = True


class ResponsesToolName(StrictModel):
    """`tool_choice`: a function that must be called."""

    type: Literal["function"]
    name: str


class TextFormat(StrictModel):
    """`text.format`."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = "answer"
    description: str = ""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool = True

    @model_validator(mode="after")
    def _check_schema(self) -> TextFormat:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError('schema goes with type "json_schema", and only with it')
        return self


class TextOptions(StrictModel):
    """`text`."""

    format: TextFormat = TextFormat.model_validate({"type": "text"})
    verbosity: str = ""


class ResponsesRequest(StrictModel):
    """The body of POST /v1/responses. This server stores no responses: `input` is the whole conversation."""

    model: str
    input: str | Annotated[list[Item], Field(min_length=1, fail_fast=True)]
    instructions: str = ""
    stream: bool = False
    stream_options: dict[str, Any] = {}
    max_output_tokens: Positive | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = None
    tools: Annotated[list[ResponsesTool], Field(fail_fast=True, max_length=MAX_TOOLS)] = []
    tool_choice: Literal["none", "auto", "required"] | ResponsesToolName = "auto"
    parallel_tool_calls: bool = True
    text: TextOptions = TextOptions()
    chat_template_kwargs: TemplateVariables = {}
    # accepted and ignored
    reasoning: dict[str, Any] = {}
    include: list[Literal["reasoning.encrypted_content"]] = []
    metadata: dict[str, Any] = {}
    store: bool = False
    user: str = ""
    service_tier: str = ""
    safety_identifier: str = ""
    prompt_cache_key: str = ""
    prompt_cache_retention: str = ""
    truncation: Literal["auto", "disabled"] = "disabled"
    background: bool = False

    @model_validator(mode="before")
    @classmethod
    def _refuse_stored_conversations(cls, value: Any) -> Any:
        for name in ("previous_response_id", "conversation") if isinstance(value, dict) else ():
            if value.get(name) is not None:
                raise ApiError(
                    400, f"{name} is not supported: this server stores no responses. Send the whole input", param=name
                )
        return value

    @model_validator(mode="after")
    def _make_chat(self, info: ValidationInfo[RequestLimits]) -> ResponsesRequest:
        if self.background:
            raise ApiError(
                400, "background is not supported: this server stores no responses. Leave it out", param="background"
            )
        fields = self._chat_fields()
        if not fields["messages"]:
            raise ApiError(400, "input has no message. Send one", param="input")
        self._chat = ChatRequest.model_validate(fields, context=info.context)
        return self

    _chat: ChatRequest

    @property
    def chat(self) -> ChatRequest:
        """The chat request that asks for the same."""
        return self._chat

    def _chat_fields(self) -> dict[str, Any]:
        choice: Any = self.tool_choice
        if isinstance(choice, ResponsesToolName):
            choice = {"type": "function", "function": {"name": choice.name}}
        form = self.text.format
        response_format: dict[str, Any] = {"type": form.type}
        if form.type == "json_schema":
            response_format["json_schema"] = {"name": form.name, "schema": form.schema_, "strict": form.strict}
        tools = [tool.model_dump(exclude={"type"}) for tool in self.tools]
        return {
            "model": self.model,
            "messages": self._messages(),
            "stream": self.stream,
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "tools": [{"type": "function", "function": tool} for tool in tools],
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": response_format,
            "chat_template_kwargs": self.chat_template_kwargs,
        }

    def _messages(self) -> list[dict[str, Any]]:
        """The messages of the chat: thoughts and calls belong to the message of the assistant before or behind them."""
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        thoughts = ""
        for item in self.input:
            if isinstance(item, ReasoningItem):
                thoughts += "".join(part.text for part in item.content or item.summary)
            elif isinstance(item, CallOutputItem):
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
            elif isinstance(item, MessageItem):
                messages.append({"role": item.role, "content": _text(item.content)})
            else:
                call = {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant"})
                messages[-1].setdefault("tool_calls", []).append(call)
            if thoughts and messages and messages[-1]["role"] == "assistant" and not isinstance(item, ReasoningItem):
                messages[-1]["reasoning_content"], thoughts = thoughts, ""
        return messages


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
