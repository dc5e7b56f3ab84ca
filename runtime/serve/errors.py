"""OpenAI's error object, for a request that the server refuses or cannot complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

MAX_SHOWN = 100  # characters of a value of the request in a message
# Fields of other servers and models, and why they are refused.
UNSUPPORTED = {
    "functions": "it is the older form of tools. Send tools",
    "audio": "answers are texts, without audio",
    "web_search_options": "this server searches nothing",
    "grammar": "use response_format",
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "json_schema"),
        "use response_format",
    ),
    **dict.fromkeys(("mirostat", "typical_p", "dry_multiplier", "xtc_probability"), "use temperature, top_p or min_p"),
    **dict.fromkeys(("use_beam_search", "length_penalty", "num_beams"), "this server has no beam search"),
}


class ApiError(Exception):
    """An HTTP status and OpenAI's error object. The message of a 4xx status tells the client what to change."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Args:
        status: the HTTP status
        message: what is wrong and how to fix it
        param: the field of the request that is wrong
        code: OpenAI's error code, for example "context_length_exceeded"
        headers: additional headers of the response
        """
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def shortened(text: str) -> str:
    """The beginning of a text from a request, for a message."""
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def context_length_error(found: str, context: int) -> ApiError:
    """The error for a prompt that does not fit. found: a clause such as "the prompt has 9,000 tokens"."""
    return ApiError(
        400,
        f"{found}; this model's context holds {context:,}, including at least one new token. Shorten the prompt",
        code="context_length_exceeded",
    )


def too_many_sequences_error(limit: int) -> ApiError:
    """The error for a request with more answers (prompts times n) than `limit`."""
    return ApiError(400, f"the request has more answers (prompts times n) than the limit of {limit}. Request fewer")


def from_validation(error: ValidationError) -> ApiError:
    """The first problem that pydantic found, with the path of the field.

    For a field that may have several types, pydantic reports one error per type; the one with the longest path is
    taken.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    field = found[0]["loc"][:1]
    first = max((one for one in found if one["loc"][:1] == field), key=lambda one: len(one["loc"]))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg']}. Correct it")
    # pydantic adds the names of the tried types to the path; they are not part of the request
    path = ".".join(
        str(part) for part in first["loc"] if isinstance(part, int) or (part.isidentifier() and part != "str")
    )
    path = shortened(path)
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    message += ". Give it" if first["type"] == "missing" else ". Change it"
    if first["type"] == "extra_forbidden":
        reason = UNSUPPORTED.get(str(first["loc"][-1]))
        message = "this server has no such field, or does not support it. Leave it out"
        if reason is not None:
            message = f"not supported: {reason}. Leave it out"
    return ApiError(400, f"{path}: {message}" if path else message, param=path or None)
