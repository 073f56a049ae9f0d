"""Which kind of body a request brings, and a JSON one read whole."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from api.problems import Problem
from api.validation import parse_json

MAX_JSON_BYTES = 1 << 20


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";", 1)[0].strip().lower()


def require_multipart(request: Request) -> None:
    if media_type(request) != "multipart/form-data":
        raise unsupported_media_type(request, "multipart/form-data")


def unsupported_media_type(request: Request, *expected: str) -> Problem:
    given = media_type(request)[:100]
    detail = (
        f"Send {' or '.join(expected)}, not {given!r}." if given else f"Content-Type must be {' or '.join(expected)}."
    )
    return Problem("unsupported_media_type", detail)


async def read_json(request: Request) -> Any:
    """The JSON body. Raises Problem `malformed_json` or `too_large`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise Problem("too_large", f"A JSON body may have at most {MAX_JSON_BYTES} bytes (1 MiB).")
    try:
        return parse_json(bytes(body))
    except ValueError as error:
        raise Problem("malformed_json", f"The body is not JSON: {error}.") from error
