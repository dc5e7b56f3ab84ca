"""What a client is told when its request cannot be answered: OpenAI's error object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError


class ApiError(Exception):
    """An HTTP status and OpenAI's error object. A 4xx is the client's to mend, and the message says how."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def too_long(found: str, context: int) -> ApiError:
    """For a prompt that no context holds. found: what it is, "the prompt has 9,000 tokens" or the like."""
    return ApiError(
        400,
        f"{found}; this model's context holds {context:,}, one of them new. Shorten the prompt",
        code="context_length_exceeded",
    )


def too_many(most: int) -> ApiError:
    """For a request that asks for more answers than `most`."""
    return ApiError(400, f"more answers are asked for than the {most} that this server takes. Ask for fewer")


def from_validation(error: ValidationError) -> ApiError:
    """The first thing that pydantic found, by the field's path. Of a union's tries it is the one that came furthest."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    field = found[0]["loc"][:1]
    first = max((one for one in found if one["loc"][:1] == field), key=lambda one: len(one["loc"]))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg']}")
    # a union's tries are named by their types, which are no part of the request
    path = ".".join(
        str(part) for part in first["loc"] if isinstance(part, int) or (part.isidentifier() and part != "str")
    )
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "this server has no such field, or does not support it. Leave it out"
    return ApiError(400, f"{path}: {message}" if path else message, param=path or None)
