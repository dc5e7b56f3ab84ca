"""Targets for what clients and applications send: request bodies, chat messages; and for chat templates."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pydantic import ValidationError

from edgellama.artifact.json_reader import parse
from edgellama.conversation.transcript import Transcripts
from edgellama.errors import UserError
from edgellama.serve.errors import ApiError, from_validation
from edgellama.serve.preprocess import Preprocessor
from edgellama.serve.request import ChatRequest, CompletionRequest, GenerationRequest
from edgellama.text.template_files import check_syntax

from .artifact_targets import toy_letters
from .target import Target, scratch

MOST_SEQUENCES = 16


def check_chat_request(data: bytes) -> None:
    """The body of POST /v1/chat/completions, down to the sequences for the scheduler."""
    _check_request(ChatRequest, data)


def check_completion_request(data: bytes) -> None:
    """The body of POST /v1/completions, down to the sequences for the scheduler."""
    _check_request(CompletionRequest, data)


def _check_request(kind: type[GenerationRequest], data: bytes) -> None:
    preprocessor = _preprocessor()
    try:
        request = _validated(kind, data)
        count = preprocessor.count(request)
        sequences = preprocessor.sequences(request, lambda *_: None)
    except ApiError as error:
        assert 400 <= error.status < 500 and json.dumps(error.body)
        raise
    assert len(sequences) == count
    for sequence in sequences:
        assert 0 < sequence.prompt.size < preprocessor.limits.context
        assert sequence.prompt.min() >= 0 and sequence.prompt.max() < preprocessor.model.engine.vocab_size
    again = _validated(kind, request.model_dump_json(by_alias=True).encode())
    assert preprocessor._prompts(again) == preprocessor._prompts(request)
    assert preprocessor._config(again) == preprocessor._config(request)


def _validated(kind: type[GenerationRequest], data: bytes) -> GenerationRequest:
    try:
        return kind.model_validate_json(data, context=_preprocessor().limits)
    except ValidationError as error:
        raise from_validation(error) from error


@cache
def _preprocessor() -> Preprocessor:
    return Preprocessor(toy_letters(), MOST_SEQUENCES)


def check_messages(data: bytes) -> None:
    """A list of chat messages: the template's text can be encoded, and a longer conversation continues it."""
    try:
        messages: Any = parse(data)
    except ValueError as error:
        raise UserError(f"the input is no JSON: {error}") from error
    tokenizer = toy_letters().tokenizer
    turn = _transcripts().begin(tokenizer, messages, {})
    assert isinstance(turn.text, str) and turn.ids == tokenizer.encode(turn.text, add_special_tokens=False)


@cache
def _transcripts() -> Transcripts:
    return Transcripts()


def check_template(data: bytes) -> None:
    """The source of a chat template: its syntax is checked without running it."""
    path = scratch("template") / "chat_template.jinja"
    path.write_bytes(data)
    check_syntax(path.parent)


REQUEST_TARGETS = (
    Target("chat_request", check_chat_request, (ApiError, UserError), "json"),
    Target("completion_request", check_completion_request, (ApiError, UserError), "json"),
    Target("messages", check_messages, (UserError,), "json"),
    Target("template", check_template, (UserError,), "bytes"),
)
