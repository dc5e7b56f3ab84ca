"""Who may ask: names in the Host header, and pages of other sites."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from .errors import ApiError

HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s/?#@:\\\[\]]*))(?::[0-9]{0,5})?")


def cross_origin(origins: Sequence[str]) -> Middleware:
    """The middleware that lets pages of other sites read answers (CORS)."""
    return Middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"], max_age=600
    )


def host_name(headers: Sequence[str]) -> str | None:
    """Return the name in the Host header, in small letters and without the port; None without the header.

    Raises ApiError for a header that is not a name or address with or without a port, and for more than one.
    """
    if not headers:
        return None
    found = HOST.fullmatch(headers[0].strip()) if len(headers) == 1 else None
    if found is None:
        shown = ", ".join(repr(header[:100]) for header in headers[:3])
        raise ApiError(400, f"the Host header is {shown}. Send one name or address, and a port if it is not 80")
    return (found["address"] or found["name"]).lower()
