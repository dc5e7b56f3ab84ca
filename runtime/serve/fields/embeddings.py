"""The fields of POST /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo

from ..errors import ApiError
from .base import WHOLE, Positive, RequestLimits, StrictModel, prompt_tag

MAX_INPUTS = 2048  # OpenAI's limit


def _check_count(value: Any) -> Any:
    if isinstance(value, list) and len(value) > MAX_INPUTS:
        raise ApiError(400, f"input has {len(value):,} texts; the limit is {MAX_INPUTS:,}. Send fewer", param="input")
    return value


def _check_length(value: Any, info: ValidationInfo[RequestLimits]) -> Any:
    if isinstance(value, list) and len(value) > info.context.context:
        raise too_long(f"{len(value):,} tokens", info.context.context)
    return value


def too_long(found: str, context: int) -> ApiError:
    """The error for a text that does not fit. found: how long it is."""
    message = f"a text of input has {found}; this model's context holds {context:,}. Shorten it"
    return ApiError(400, message, param="input", code="context_length_exceeded")


_Ids = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**63), WHOLE]],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(_check_length),
]
Input = Annotated[
    Annotated[str, Tag("a text")]
    | Annotated[_Ids, Tag("token ids")]
    | Annotated[list[str], Field(fail_fast=True), BeforeValidator(_check_count), Tag("several texts")]
    | Annotated[list[_Ids], Field(fail_fast=True), BeforeValidator(_check_count), Tag("several lists")],
    Discriminator(
        prompt_tag,
        custom_error_type="input",
        custom_error_message="must be a text, a list of token ids, or a non-empty list of either",
    ),
]


class EmbeddingsRequest(StrictModel):
    """The body of POST /v1/embeddings. `pooling` is an addition to OpenAI's fields."""

    model: str
    input: Input
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Positive | None = None
    pooling: Literal["last", "mean", "cls"] | None = None
    user: str = ""

    @property
    def texts(self) -> list[str] | list[list[int]]:
        """`input` as a list of texts or of lists of token ids."""
        if isinstance(self.input, str):
            return [self.input]
        return [self.input] if isinstance(self.input[0], int) else self.input
