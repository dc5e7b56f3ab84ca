"""The fields of tools: what may be called, and the calls in a conversation."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ...tools.syntax import NO_PARAMETERS, Tool
from ..errors import ApiError, shortened
from .base import StrictModel

MAX_TOOLS = 128
NAME = r"^[A-Za-z0-9_.-]{1,64}$"


class FunctionTool(StrictModel):
    """`function` of a tool. Arguments always match the schema, whatever `strict` is."""

    name: str = Field(pattern=NAME)
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = True


class ToolDefinition(StrictModel):
    """One of `tools`."""

    type: Literal["function"]
    function: FunctionTool
    cache_control: Any = None  # accepted and ignored

    def as_tool(self) -> Tool:
        """The tool for the template and the grammar. Without parameters it takes no arguments."""
        function = self.function
        schema = {"type": "object", **function.parameters} if function.parameters else NO_PARAMETERS
        properties, required = schema.get("properties", {}), schema.get("required", [])
        names = isinstance(required, list) and all(isinstance(name, str) for name in required)
        if schema["type"] != "object" or not isinstance(properties, dict) or not names:
            raise ApiError(
                400,
                f"tools: the parameters of {function.name!r} are no schema of an object. Give "
                '{"type": "object", "properties": {...}, "required": [...]}',
                param="tools",
            )
        return Tool(function.name, schema, function.description)


class FunctionName(StrictModel):
    """The name in a `tool_choice`."""

    name: str


class NamedTool(StrictModel):
    """`tool_choice`: a function that must be called."""

    type: Literal["function"]
    function: FunctionName


class FunctionCall(StrictModel):
    """The function of a call."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str = "{}"


class ToolCall(StrictModel):
    """A call in an assistant message."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None  # of a streamed delta; ignored

    def as_dict(self) -> dict[str, Any]:
        """The call for the chat template, which writes the arguments as JSON itself."""
        arguments: Any = {}
        if self.function.arguments.strip():
            try:
                arguments = json.loads(self.function.arguments)
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(arguments, dict):
            raise ApiError(
                400,
                f"the arguments of a call of {shortened(repr(self.function.name))} in messages are no JSON object. "
                "Send them as the model wrote them",
                param="messages",
            )
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


def check_tool_count(value: Any) -> Any:
    """Refuse more tools than MAX_TOOLS, before they are validated."""
    if isinstance(value, list) and len(value) > MAX_TOOLS:
        raise ApiError(
            400, f"tools has {len(value):,} entries, and the limit is {MAX_TOOLS}. Send fewer", param="tools"
        )
    return value


Tools = Annotated[list[ToolDefinition], Field(fail_fast=True, max_length=MAX_TOOLS), BeforeValidator(check_tool_count)]
ToolChoiceField = Literal["none", "auto", "required"] | NamedTool
