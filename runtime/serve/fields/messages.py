"""The messages of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from ..errors import ApiError, context_length_error, shortened
from .base import RequestLimits, StrictModel
from .tools import ToolCall

# Fields of an assistant message that a client may send back; empty ones are dropped.
EMPTY_MESSAGE_FIELDS = ("refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content")
TEMPLATE_ARGUMENTS = ("messages", "tools", "chat_template", "add_generation_prompt", "self")  # of render_chat


def check_message_count(value: Any, info: ValidationInfo[RequestLimits]) -> Any:
    """Refuse more messages than the context has tokens, before they are validated."""
    if isinstance(value, list) and len(value) >= info.context.context:
        raise context_length_error(
            f"the prompt has {len(value):,} messages, each of at least one token", info.context.context
        )
    return value


def _check_variables(value: Any) -> Any:
    if isinstance(value, dict) and (wrong := [name for name in TEMPLATE_ARGUMENTS if name in value]):
        raise ApiError(
            400,
            f"chat_template_kwargs has {wrong[0]}, which the server itself sets. Leave it out",
            param="chat_template_kwargs",
        )
    return value


# Further variables of the chat template, such as enable_thinking.
TemplateVariables = Annotated[dict[str, Any], BeforeValidator(_check_variables)]


class TextContentPart(StrictModel):
    """One part of a message's content. Only text parts are supported."""

    type: Literal["text"]
    text: str
    cache_control: Any = None  # accepted and ignored

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_kinds(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"the part has the type {shortened(repr(kind))}, and this model reads text only")
        return value


class ChatMessage(StrictModel):
    """One message of a chat."""

    role: Annotated[str, Field(min_length=1)]
    content: str | Annotated[list[TextContentPart], Field(fail_fast=True)] = ""
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] = []
    tool_call_id: str | None = None  # of a message with the role "tool"
    cache_control: Any = None  # accepted and ignored

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_fields(cls, value: Any) -> Any:
        """Drop empty fields of an assistant message, so that a client may send an answer back unchanged."""
        if not isinstance(value, dict):
            return value
        return {name: field for name, field in value.items() if field or name not in EMPTY_MESSAGE_FIELDS}

    def as_dict(self) -> dict[str, Any]:
        """The message for the chat template. OpenAI's role "developer" becomes "system", the name in templates."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        for name in ("name", "reasoning_content", "tool_call_id"):
            if getattr(self, name) is not None:
                message[name] = getattr(self, name)
        if self.tool_calls:
            message["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        return message


def message_dicts(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The messages for the chat template. The result of a call gets its function's name: some templates need it."""
    made = [message.as_dict() for message in messages]
    names: dict[str, str] = {}
    for message in made:
        names.update((call["id"], call["function"]["name"]) for call in message.get("tool_calls", ()))
        if message["role"] == "tool" and message.get("tool_call_id") in names:
            message.setdefault("name", names[message["tool_call_id"]])
    return made
