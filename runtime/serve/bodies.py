"""Request bodies: read within limits, and validated outside the event loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

from anyio import CapacityLimiter, to_thread
from pydantic import ValidationError
from starlette.requests import Request

from .errors import ApiError, from_validation
from .fields.base import RequestLimits
from .fields.embeddings import EmbeddingsRequest
from .fields.tokenization import DetokenizeRequest, TokenizeRequest
from .request import GenerationRequest
from .responses_api.request import ResponsesRequest

MAX_BODY = 8 << 20  # bytes: several times the text that a context of 128k tokens holds
LARGE_BODY = 1 << 16  # bytes: larger ones share BODIES, and are validated one at a time
BODIES = 8  # bodies of the largest size that may be in memory at once

AnyRequest = GenerationRequest | ResponsesRequest | TokenizeRequest | DetokenizeRequest | EmbeddingsRequest
Validated = TypeVar("Validated", bound=AnyRequest)


class BodyReader:
    """Reads and validates bodies.

    Attributes:
        held: bytes of large bodies that are being read or validated.
    """

    def __init__(self, limits: RequestLimits, check_name: Callable[[str], None], max_body: int = MAX_BODY) -> None:
        """Args:
        limits: of the fields
        check_name: raises ApiError for a model that this server does not have
        max_body: largest body, in bytes
        """
        self.held = 0
        self._limits, self._check_name, self._max_body = limits, check_name, max_body
        self._large_bodies: CapacityLimiter | None = None  # made in the event loop

    async def request(self, kind: type[Validated], http_request: Request) -> Validated:
        """Read and validate the body. Raises ApiError if it is not valid, or if too many bodies are in memory.

        A page of another site cannot send this content type without a preflight request, which the server refuses
        unless the site is one of its `origins`.
        """
        if http_request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body's type is not JSON. Send it with Content-Type: application/json")
        too_large = ApiError(
            413, f"the body has more than {self._max_body:,} bytes, the most that this server takes. Send less"
        )
        if int(http_request.headers.get("content-length") or 0) > self._max_body:
            raise too_large
        body = bytearray()
        counted = 0  # bytes of this body in `held`
        try:
            async for chunk in http_request.stream():
                body += chunk
                if len(body) > self._max_body:
                    raise too_large
                if len(body) > LARGE_BODY:
                    self.held += len(body) - counted
                    counted = len(body)
                    if self.held > BODIES * self._max_body:
                        raise ApiError(
                            503, "too many large requests arrive at once. Try again", headers={"retry-after": "1"}
                        )
            # validated, a body takes many times its size
            self._large_bodies = self._large_bodies or CapacityLimiter(1)
            validate: Callable[[], Validated] = partial(self._validate, kind, bytes(body))
            return await to_thread.run_sync(validate, limiter=self._large_bodies if counted else None)
        finally:
            self.held -= counted

    def _validate(self, kind: type[Validated], body: bytes) -> Validated:
        """Validate a body. A large one takes a second, so this must not run in the event loop.

        Raises ApiError for an invalid body.
        """
        try:
            request = kind.model_validate_json(body, context=self._limits)
        except ValidationError as error:
            raise from_validation(error) from error
        if request.model is not None:
            self._check_name(request.model)
        return cast(Validated, request)
