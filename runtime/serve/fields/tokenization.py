"""The fields of POST /tokenize and /detokenize, with vLLM's names."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from .base import WHOLE, StrictModel
from .messages import ChatMessage, TemplateVariables, check_message_count
from .tools import Tools

MAX_TOKENIZED = 1 << 20  # characters, or token ids; to encode as many takes about a second


class TokenizeRequest(StrictModel):
    """The body of POST /tokenize: a text, or messages for the chat template."""

    model: str | None = None
    prompt: Annotated[str, Field(max_length=MAX_TOKENIZED)] | None = None
    messages: (
        Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True), BeforeValidator(check_message_count)] | None
    ) = None
    tools: Tools = []
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: TemplateVariables = {}
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check_kind(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("needed: one of prompt and messages")
        return self

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer adds special tokens such as bos. A chat template writes its own."""
        return self.messages is None if self.add_special_tokens is None else self.add_special_tokens


class DetokenizeRequest(StrictModel):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: Annotated[
        list[Annotated[int, Field(ge=0, lt=2**63), WHOLE]], Field(max_length=MAX_TOKENIZED, fail_fast=True)
    ]
