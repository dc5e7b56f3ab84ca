"""What the fields of all requests share: limits of the server, numbers, prompts, and the base of the objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationInfo, model_validator

from ..errors import context_length_error, too_many_sequences_error


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


def _check_prompt_count(value: Any, info: ValidationInfo[RequestLimits]) -> Any:
    if isinstance(value, list) and len(value) > info.context.sequences:
        raise too_many_sequences_error(info.context.sequences)
    return value


def prompt_tag(value: Any) -> str | None:
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
        prompt_tag,
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
